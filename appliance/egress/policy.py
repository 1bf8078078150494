"""What a site's hosts may say to each other and to others: the flow matrix. Pure.

    for flow in flows_of(site, site.host("n1")):
        print(flow.direction, flow.name, flow.protocol, flow.ports, flow.peers, flow.reason)

An **exchange** is one reason to talk: clients, servers, the servers' ports. Every allowed flow is
one host's side of an exchange, so what one host may send, the other may receive, and nothing is
allowed on one side only. Everything that is not in the matrix is refused, in both directions
(:mod:`appliance.egress.ruleset`).

Peers are the narrowest that the site's model knows: addresses of its hosts, or a network of its own
where callers and operators come from. Ray's exchanges are made per trust domain: no flow of Ray
leads from one domain into another. Names of flows that an operator wrote begin with ``operator-``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_network,
)
from typing import Literal

from appliance.manifests import site_ports
from appliance.manifests.site import Host, NetworkKind, NfsStorage, Role, Site

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Protocol = Literal["tcp", "udp"]
Direction = Literal["in", "out"]

_RAY_DAEMONS = tuple(
    range(port, port + 1)
    for port in (
        site_ports.NODE_MANAGER,
        site_ports.OBJECT_MANAGER,
        site_ports.RUNTIME_ENV_AGENT,
        site_ports.DASHBOARD_AGENT_GRPC,
        site_ports.DASHBOARD_AGENT_HTTP,
        site_ports.METRICS_EXPORT,
    )
)


@dataclass(frozen=True, slots=True)
class AllowedFlow:
    """One host's side of an exchange that the site needs or its operator asked for.

    ``in``: ``peers`` may open connections to ``local`` at ``ports``. ``out``: this host may open
    connections to ``peers`` at ``ports``, from ``local``. ``peers`` is never everywhere; ``local``
    are the host's own addresses. ``ports`` are inclusive ranges, ascending and apart.
    """

    host: str
    direction: Direction
    name: str
    reason: str
    protocol: Protocol
    ports: tuple[tuple[int, int], ...]
    peers: tuple[Network, ...]
    local: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class _Exchange:
    """``clients`` may open connections to ``servers`` (hosts of the site or networks)."""

    name: str
    reason: str
    protocol: Protocol
    ports: tuple[tuple[int, int], ...]
    clients: tuple[Host | Network, ...]
    servers: tuple[Host | Network, ...]
    kind: NetworkKind | None = None
    """The kind of network that hosts use for it; None: whichever the two share."""
    within: Network | None = None
    """Where the servers' addresses lie; None: anywhere."""


def flow_matrix(site: Site) -> tuple[AllowedFlow, ...]:
    """Every allowed flow of every host, in the order of the hosts and then of the reasons."""
    return tuple(flow for host in site.hosts for flow in flows_of(site, host))


def flows_of(site: Site, host: Host) -> tuple[AllowedFlow, ...]:
    """The flows that end or begin at ``host``. All else is refused there."""
    found: list[AllowedFlow] = []
    for exchange in _exchanges(site):
        if host in exchange.servers:
            found += _sides(site, host, exchange, "in", exchange.clients)
        if host in exchange.clients:
            found += _sides(site, host, exchange, "out", exchange.servers)
    return tuple(found)


def management_networks(site: Site) -> tuple[Network, ...]:
    """Where operators come from: the management networks, else each host's first network."""
    named = [n.cidr for n in site.networks if n.kind is NetworkKind.MANAGEMENT]
    first = {host.interfaces[0].network for host in site.hosts}
    return tuple(named or [n.cidr for n in site.networks if n.name in first])


def _exchanges(site: Site) -> Iterator[_Exchange]:
    yield from _administration(site)
    for domain in site.trust_domains:
        yield from _ray(site, domain.name)
    yield from _relay(site)
    yield from _services(site)
    yield from _monitoring(site)
    for flow in site.egress.allow:
        sources = tuple(h for h in site.hosts if h.roles & flow.sources)
        inside = (h for h in site.hosts if any(i.address in flow.destination for i in h.interfaces))
        yield _Exchange(
            f"operator-{flow.name}", flow.reason, flow.protocol, _one(flow.port), sources,
            (flow.destination, *inside), within=flow.destination,
        )  # fmt: skip


