"""``site.yaml``: the hosts, networks, trust domains and policy of one installation.

    site = load(Site, Path("site.yaml"))
    site.head("serving").name

A **trust domain** is one Ray cluster with its own certificate authority and token. Ray does not
isolate jobs from each other, so tuning on private data and serving to users are separate domains on
a real site (ANSSI, guide on generative AI, R12 and R21); a small site may have one ``shared``
domain, which :mod:`appliance.manifests.site_advice` notes. A host belongs to one domain, except a
``gateway`` host, which stands in front of all. A domain has exactly one ``ray_head``.

The rules here are what a site must keep to be installed at all. What is allowed and yet unwise is
advice, not an error.

Addresses are literal: names would need a resolver, and a sealed site has none that is trusted.
"""

from __future__ import annotations

import itertools
from collections import Counter
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
UserName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f]*$", max_length=255)]
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
    """``cluster`` carries Ray, ``management`` SSH, ``storage`` files, ``access`` callers."""

    CLUSTER = "cluster"
    MANAGEMENT = "management"
    STORAGE = "storage"
    ACCESS = "access"


class SiteNetwork(_Part):
    """One IP network of the site. No default route is expected, or made, on any."""

    name: Name
    kind: NetworkKind
    cidr: Network
    mtu: Annotated[int, Field(ge=576, le=9216)] = 1500


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
    key: AbsolutePath | None = None
    host_keys: tuple[HostKeyFingerprint, ...] = ()


class Gpus(_Part):
    """The accelerators a host must have; ``count`` 0 skips the driver role.

    ``model`` is part of the name that the driver reports (``L40S``); ``minimum_driver`` is a
    version such as ``570.86``. Both are checked before anything is installed.
    """

    count: Annotated[int, Field(ge=0, le=16)] = 0
    model: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    minimum_driver: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+){0,3}$")] | None = None


class Host(_Part):
    """One machine."""

    name: Name
    roles: Annotated[frozenset[Role], Field(min_length=1)]
    domain: Name | None = None
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
    """Leave the default route that a host has; without this it is taken away."""

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
    server: Address
    export: AbsolutePath


class MountedStorage(_Part):
    """The same on a file system that the site's operators mount at ``path`` on every host."""

    kind: Literal["mounted"]
    path: AbsolutePath


Storage = Annotated[LocalStorage | NfsStorage | MountedStorage, Field(discriminator="kind")]


class Site(_Part):
    """The whole of ``site.yaml``; a value of it keeps every rule above."""

    schema_version: Literal[1]
    name: Name
    folder: AbsolutePath = "/var/lib/sovctl"
    networks: Annotated[tuple[SiteNetwork, ...], Field(min_length=1)]
    trust_domains: Annotated[tuple[TrustDomain, ...], Field(min_length=1)]
    hosts: Annotated[tuple[Host, ...], Field(min_length=1)]
    gateway: GatewayPolicy
    egress: EgressPolicy = EgressPolicy()
    storage: Storage = LocalStorage()
    time_servers: tuple[Address, ...] = ()
    name_servers: tuple[Address, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Site:
        for what, names in (
            ("network", [network.name for network in self.networks]),
            ("trust domain", [domain.name for domain in self.trust_domains]),
            ("host", [host.name for host in self.hosts]),
            ("flow", [flow.name for flow in self.egress.allow]),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{what} {twice[0]} is defined twice")
        return self

    @model_validator(mode="after")
    def _networks_fit(self) -> Site:
        for one, other in itertools.combinations(self.networks, 2):
            if one.cidr.version == other.cidr.version and one.cidr.overlaps(other.cidr):
                raise ValueError(f"networks {one.name} and {other.name} overlap")
        known = {network.name: network for network in self.networks}
        taken: dict[IPv4Address | IPv6Address, str] = {}
        for host in self.hosts:
            for interface in host.interfaces:
                network = known.get(interface.network)
                if network is None:
                    raise ValueError(
                        f"host {host.name}: network {interface.network} is not defined"
                    )
                if interface.address not in network.cidr:
                    raise ValueError(
                        f"host {host.name}: {interface.address} is not in {network.name} "
                        f"({network.cidr})"
                    )
                if interface.address in taken:
                    raise ValueError(
                        f"{interface.address} is given to {taken[interface.address]} "
                        f"and to {host.name}"
                    )
                taken[interface.address] = host.name
        for name in self.gateway.networks:
            if name not in known:
                raise ValueError(f"gateway: network {name} is not defined")
        return self

    @model_validator(mode="after")
    def _domains_fit(self) -> Site:
        domains = {domain.name for domain in self.trust_domains}
        cluster = {n.name for n in self.networks if n.kind is NetworkKind.CLUSTER}
        for host in self.hosts:
            runs_ray = host.roles & {Role.RAY_HEAD, Role.RAY_WORKER}
            if runs_ray and host.domain is None:
                raise ValueError(f"host {host.name} runs Ray and belongs to no trust domain")
            if host.domain is not None and host.domain not in domains:
                raise ValueError(f"host {host.name}: trust domain {host.domain} is not defined")
            if runs_ray and not any(i.network in cluster for i in host.interfaces):
                raise ValueError(f"host {host.name} runs Ray and is in no cluster network")
        for domain in domains:
            heads = [h for h in self.hosts if h.domain == domain and Role.RAY_HEAD in h.roles]
            if len(heads) != 1:
                raise ValueError(f"trust domain {domain} needs one ray_head and has {len(heads)}")
        gateways = [host for host in self.hosts if Role.GATEWAY in host.roles]
        if len(gateways) != 1:
            raise ValueError(f"one host has the role gateway, not {len(gateways)}")
        if sum(Role.MONITORING in host.roles for host in self.hosts) > 1:
            raise ValueError("at most one host has the role monitoring")
        for name in self.gateway.networks:
            if gateways[0].address_in(name) is None:
                raise ValueError(f"gateway: host {gateways[0].name} is not in network {name}")
        return self

    @model_validator(mode="after")
    def _purposes_fit(self) -> Site:
        for what, does in (("serves", "serves models"), ("tunes", "tunes them")):
            able = [domain.name for domain in self.trust_domains if getattr(domain.purpose, what)]
            if len(able) > 1:
                raise ValueError(f"trust domains {' and '.join(able)}: only one {does}")
        if not any(domain.purpose.serves for domain in self.trust_domains):
            raise ValueError("no trust domain serves models")
        return self

    @model_validator(mode="after")
    def _storage_fits(self) -> Site:
        spread = [h for h in self.hosts if h.roles & {Role.RAY_HEAD, Role.RAY_WORKER, Role.GATEWAY}]
        if isinstance(self.storage, LocalStorage) and len(spread) > 1:
            raise ValueError(
                f"{len(spread)} hosts share data sets, checkpoints and adapters: "
                "storage must be nfs or mounted"
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
