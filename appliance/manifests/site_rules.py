"""What a site must keep to be installed at all. Pure.

    check(site)     # raises the first contradiction, naming the field to change

Each rule is a function of its own, in the order in which a person would correct them: a rule may
rely on those before it. :class:`~appliance.manifests.site.Site` asks them when it is made, so that
a value of it keeps them all. What is allowed and yet unwise is in
:mod:`~appliance.manifests.site_advice`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import PurePosixPath

from appliance.manifests import site_ports
from appliance.manifests.contradiction import contradiction
from appliance.manifests.site import (
    Host,
    Interface,
    LocalStorage,
    MountedStorage,
    NetworkKind,
    NfsStorage,
    Role,
    Site,
    SiteNetwork,
)

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


def check(site: Site) -> None:
    """Ask every rule. Raises :class:`pydantic.ValidationError` for the first that is broken."""
    for rule in _RULES:
        rule(site)


def _names_are_unique(site: Site) -> None:
    lists: tuple[tuple[str, tuple[str, ...], list[str]], ...] = (
        ("network", ("networks",), [network.name for network in site.networks]),
        ("trust domain", ("trust_domains",), [domain.name for domain in site.trust_domains]),
        ("host", ("hosts",), [host.name for host in site.hosts]),
        ("flow", ("egress", "allow"), [flow.name for flow in site.egress.allow]),
    )
    for what, at, names in lists:
        for index, name in enumerate(names):
            if name in names[:index]:
                reason = f"{what} {name} is defined twice"
                raise contradiction((*at, index, "name"), reason, "give one another name")
    for index, host in enumerate(site.hosts):
        if host.name in _ANSIBLE_NAMES:
            raise contradiction(
                ("hosts", index, "name"),
                f"{host.name} means more than one host to Ansible",
                f"give it another name, such as {host.name}-1",
            )


def _networks_fit(site: Site) -> None:
    for one, other in itertools.combinations(range(len(site.networks)), 2):
        first, second = site.networks[one], site.networks[other]
        if first.cidr.version == second.cidr.version and first.cidr.overlaps(second.cidr):
            raise contradiction(
                ("networks", other, "cidr"),
                f"networks {first.name} and {second.name} overlap",
                f"write a network that shares no address with {first.cidr}",
            )
    for index, name in enumerate(site.gateway.networks):
        _known_network(site, ("gateway", "networks", index), "gateway", name)


def _interfaces_fit(site: Site) -> None:
    taken: dict[IPv4Address | IPv6Address, str] = {}
    for at, host, interface in _interfaces(site):
        network = _known_network(site, (*at, "network"), f"host {host.name}", interface.network)
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


def _interfaces(site: Site) -> Iterator[tuple[tuple[str | int, ...], Host, Interface]]:
    for number, host in enumerate(site.hosts):
        for index, interface in enumerate(host.interfaces):
            yield ("hosts", number, "interfaces", index), host, interface


def _known_network(site: Site, at: tuple[str | int, ...], whose: str, name: str) -> SiteNetwork:
    found = next((network for network in site.networks if network.name == name), None)
    if found is None:
        known = ", ".join(network.name for network in site.networks)
        reason = f"{whose}: network {name} is not defined"
        raise contradiction(at, reason, f"use one of {known}, or define it under 'networks'")
    return found


def _domains_fit(site: Site) -> None:
    domains = {domain.name: domain for domain in site.trust_domains}
    cluster = {n.name for n in site.networks if n.kind is NetworkKind.CLUSTER}
    for index, host in enumerate(site.hosts):
        at = ("hosts", index)
        if host.domain is not None and host.domain not in domains:
            raise contradiction(
                (*at, "domain"),
                f"host {host.name}: trust domain {host.domain} is not defined",
                f"use one of {', '.join(domains)}",
            )
        if not host.runs_ray:
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
        heads = [h for h in site.hosts if h.domain == name and Role.RAY_HEAD in h.roles]
        if len(heads) != 1:
            raise contradiction(
                ("trust_domains", index),
                f"trust domain {name} needs one ray_head and has {len(heads)}",
                "give the role ray_head to exactly one of its hosts",
            )


def _a_domain_meets_in_one_network(site: Site) -> None:
    for index, host in enumerate(site.hosts):
        if not host.runs_ray or host.domain is None:
            continue
        head = site.head(host.domain)
        network, wanted = _cluster_network(site, host), _cluster_network(site, head)
        if network != wanted:
            raise contradiction(
                ("hosts", index, "interfaces"),
                f"host {host.name} and its head {head.name} are in different cluster networks "
                f"({network} and {wanted})",
                f"add its interface in {wanted}, and name {wanted} first under 'networks'",
            )


def _cluster_network(site: Site, host: Host) -> str | None:
    """The network whose address Ray uses there: the first of that kind that it is in."""
    return next(
        (
            network.name
            for network in site.networks
            if network.kind is NetworkKind.CLUSTER and host.address_in(network.name)
        ),
        None,
    )


def _roles_fit(site: Site) -> None:
    gateways = [host for host in site.hosts if Role.GATEWAY in host.roles]
    if len(gateways) != 1:
        raise contradiction(
            ("hosts",),
            f"one host has the role gateway, not {len(gateways)}",
            "give it to the one host that callers talk to",
        )
    watchers = [i for i, host in enumerate(site.hosts) if Role.MONITORING in host.roles]
    if len(watchers) > 1:
        raise contradiction(
            ("hosts", watchers[1], "roles"),
            f"at most one host has the role monitoring, not {len(watchers)}",
            "remove it here; that one watches every host",
        )
    for index, name in enumerate(site.gateway.networks):
        if gateways[0].address_in(name) is None:
            raise contradiction(
                ("gateway", "networks", index),
                f"gateway: host {gateways[0].name} is not in network {name}",
                "name a network that it is in",
            )
    for domain in site.trust_domains:
        wanted = _cluster_network(site, site.head(domain.name))
        if not _routed(site) and wanted and gateways[0].address_in(wanted) is None:
            raise contradiction(
                ("hosts", site.hosts.index(gateways[0]), "interfaces"),
                f"host {gateways[0].name} is the gateway and cannot reach trust domain "
                f"{domain.name}: it is not in {wanted}, and no default route is left",
                f"add its interface in {wanted}",
            )


def _routed(site: Site) -> bool:
    """Whether a host may reach what is in none of its networks."""
    return site.egress.default_route is not None


def _ports_fit(site: Site) -> None:
    ssh = {host.ssh.port for host in site.hosts}
    port = site.gateway.port
    if port in ssh or any(port in taken for taken in _TAKEN_PORTS):
        raise contradiction(
            ("gateway", "port"),
            f"the appliance uses port {port} for something else on that host",
            "use 8443, or 443",
        )
    for index, host in enumerate(site.hosts):
        if any(host.ssh.port in taken for taken in _TAKEN_PORTS):
            raise contradiction(
                ("hosts", index, "ssh", "port"),
                f"host {host.name}: the appliance uses port {host.ssh.port} itself",
                "let its SSH server listen at another port, and write that",
            )


def _purposes_fit(site: Site) -> None:
    for what, does in (("serves", "serves models"), ("tunes", "tunes them")):
        able = [i for i, each in enumerate(site.trust_domains) if getattr(each.purpose, what)]
        if len(able) > 1:
            names = " and ".join(site.trust_domains[index].name for index in able)
            raise contradiction(
                ("trust_domains", able[1], "purpose"),
                f"trust domains {names}: only one {does}",
                "make one 'serving' and the other 'tuning'",
            )
    if not any(domain.purpose.serves for domain in site.trust_domains):
        raise contradiction(
            ("trust_domains",),
            "no trust domain serves models",
            "give one the purpose 'serving' or 'shared'",
        )


def _storage_fits(site: Site) -> None:
    users = [host for host in site.hosts if host.uses_storage]
    storage = site.storage
    if isinstance(storage, LocalStorage) and len(users) > 1:
        raise contradiction(
            ("storage",),
            f"{len(users)} hosts share data sets, checkpoints and adapters: "
            "storage must be nfs or mounted",
            "write 'storage: {kind: mounted, path: /srv/shared}', or kind nfs",
        )
    if isinstance(storage, NfsStorage) and not _routed(site):
        near = [n for n in site.networks if storage.server in n.cidr]
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


def _folders_fit(site: Site) -> None:
    mounted = site.storage.path if isinstance(site.storage, MountedStorage) else None
    for at, path in ((("folder",), site.folder), (("storage", "mounted", "path"), mounted)):
        if path is None:
            continue
        if path != PurePosixPath(path).as_posix() or path.startswith("//") or ".." in path:
            reason = f"{path} is not written as systemd would write it"
            raise contradiction(at, reason, "write it without '..', '//' and a slash at the end")
    if site.folder in _NO_FOLDER or _below(site.folder, *_NO_FOLDER_BELOW):
        raise contradiction(
            ("folder",),
            f"{site.folder} belongs to the operating system, or services do not see it",
            "use /var/lib/sovctl, or a folder on a larger disk such as /data/sovctl",
        )
    if mounted is not None and (_below(mounted, site.folder) or _below(site.folder, mounted)):
        raise contradiction(
            ("storage", "mounted", "path"),
            f"{mounted} and the folder {site.folder} lie within each other",
            "mount it elsewhere, such as at /srv/shared",
        )


def _not_for_hosts(cidr: IPv4Network | IPv6Network) -> tuple[IPv4Address | IPv6Address, ...]:
    """The network's own address; in IPv4 also the one that all its hosts listen to."""
    if isinstance(cidr, IPv4Network):
        return cidr.network_address, cidr.broadcast_address
    return (cidr.network_address,)


def _below(path: str, *folders: str) -> bool:
    """Whether ``path`` is one of ``folders`` or inside one."""
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)


_RULES: tuple[Callable[[Site], None], ...] = (
    _names_are_unique,
    _networks_fit,
    _interfaces_fit,
    _domains_fit,
    _a_domain_meets_in_one_network,
    _roles_fit,
    _ports_fit,
    _purposes_fit,
    _storage_fits,
    _folders_fit,
)
