"""``site.yaml``: the hosts, networks, trust domains and policy of one installation.

    site = load(Site, Path("site.yaml"))
    site.head("serving").name

A **trust domain** is one Ray cluster with its own certificate authority and token. Ray does not
isolate jobs from each other, so tuning on private data and serving to users are separate domains on
a real site (ANSSI, guide on generative AI, R12 and R21); a small site may have one ``shared``
domain, which :mod:`appliance.manifests.site_advice` notes. A host belongs to one domain, except a
``gateway`` host, which stands in front of all. A domain has exactly one ``ray_head``.

Here is what a site consists of, and what is asked of it. What it must keep to be installed at all
is in :mod:`appliance.manifests.site_rules`; a broken rule names the field to change. What is
allowed and yet unwise is advice, not an error.

Addresses are literal: names would need a resolver, and a sealed site has none that is trusted.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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
        description="Checked on every host, and against what two hosts agree on over TCP.",
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

    @property
    def runs_ray(self) -> bool:
        """Whether it is the head or a worker of its trust domain's Ray."""
        return bool(self.roles & {Role.RAY_HEAD, Role.RAY_WORKER})

    @property
    def uses_storage(self) -> bool:
        """Whether it must see data sets, runs and adapters."""
        return self.runs_ray or Role.GATEWAY in self.roles

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
    """The whole of ``site.yaml``; a value of it keeps every rule."""

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
    def _keeps_the_rules(self) -> Site:
        from appliance.manifests.site_rules import check  # which is about what is defined here

        check(self)
        return self

    @property
    def gateway_host(self) -> Host:
        """The one host that callers talk to."""
        return next(host for host in self.hosts if Role.GATEWAY in host.roles)

    @property
    def time_source(self) -> Host:
        """The host whose clock the others follow: the first head."""
        return self.head(self.trust_domains[0].name)

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
