"""``site.yaml``: the hosts, networks, trust domains and policy of one installation.

    site = load(Site, Path("site.yaml"))
    site.head("serving").name

A **trust domain** is one Ray cluster with its own certificate authority and token. Ray does not
isolate jobs from each other, so tuning on private data and serving to users are separate domains on
a real site (ANSSI, guide on generative AI, R12 and R21); a small site may have one ``shared``
domain, which :mod:`appliance.manifests.site_advice` notes. A host belongs to one domain, except a
``gateway`` host, which stands in front of all. A domain has exactly one ``ray_head``.

The rules here are what a site must keep to be installed at all; a broken rule names the field to
change (:mod:`appliance.manifests.contradiction`). What is allowed and yet unwise is advice, not an
error.

Addresses are literal: names would need a resolver, and a sealed site has none that is trusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from appliance.manifests import site_ports
from appliance.manifests.contradiction import contradiction

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
UserName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f]*$", max_length=255)]
# On a node a path ends up in systemd units, mount units and templates, each with characters of its
# own that mean something; these mean themselves everywhere.
NodePath = Annotated[str, Field(pattern=r"^/[A-Za-z0-9_.@+/-]*$", max_length=200)]
HostKeyFingerprint = Annotated[str, Field(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]


def _literal_address(value: object) -> object:
    """pydantic would take an integer for an address; a site file holds texts."""
    if isinstance(value, int | bytes):
        raise ValueError("an address is a text such as 10.0.0.11")
    return value


Address = Annotated[IPv4Address | IPv6Address, BeforeValidator(_literal_address)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_literal_address)]


# Names that mean something else to Ansible, which would act on other hosts than were meant.
_ANSIBLE_NAMES = frozenset({"all", "ungrouped", "localhost", "ray", "gateway", "monitoring"})

# The units of a node do not see these, or see a private one in their place (ProtectHome,
# PrivateTmp, ProtectSystem), or they belong to the operating system.
_NO_FOLDER_BELOW = tuple(
    f"/{name}" for name in (
        "bin", "boot", "dev", "etc", "home", "lib", "lib64", "proc", "root", "run", "sbin", "sys",
        "tmp", "usr", "var/run", "var/tmp",
    )
)  # fmt: skip
_NO_FOLDER = ("/", "/mnt", "/opt", "/srv", "/var", "/var/lib")

_TAKEN_PORTS = (
    range(site_ports.GCS, site_ports.METRICS_EXPORT + 1),
    site_ports.WORKERS,
    range(site_ports.DASHBOARD, site_ports.DASHBOARD + 1),
    range(site_ports.SERVE, site_ports.SERVE + 1),
    site_ports.REPLICAS,
    range(site_ports.RELAY_DASHBOARD, site_ports.RELAY_SERVE + 1),
    site_ports.RELAY_REPLICAS,
    site_ports.COLLECTIVE,
    range(site_ports.PROMETHEUS, site_ports.PROMETHEUS + 1),
    range(site_ports.NODE_EXPORTER, site_ports.NODE_EXPORTER + 1),
    range(site_ports.NFS, site_ports.NFS + 1),
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Role(StrEnum):
    """What a host does; each is one Ansible role."""

    RAY_HEAD = "ray_head"
    RAY_WORKER = "ray_worker"
    GATEWAY = "gateway"
    MONITORING = "monitoring"


class Purpose(StrEnum):
    """What a trust domain is for."""

    SERVING = "serving"
    TUNING = "tuning"
    SHARED = "shared"

    @property
    def serves(self) -> bool:
        """Whether models answer callers there."""
        return self is not Purpose.TUNING

    @property
    def tunes(self) -> bool:
        """Whether models learn from private data there."""
        return self is not Purpose.SERVING


class NetworkKind(StrEnum):
    """What a network carries.

    ``cluster``: Ray, and the gateway's relay. ``management``: SSH. ``storage``: files.
    ``access``: callers of the gateway.
    """

    CLUSTER = "cluster"
    MANAGEMENT = "management"
    STORAGE = "storage"
    ACCESS = "access"


class SiteNetwork(_Part):
    """One IP network of the site. No default route is expected, or made, on any."""

    name: Name
    kind: NetworkKind
    cidr: Network = Field(description="Write the network itself, such as 10.0.0.0/24.")
    mtu: int = Field(
        default=1500, ge=576, le=9216,
        description="Checked on every host and with a full-size packet between them.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _is_a_network_of_hosts(self) -> SiteNetwork:
        cidr = self.cidr
        # is_reserved and is_private overlap in ways that differ between Python releases.
        unfit = cidr.is_multicast or cidr.is_loopback or cidr.is_link_local or cidr.is_unspecified
        if unfit or cidr.prefixlen == 0:
            raise contradiction(
                ("cidr",),
                f"{cidr} is not a network of hosts",
                "write the network that the interfaces are in, such as 10.0.0.0/24",
            )
        return self


class Interface(_Part):
    """A host's address in one of the site's networks."""

    network: Name
    address: Address


class Ssh(_Part):
    """How a host is reached while it is configured.

    ``key`` is a private key's file on the controller; without one the operator's agent is asked.
    ``host_keys`` are SHA-256 fingerprints as ``ssh-keygen -l`` prints them; a host whose key is
    neither among them nor in the site's ``known_hosts`` is not talked to. A user other than root
    becomes root by ``sudo -n``.
    """

    user: UserName = "root"
    port: Port = 22
    key: AbsolutePath | None = Field(
        default=None, description="A private key's file on the controller."
    )
    host_keys: tuple[HostKeyFingerprint, ...] = ()


class Gpus(_Part):
    """The accelerators a host must have; ``count`` 0 skips the driver role.

    ``model`` is part of the name that the driver reports (``L40S``); ``minimum_driver`` is a
    version such as ``570.86``. Both are checked before anything is installed.
    """

    count: Annotated[int, Field(ge=0, le=16)] = 0
    model: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    minimum_driver: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+){0,3}$")] | None = None

    @model_validator(mode="after")
    def _describes_what_is_there(self) -> Gpus:
        if self.count == 0 and (self.model or self.minimum_driver):
            raise contradiction(
                (), "it describes GPUs and says there are none", "add a line 'count: …'"
            )
        return self


class Host(_Part):
    """One machine."""

    name: Name
    roles: Annotated[frozenset[Role], Field(min_length=1)]
    domain: Name | None = Field(
        default=None, description="The trust domain whose Ray it runs; none on a mere gateway."
    )
    interfaces: Annotated[tuple[Interface, ...], Field(min_length=1)]
    gpus: Gpus = Gpus()
    ssh: Ssh = Ssh()

    def address_in(self, network: str) -> IPv4Address | IPv6Address | None:
        """Its address in a network, or None if it is not in it."""
        return next((i.address for i in self.interfaces if i.network == network), None)


class TrustDomain(_Part):
    """One Ray cluster with its own CA and token."""

    name: Name
    purpose: Purpose


class HospitalCertificate(_Part):
    """A certificate that the site's own authority issued: PEM files on the controller.

    ``chain`` is the leaf first, then what leads to (and includes) the root that callers trust.
    """

    chain: AbsolutePath
    key: AbsolutePath

    @model_validator(mode="after")
    def _are_two_files(self) -> HospitalCertificate:
        if self.chain == self.key:
            raise contradiction(
                ("key",),
                "it is the chain's file, which callers are sent",
                "keep the private key in a file of its own",
            )
        return self


class GatewayPolicy(_Part):
    """Where callers come in. ``networks`` are those it listens on.

    Without ``certificate`` the site's own authority, made at install, issues one for ``names`` and
    every address it listens on.
    """

    port: Port = 8443
    networks: Annotated[tuple[Name, ...], Field(min_length=1)]
    names: tuple[Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")], ...] = ()
    certificate: HospitalCertificate | None = None


class Flow(_Part):
    """One allowed flow out. Every one has a name and a reason; both go into the evidence."""

    name: Name
    reason: Annotated[str, Field(min_length=10, max_length=500)]
    sources: Annotated[frozenset[Role], Field(min_length=1)]
    destination: Network
    protocol: Literal["tcp", "udp"]
    port: Port

    @model_validator(mode="after")
    def _is_narrow(self) -> Flow:
        if self.destination.prefixlen == 0:
            raise ValueError("a flow to everywhere is no policy; name a network")
        return self


class DefaultRoute(_Part):
    """Leave the default route that the hosts have; without this it is taken away."""

    reason: Annotated[str, Field(min_length=10, max_length=500)]


class EgressPolicy(_Part):
    """What may leave a host besides what the site itself needs: nothing, unless named here."""

    default: Literal["reject"] = "reject"
    allow: tuple[Flow, ...] = ()
    default_route: DefaultRoute | None = None


class LocalStorage(_Part):
    """Data sets, tuning runs and adapters on the one host's own disk."""

    kind: Literal["local"] = "local"