def _administration(site: Site) -> Iterator[_Exchange]:
    networks = management_networks(site)
    for port in sorted({host.ssh.port for host in site.hosts}):
        hosts = tuple(h for h in site.hosts if h.ssh.port == port)
        reason = "operators configure and examine the hosts over SSH"
        yield _Exchange("ssh", reason, "tcp", _one(port), networks, hosts)
    callers = tuple(n.cidr for n in site.networks if n.name in site.gateway.networks)
    yield _Exchange(
        "gateway", "callers and operators reach the gateway, the one listening door", "tcp",
        _one(site.gateway.port), callers, (site.gateway_host,),
    )  # fmt: skip


def _ray(site: Site, domain: str) -> Iterator[_Exchange]:
    nodes = tuple(h for h in site.domain_hosts(domain) if h.runs_ray)
    head = (site.head(domain),)
    cluster = NetworkKind.CLUSTER
    yield _Exchange(
        "ray-gcs", f"Ray's control store of trust domain {domain}, on its head", "tcp",
        _one(site_ports.GCS), nodes, head, cluster,
    )  # fmt: skip
    daemons = _spans(_RAY_DAEMONS)
    yield _Exchange(
        "ray-daemons", f"Ray's daemons of trust domain {domain} among themselves", "tcp",
        daemons, nodes, nodes, cluster,
    )  # fmt: skip
    yield _Exchange(
        "ray-workers", f"Ray's workers of trust domain {domain} call each other", "tcp",
        _spans([site_ports.WORKERS]), nodes, nodes, cluster,
    )  # fmt: skip
    yield _Exchange(
        "ray-collective", f"gradients between the tuning workers of trust domain {domain}", "tcp",
        _spans([site_ports.COLLECTIVE]), nodes, nodes, cluster,
    )  # fmt: skip


def _relay(site: Site) -> Iterator[_Exchange]:
    gateway = (site.gateway_host,)
    heads = tuple(site.head(domain.name) for domain in site.trust_domains)
    serving = site.serving_domain.name
    nodes = tuple(h for h in site.domain_hosts(serving) if h.runs_ray)
    cluster = NetworkKind.CLUSTER
    yield _Exchange(
        "relay-dashboard", "the gateway submits and watches jobs on each trust domain's head",
        "tcp", _one(site_ports.RELAY_DASHBOARD), gateway, heads, cluster,
    )  # fmt: skip
    yield _Exchange(
        "relay-serve", "the gateway asks Serve's proxy on the serving head", "tcp",
        _one(site_ports.RELAY_SERVE), gateway, (site.head(serving),), cluster,
    )  # fmt: skip
    yield _Exchange(
        "relay-replicas", "the gateway asks the model replicas of the serving domain", "tcp",
        _spans([site_ports.RELAY_REPLICAS]), gateway, nodes, cluster,
    )  # fmt: skip


def _services(site: Site) -> Iterator[_Exchange]:
    source = site.time_source
    others = tuple(host for host in site.hosts if host != source)
    yield _Exchange(
        "time", "the hosts follow one clock", "udp", _one(site_ports.TIME), others, (source,)
    )
    servers = tuple(ip_network(address) for address in site.time_servers)
    yield _Exchange(
        "time-servers", "the site's clock follows the time servers that the site names", "udp",
        _one(site_ports.TIME), (source,), servers,
    )  # fmt: skip
    resolvers = tuple(ip_network(address) for address in site.name_servers)
    protocols: tuple[Protocol, ...] = ("udp", "tcp")
    for protocol in protocols:
        yield _Exchange(
            "names", "the hosts ask the name servers that the site names", protocol,
            _one(site_ports.NAMES), site.hosts, resolvers,
        )  # fmt: skip
    if isinstance(site.storage, NfsStorage):
        users = tuple(h for h in site.hosts if h.uses_storage)
        own = tuple(
            h for h in site.hosts if any(i.address == site.storage.server for i in h.interfaces)
        )
        yield _Exchange(
            "nfs", "data sets, checkpoints and adapters lie on the site's storage", "tcp",
            _one(site_ports.NFS), users, own or (ip_network(site.storage.server),),
        )  # fmt: skip


