"""The flow matrix of one host as an nftables ruleset. Pure.

    text = render(site, site.host("n1"))      # what `nft -f` loads, in one transaction

One table, ``inet sovctl``, replaced as a whole: the kernel holds the old rules or the new ones,
never a half. What is not an allowed flow is dropped on its way in, refused and counted on its way
out and on its way through, for IPv4 and IPv6 alike.

**No rule trusts that a connection is "established".** The customary ``ct state established accept``
would keep every connection alive that was open before the seal was closed, a stolen shell's among
them. Here an allowed flow is four facts (direction, protocol, port, peer) and makes two rules, one
for what opens the connection and one for the answers; packets that fit neither are refused whatever
the kernel has tracked. Answers over TCP are those that do not open a connection (SYN without ACK).
UDP has no such mark, so an answer is what connection tracking saw a question for, *and* has the
flow's port and peer.

Two more ways round, and what is against them: router advertisements (a default route from the
network) are not among the ICMPv6 let in; packets whose source address does not lead back over the
interface they came from are dropped, so a peer's address is worth something.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from ipaddress import ip_network

from appliance.egress.policy import AllowedFlow, Network, collapsed, flows_of
from appliance.manifests.site import Host, Site

TABLE = "sovctl"

COUNTERS = (
    "refused_tcp",
    "refused_udp",
    "refused_dns",
    "refused_icmp",
    "refused_ipv6",
    "refused_other",
    "refused_forward",
    "dropped_spoofed",
    "dropped_input",
)
"""The named counters. ``refused_ipv6`` counts all of IPv6; the others on output only IPv4."""

_DIGEST = re.compile(r'^\tcomment "sha256:([0-9a-f]{64})"$', re.MULTILINE)
_BLANK = "0" * 64


def render(site: Site, host: Host) -> str:
    """The ruleset of ``host``, ending in a line break. The same site gives the same bytes."""
    flows = flows_of(site, host)
    lines = [
        f"# The seal of {host.name} in site {site.name}, made by sovctl from site.yaml. Not to be",
        "# edited: 'sovctl egress prove' tells when what is loaded differs from what was made.",
        *(f"# {line}" for line in _matrix(flows)),
        f"add table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        f'\tcomment "sha256:{_BLANK}"',
        *(f"\tcounter {name} {{ }}" for name in COUNTERS),
        "",
        *_chain("input", _input(site, flows), "policy drop;"),
        "",
        *_chain("output", _output(site, flows), "policy drop;"),
        "",
        *_chain("forward", _forward(), "policy drop;"),
        "}",
    ]
    blank = "\n".join(lines) + "\n"
    return _DIGEST.sub(f'\tcomment "sha256:{_sha256(blank)}"', blank)


def digest(text: str) -> str | None:
    """The digest that a rendered ruleset carries as its table's comment.

    It is over the text with zeros in the digest's place. None if there is none or it does not fit.
    """
    found = _DIGEST.search(text)
    if found is None:
        return None
    blank = text[: found.start(1)] + _BLANK + text[found.end(1) :]
    return found[1] if _sha256(blank) == found[1] else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _matrix(flows: tuple[AllowedFlow, ...]) -> Iterator[str]:
    """The flows and their reasons, for people. A reason is an operator's text: kept on one line."""
    for flow in flows:
        way = "from" if flow.direction == "in" else "to"
        peers = ", ".join(map(str, flow.peers))
        reason = " ".join(flow.reason.split())
        yield f"{flow.name}: {flow.protocol} {_ports(flow)} {way} {peers}: {reason}"


def _chain(hook: str, rules: Iterator[str], policy: str) -> Iterator[str]:
    yield f"\tchain {hook} {{"
    yield f"\t\ttype filter hook {hook} priority filter; {policy}"
    for rule in rules:
        yield f"\t\t{rule}"
    yield "\t}"