class NfsStorage(_Part):
    """The same on an NFS export (version 4.1 or newer) that every host mounts."""

    kind: Literal["nfs"]
    server: Address = Field(description="In a network that every Ray host and the gateway are in.")
    export: NodePath


class MountedStorage(_Part):
    """The same on a file system that the site's operators mount at ``path`` on every host."""

    kind: Literal["mounted"]
    path: NodePath = Field(description="The same on every Ray host and the gateway.")


Storage = Annotated[LocalStorage | NfsStorage | MountedStorage, Field(discriminator="kind")]


class Site(_Part):
    """The whole of ``site.yaml``; a value of it keeps every rule above."""

    schema_version: Literal[1]
    name: Name = Field(description="Names the site's folder on the controller: sites/<name>.")
    folder: NodePath = Field(
        default="/var/lib/sovctl", description="Where the appliance lies on every host."
    )
    networks: Annotated[tuple[SiteNetwork, ...], Field(min_length=1)]
    trust_domains: Annotated[tuple[TrustDomain, ...], Field(min_length=1)]
    hosts: Annotated[tuple[Host, ...], Field(min_length=1)]
    gateway: GatewayPolicy
    egress: EgressPolicy = EgressPolicy()
    storage: Storage = LocalStorage()
    time_servers: tuple[Address, ...] = Field(
        default=(), description="Asked by the first head only, whose clock the others follow."
    )
    name_servers: tuple[Address, ...] = Field(
        default=(), description="All that the hosts may resolve names with; usually none."
    )

    @model_validator(mode="after")
    def _names_are_unique(self) -> Site:
        lists: tuple[tuple[str, tuple[str, ...], list[str]], ...] = (
            ("network", ("networks",), [network.name for network in self.networks]),
            ("trust domain", ("trust_domains",), [domain.name for domain in self.trust_domains]),
            ("host", ("hosts",), [host.name for host in self.hosts]),
            ("flow", ("egress", "allow"), [flow.name for flow in self.egress.allow]),
        )
        for what, at, names in lists:
            for index, name in enumerate(names):
                if name in names[:index]:
                    reason = f"{what} {name} is defined twice"
                    raise contradiction((*at, index, "name"), reason, "give one another name")
        for index, host in enumerate(self.hosts):
            if host.name in _ANSIBLE_NAMES:
                raise contradiction(
                    ("hosts", index, "name"),
                    f"{host.name} means more than one host to Ansible",
                    f"give it another name, such as {host.name}-1",
                )
        return self

    @model_validator(mode="after")
    def _networks_fit(self) -> Site:
        for one, other in itertools.combinations(range(len(self.networks)), 2):
            first, second = self.networks[one], self.networks[other]
            if first.cidr.version == second.cidr.version and first.cidr.overlaps(second.cidr):
                raise contradiction(
                    ("networks", other, "cidr"),
                    f"networks {first.name} and {second.name} overlap",
                    f"write a network that shares no address with {first.cidr}",
                )
        for index, name in enumerate(self.gateway.networks):
            self._known_network(("gateway", "networks", index), "gateway", name)
        return self

    @model_validator(mode="after")
    def _interfaces_fit(self) -> Site:
        taken: dict[IPv4Address | IPv6Address, str] = {}
        for at, host, interface in self._interfaces():
            network = self._known_network((*at, "network"), f"host {host.name}", interface.network)
            address, cidr = interface.address, network.cidr
            place = (*at, "address")
            if address not in cidr:
                reason = f"host {host.name}: {address} is not in {network.name} ({cidr})"
                raise contradiction(place, reason, f"write its address in {network.name}")
            if cidr.num_addresses > 2 and address in _not_for_hosts(cidr):
                reason = f"host {host.name}: {address} is no host's address in {cidr}"
                raise contradiction(place, reason, f"write its address in {network.name}")
            if address in taken:
                reason = f"{address} is given to {taken[address]} and to {host.name}"
                raise contradiction(place, reason, "write the address of this host")
            if host.address_in(network.name) != address:
                reason = f"host {host.name} has two addresses in network {network.name}"
                raise contradiction(place, reason, "keep the one that the site is to use")
            taken[address] = host.name
        return self

    def _interfaces(self) -> Iterator[tuple[tuple[str | int, ...], Host, Interface]]:
        for number, host in enumerate(self.hosts):
            for index, interface in enumerate(host.interfaces):
                yield ("hosts", number, "interfaces", index), host, interface

    def _known_network(self, at: tuple[str | int, ...], whose: str, name: str) -> SiteNetwork:
        found = next((network for network in self.networks if network.name == name), None)
        if found is None:
            known = ", ".join(network.name for network in self.networks)
            reason = f"{whose}: network {name} is not defined"
            raise contradiction(at, reason, f"use one of {known}, or define it under 'networks'")
        return found

    @model_validator(mode="after")
    def _domains_fit(self) -> Site:
        domains = {domain.name: domain for domain in self.trust_domains}
        cluster = {n.name for n in self.networks if n.kind is NetworkKind.CLUSTER}
        for index, host in enumerate(self.hosts):
            at = ("hosts", index)
            if host.domain is not None and host.domain not in domains:
                raise contradiction(
                    (*at, "domain"),
                    f"host {host.name}: trust domain {host.domain} is not defined",
                    f"use one of {', '.join(domains)}",
                )
            if not _runs_ray(host):
                continue
            if host.domain is None:
                reason = f"host {host.name} runs Ray and belongs to no trust domain"
                raise contradiction(at, reason, "add a line 'domain: …'")
            if not any(i.network in cluster for i in host.interfaces):
                reason = f"host {host.name} runs Ray and is in no cluster network"
                raise contradiction(
                    (*at, "interfaces"), reason, "add its interface in a network of kind cluster"
                )
        for index, name in enumerate(domains):
            heads = [h for h in self.hosts if h.domain == name and Role.RAY_HEAD in h.roles]
            if len(heads) != 1:
                raise contradiction(
                    ("trust_domains", index),
                    f"trust domain {name} needs one ray_head and has {len(heads)}",
                    "give the role ray_head to exactly one of its hosts",
                )
        return self

    @model_validator(mode="after")
    def _a_domain_meets_in_one_network(self) -> Site:
        for index, host in enumerate(self.hosts):
            if not _runs_ray(host) or host.domain is None:
                continue
            head = self.head(host.domain)
            network, wanted = self._cluster_network(host), self._cluster_network(head)
            if network != wanted:
                raise contradiction(
                    ("hosts", index, "interfaces"),
                    f"host {host.name} and its head {head.name} are in different cluster networks "
                    f"({network} and {wanted})",
                    f"add its interface in {wanted}, and name {wanted} first under 'networks'",
                )
        return self

    def _cluster_network(self, host: Host) -> str | None:
        """The network whose address Ray uses there: the first of that kind that it is in."""
        return next(
            (
                network.name
                for network in self.networks
                if network.kind is NetworkKind.CLUSTER and host.address_in(network.name)
            ),
            None,
        )

    @model_validator(mode="after")
    def _roles_fit(self) -> Site:
        gateways = [host for host in self.hosts if Role.GATEWAY in host.roles]
        if len(gateways) != 1:
            raise contradiction(
                ("hosts",),
                f"one host has the role gateway, not {len(gateways)}",
                "give it to the one host that callers talk to",
            )
        watchers = [i for i, host in enumerate(self.hosts) if Role.MONITORING in host.roles]
        if len(watchers) > 1:
            raise contradiction(
                ("hosts", watchers[1], "roles"),
                f"at most one host has the role monitoring, not {len(watchers)}",
                "remove it here; that one watches every host",
            )
        for index, name in enumerate(self.gateway.networks):
            if gateways[0].address_in(name) is None:
                raise contradiction(
                    ("gateway", "networks", index),
                    f"gateway: host {gateways[0].name} is not in network {name}",
                    "name a network that it is in",
                )
        for domain in self.trust_domains:
            wanted = self._cluster_network(self.head(domain.name))
            if not self._routed and wanted and gateways[0].address_in(wanted) is None:
                raise contradiction(
                    ("hosts", self.hosts.index(gateways[0]), "interfaces"),
                    f"host {gateways[0].name} is the gateway and cannot reach trust domain "
                    f"{domain.name}: it is not in {wanted}, and no default route is left",
                    f"add its interface in {wanted}",
                )
        return self

    @property
    def _routed(self) -> bool:
        """Whether a host may reach what is in none of its networks."""
        return self.egress.default_route is not None

    @model_validator(mode="after")
    def _ports_fit(self) -> Site:
        ssh = {host.ssh.port for host in self.hosts}
        port = self.gateway.port
        if port in ssh or any(port in taken for taken in _TAKEN_PORTS):
            raise contradiction(
                ("gateway", "port"),
                f"the appliance uses port {port} for something else on that host",
                "use 8443, or 443",
            )
        for index, host in enumerate(self.hosts):
            if any(host.ssh.port in taken for taken in _TAKEN_PORTS):
                raise contradiction(
                    ("hosts", index, "ssh", "port"),
                    f"host {host.name}: the appliance uses port {host.ssh.port} itself",
                    "let its SSH server listen at another port, and write that",
                )
        return self

    @model_validator(mode="after")
    def _purposes_fit(self) -> Site:
        for what, does in (("serves", "serves models"), ("tunes", "tunes them")):
            able = [i for i, each in enumerate(self.trust_domains) if getattr(each.purpose, what)]
            if len(able) > 1:
                names = " and ".join(self.trust_domains[index].name for index in able)
                raise contradiction(
                    ("trust_domains", able[1], "purpose"),
                    f"trust domains {names}: only one {does}",
                    "make one 'serving' and the other 'tuning'",
                )
        if not any(domain.purpose.serves for domain in self.trust_domains):
            raise contradiction(
                ("trust_domains",),
                "no trust domain serves models",
                "give one the purpose 'serving' or 'shared'",
            )
        return self

    @model_validator(mode="after")
    def _storage_fits(self) -> Site:
        users = [host for host in self.hosts if _runs_ray(host) or Role.GATEWAY in host.roles]
        storage = self.storage
        if isinstance(storage, LocalStorage) and len(users) > 1:
            raise contradiction(
                ("storage",),
                f"{len(users)} hosts share data sets, checkpoints and adapters: "
                "storage must be nfs or mounted",
                "write 'storage: {kind: mounted, path: /srv/shared}', or kind nfs",
            )
        if isinstance(storage, NfsStorage) and not self._routed:
            near = [n for n in self.networks if storage.server in n.cidr]
            place = ("storage", storage.kind, "server")
            if not near:
                raise contradiction(
                    place,
                    f"{storage.server} is in none of the site's networks, and no default route is "
                    "left that would lead there",
                    "write the server's address in a network of kind storage",
                )
            far = [host.name for host in users if host.address_in(near[0].name) is None]
            if far:
                raise contradiction(
                    place,
                    f"{', '.join(far)} cannot reach it: not in network {near[0].name}",
                    f"give each of them an interface in {near[0].name}",
                )
        return self

    @model_validator(mode="after")
    def _folders_fit(self) -> Site:
        mounted = self.storage.path if isinstance(self.storage, MountedStorage) else None
        for at, path in ((("folder",), self.folder), (("storage", "mounted", "path"), mounted)):
            if path is None:
                continue
            if path != PurePosixPath(path).as_posix() or path.startswith("//") or ".." in path:
                reason = f"{path} is not written as systemd would write it"
                raise contradiction(
                    at, reason, "write it without '..', '//' and a slash at the end"
                )
        if self.folder in _NO_FOLDER or _below(self.folder, *_NO_FOLDER_BELOW):
            raise contradiction(
                ("folder",),
                f"{self.folder} belongs to the operating system, or services do not see it",
                "use /var/lib/sovctl, or a folder on a larger disk such as /data/sovctl",
            )
        if mounted is not None and (_below(mounted, self.folder) or _below(self.folder, mounted)):
            raise contradiction(
                ("storage", "mounted", "path"),
                f"{mounted} and the folder {self.folder} lie within each other",
                "mount it elsewhere, such as at /srv/shared",
            )
        return self

    @property
    def gateway_host(self) -> Host:
        """The one host that callers talk to."""
        return next(host for host in self.hosts if Role.GATEWAY in host.roles)

    @property
    def serving_domain(self) -> TrustDomain:
        """Where models answer."""
        return next(domain for domain in self.trust_domains if domain.purpose.serves)

    @property
    def tuning_domain(self) -> TrustDomain | None:
        """Where models learn; None on a site that only serves."""
        return next((domain for domain in self.trust_domains if domain.purpose.tunes), None)

    def host(self, name: str) -> Host:
        """The host of that name. Raises ``KeyError``."""
        found = next((host for host in self.hosts if host.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def address(self, host: Host, kind: NetworkKind) -> IPv4Address | IPv6Address | None:
        """A host's address in the first network of that kind that it is in."""
        for network in self.networks:
            address = host.address_in(network.name)
            if network.kind is kind and address is not None:
                return address
        return None

    def management_address(self, host: Host) -> IPv4Address | IPv6Address:
        """Where the controller reaches it: its management address, else the first it names."""
        return self.address(host, NetworkKind.MANAGEMENT) or host.interfaces[0].address

    def domain_hosts(self, domain: str) -> tuple[Host, ...]:
        """The hosts of a trust domain, the head first, then by name."""
        members = [host for host in self.hosts if host.domain == domain]
        return tuple(sorted(members, key=lambda h: (Role.RAY_HEAD not in h.roles, h.name)))

    def head(self, domain: str) -> Host:
        """The head of a trust domain. Raises ``KeyError`` for one that is not defined."""
        if domain not in {each.name for each in self.trust_domains}:
            raise KeyError(domain)
        return self.domain_hosts(domain)[0]


def _runs_ray(host: Host) -> bool:
    return bool(host.roles & {Role.RAY_HEAD, Role.RAY_WORKER})


def _not_for_hosts(cidr: IPv4Network | IPv6Network) -> tuple[IPv4Address | IPv6Address, ...]:
    """The network's own address; in IPv4 also the one that all its hosts listen to."""
    if isinstance(cidr, IPv4Network):
        return cidr.network_address, cidr.broadcast_address
    return (cidr.network_address,)


def _below(path: str, *folders: str) -> bool:
    """Whether ``path`` is one of ``folders`` or inside one."""
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)