def _monitoring(site: Site) -> Iterator[_Exchange]:
    watchers = tuple(host for host in site.hosts if Role.MONITORING in host.roles)
    nodes = tuple(host for host in site.hosts if host.runs_ray)
    yield _Exchange(
        "node-metrics", "Prometheus reads the state of every host", "tcp",
        _one(site_ports.NODE_EXPORTER), watchers, site.hosts,
    )  # fmt: skip
    yield _Exchange(
        "ray-metrics", "Prometheus reads Ray's metrics", "tcp",
        _one(site_ports.METRICS_EXPORT), watchers, nodes, NetworkKind.CLUSTER,
    )  # fmt: skip


def _sides(
    site: Site,
    host: Host,
    exchange: _Exchange,
    direction: Direction,
    parties: Iterable[Host | Network],
) -> Iterator[AllowedFlow]:
    """The host's side: one flow for each family of addresses, none where nobody is met."""
    peers: set[Network] = set()
    local: set[Address] = set()
    for party in parties:
        if isinstance(party, Host):
            if party == host:
                continue  # its own addresses are reached over loopback
            pairs = _pairs(site, host, party, exchange.kind)
            if exchange.within is not None:
                server = 0 if direction == "in" else 1
                pairs = {pair for pair in pairs if pair[server] in exchange.within}
            peers |= {ip_network(theirs) for _ours, theirs in pairs}
            local |= {ours for ours, _theirs in pairs}
        else:
            peers.add(party)
            local |= set(_towards(site, host, party))
    for version in (4, 6):
        ours = tuple(sorted(a for a in local if a.version == version))
        theirs = collapsed(network for network in peers if network.version == version)
        if ours and theirs:
            yield AllowedFlow(
                host.name, direction, exchange.name, exchange.reason, exchange.protocol,
                exchange.ports, theirs, ours,
            )  # fmt: skip


def _pairs(
    site: Site, host: Host, other: Host, kind: NetworkKind | None
) -> set[tuple[Address, Address]]:
    """Addresses at which two hosts meet: in a network that both are in, else over a router."""
    ours, theirs = _addresses(site, host, kind), _addresses(site, other, kind)
    shared = {(ours[name], theirs[name]) for name in ours.keys() & theirs.keys()}
    return shared or {
        (mine, their)
        for mine in ours.values()
        for their in theirs.values()
        if mine.version == their.version
    }


def _addresses(site: Site, host: Host, kind: NetworkKind | None) -> dict[str, Address]:
    """A host's address by network: of that kind, or all where it is in none of that kind."""
    every = {interface.network: interface.address for interface in host.interfaces}
    kinds = {network.name: network.kind for network in site.networks}
    return {name: each for name, each in every.items() if kinds[name] is kind} or every


def _towards(site: Site, host: Host, peers: Network) -> list[Address]:
    """The host's own addresses for peers: in the network they share, else all of the family."""
    own = [i for i in host.interfaces if i.address.version == peers.version]
    shared = {
        n.name for n in site.networks if n.cidr.version == peers.version and n.cidr.overlaps(peers)
    }
    return [i.address for i in own if i.network in shared] or [i.address for i in own]


def collapsed(networks: Iterable[Network]) -> tuple[Network, ...]:
    """The same addresses in the fewest networks, ascending, IPv4 first."""
    found = sorted(networks, key=lambda n: (n.version, int(n.network_address), n.prefixlen))
    four = [network for network in found if isinstance(network, IPv4Network)]
    six = [network for network in found if isinstance(network, IPv6Network)]
    return (*collapse_addresses(four), *collapse_addresses(six))


def _one(port: int) -> tuple[tuple[int, int], ...]:
    return ((port, port),)


def _spans(ranges: Iterable[range]) -> tuple[tuple[int, int], ...]:
    """Inclusive ranges, ascending; those that touch are joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted((span.start, span.stop - 1) for span in ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)