def _input(site: Site, flows: tuple[AllowedFlow, ...]) -> Iterator[str]:
    yield 'iif "lo" accept comment "loopback"'
    yield from _neighbours(site, "saddr")
    yield 'fib saddr . iif oif missing counter name "dropped_spoofed" drop comment "spoofed"'
    yield (
        "icmp type { destination-unreachable, time-exceeded, parameter-problem } "
        'accept comment "path-mtu-and-errors"'
    )
    yield (
        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, "
        'parameter-problem } accept comment "path-mtu-and-errors"'
    )
    for flow in flows:
        opens = flow.direction == "in"
        yield _rule(flow, source="peers", port="dport" if opens else "sport", opens=opens)
    yield 'counter name "dropped_input" drop comment "not-in-the-matrix"'


def _output(site: Site, flows: tuple[AllowedFlow, ...]) -> Iterator[str]:
    yield 'oif "lo" accept comment "loopback"'
    yield from _neighbours(site, "daddr")
    for family, types in (
        ("ip", "icmp type { destination-unreachable, time-exceeded, parameter-problem }"),
        (
            "ip6",
            "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, "
            "parameter-problem }",
        ),
    ):
        peers = collapsed(p for flow in flows for p in flow.peers if _family(p) == family)
        if peers:
            yield f'{types} {family} daddr {_set(peers)} accept comment "errors-to-peers"'
    for flow in flows:
        opens = flow.direction == "out"
        yield _rule(flow, source="local", port="dport" if opens else "sport", opens=opens)
    yield from _refusals()


def _neighbours(site: Site, side: str) -> Iterator[str]:
    """IPv6 cannot do without finding neighbours; that is all it gets, and on the link only."""
    links = ["fe80::/10", "ff02::/16"]
    links += [str(n.cidr) for n in site.networks if n.cidr.version == 6]
    if side == "saddr":
        links = ["::", *links]
    yield (
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 "
        f'ip6 {side} {{ {", ".join(links)} }} accept comment "neighbour-discovery"'
    )
    if side == "daddr":
        yield (
            "icmpv6 type { mld-listener-report, mld2-listener-report } ip6 hoplimit 1 "
            'ip6 daddr ff02::/16 accept comment "neighbour-discovery-groups"'
        )


def _refusals() -> Iterator[str]:
    yield ('limit rate 10/minute log prefix "sovctl refused: " flags skuid comment "who-tried"')
    refuse = "reject with icmpx admin-prohibited"
    for match, name in (
        ("meta nfproto ipv6", "refused_ipv6"),
        ("meta l4proto { tcp, udp } th dport { 53, 853, 5353 }", "refused_dns"),
        ("meta l4proto tcp", "refused_tcp"),
        ("meta l4proto udp", "refused_udp"),
        ("meta l4proto icmp", "refused_icmp"),
    ):
        yield f'{match} counter name "{name}" {refuse} comment "not-in-the-matrix"'
    yield f'counter name "refused_other" {refuse} comment "not-in-the-matrix"'


def _forward() -> Iterator[str]:
    yield (
        'counter name "refused_forward" reject with icmpx admin-prohibited '
        'comment "not-in-the-matrix"'
    )


def _rule(flow: AllowedFlow, *, source: str, port: str, opens: bool) -> str:
    """One of a flow's two rules in the chain whose packets come from ``source``."""
    peers, local = _set(flow.peers), _set(tuple(map(ip_network, flow.local)))
    saddr, daddr = (peers, local) if source == "peers" else (local, peers)
    family = _family(flow.peers[0])
    match = f"{family} saddr {saddr} {family} daddr {daddr} {flow.protocol} {port} {_ports(flow)}"
    if not opens:
        match += (
            " tcp flags & (syn | ack) != syn"
            if flow.protocol == "tcp"
            else " ct direction reply ct state established"
        )
    return f'{match} accept comment "{flow.name}"'


def _family(network: Network) -> str:
    return "ip" if network.version == 4 else "ip6"


def _ports(flow: AllowedFlow) -> str:
    spans = [str(first) if first == last else f"{first}-{last}" for first, last in flow.ports]
    return spans[0] if len(spans) == 1 else f"{{ {', '.join(spans)} }}"


def _set(networks: tuple[Network, ...]) -> str:
    """``10.0.0.1`` or ``{ 10.0.0.1, 10.1.0.0/24 }``; nft takes no overlaps, so there are none."""
    names = [
        str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
        for network in networks
    ]
    return names[0] if len(names) == 1 else f"{{ {', '.join(names)} }}"
