"""A first ``site.yaml`` from a few answers, with comments for whoever reads it next. Pure.

    hosts = parse_hosts("n1=10.0.0.11+10.1.0.11,n2=10.0.0.12+10.1.0.12")
    text = draft(Answers("clinic", hosts, storage="mounted:/srv/shared"))

The addresses of a host stand in the order of :data:`COLUMNS_OF`: one address is in the cluster
network; two are management and cluster; then storage; then access. What is rendered is YAML that
:func:`appliance.manifests.document.parse` reads; whether the answers fit together is judged there,
by the site's own rules, and not a second time here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from appliance.manifests.site import NetworkKind

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

COLUMNS_OF: Mapping[int, tuple[NetworkKind, ...]] = {
    1: (NetworkKind.CLUSTER,),
    2: (NetworkKind.MANAGEMENT, NetworkKind.CLUSTER),
    3: (NetworkKind.MANAGEMENT, NetworkKind.CLUSTER, NetworkKind.STORAGE),
    4: (NetworkKind.MANAGEMENT, NetworkKind.CLUSTER, NetworkKind.STORAGE, NetworkKind.ACCESS),
}
"""How many addresses each host is given → the kinds of network they are in."""

_NETWORK_NAMES = {
    NetworkKind.MANAGEMENT: "admin",
    NetworkKind.CLUSTER: "cluster",
    NetworkKind.STORAGE: "storage",
    NetworkKind.ACCESS: "users",
}
_NETWORK_REMARKS = {
    NetworkKind.MANAGEMENT: "SSH of the operators",
    NetworkKind.CLUSTER: "Ray's own traffic: never routed",
    NetworkKind.STORAGE: "files",
    NetworkKind.ACCESS: "where callers come from",
}
_USUAL_PREFIX = {4: 24, 6: 64}


@dataclass(frozen=True, slots=True)
class NewHost:
    """One host and its addresses, in the order of :data:`COLUMNS_OF`."""

    name: str
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers. The first host is head, and also gateway and monitoring unless others are named.

    ``networks`` overrides the usual /24 (/64) around the hosts' addresses. ``tuning`` are the hosts
    of a trust domain of their own for tuning, the first its head; none: one domain does both.
    ``storage`` is ``local``, ``nfs:SERVER:/EXPORT`` or ``mounted:/PATH``.
    """

    name: str
    hosts: tuple[NewHost, ...]
    networks: Mapping[NetworkKind, Network] = field(default_factory=dict)
    tuning: tuple[str, ...] = ()
    gateway: str | None = None
    monitoring: str | None = None
    names: tuple[str, ...] = ()
    storage: str = "local"
    time_servers: tuple[Address, ...] = ()
    user: str = "root"
    key: str | None = None
    gpus: int = 0


def parse_hosts(text: str) -> tuple[NewHost, ...]:
    """``n1=10.0.0.11+10.1.0.11,n2=…`` as hosts. Raises ``ValueError`` with a reason to show."""
    hosts = []
    for part in filter(None, re.split(r"[,\s]+", text)):
        name, equals, addresses = part.partition("=")
        if not equals or not name:
            raise ValueError(f"'{part}' is not NAME=ADDRESS")
        hosts.append(NewHost(name, tuple(map(parse_address, addresses.split("+")))))
    check_hosts(hosts)
    return tuple(hosts)


def check_hosts(hosts: Iterable[NewHost]) -> None:
    """Raises ``ValueError`` where the hosts do not have the same number of addresses, 1 to 4."""
    counts = {len(host.addresses) for host in hosts}
    if not counts:
        raise ValueError("a site has at least one host")
    if len(counts) > 1 or not counts <= COLUMNS_OF.keys():
        raise ValueError(
            "give every host its addresses in the same networks, as ADMIN+CLUSTER[+STORAGE[+USERS]]"
        )


def parse_address(text: str) -> Address:
    """A literal address. Raises ``ValueError`` with a reason to show."""
    try:
        return ip_address(text.strip())
    except ValueError as error:
        raise ValueError(f"'{text}' is not an address such as 10.0.0.11") from error


def parse_network(text: str) -> tuple[NetworkKind, Network]:
    """``cluster=10.1.0.0/16`` as a network. Raises ``ValueError`` with a reason to show."""
    kind, _equals, cidr = text.partition("=")
    if kind not in list(NetworkKind):
        raise ValueError(f"'{text}' does not begin with {', '.join(NetworkKind)}")
    try:
        return NetworkKind(kind), ip_network(cidr)
    except ValueError as error:
        raise ValueError(f"'{cidr}' is not a network such as 10.1.0.0/24") from error


def parse_storage(text: str) -> dict[str, str]:
    """The fields of ``storage``. Raises ``ValueError`` with a reason to show."""
    kind, _colon, rest = text.partition(":")
    # An IPv6 server has colons of its own; the export begins with the first slash.
    server, slash, export = rest.partition(":/")
    if text == "local":
        return {"kind": "local"}
    if kind == "nfs" and slash:
        address = str(parse_address(server.strip("[]")))
        return {"kind": "nfs", "server": address, "export": f"/{export}"}
    if kind == "mounted" and rest.startswith("/"):
        return {"kind": "mounted", "path": rest}
    raise ValueError(f"'{text}' is not local, nfs:SERVER:/EXPORT or mounted:/PATH")


def draft(answers: Answers) -> str:
    """The site file. Raises ``ValueError`` for hosts or storage that cannot be written down."""
    check_hosts(answers.hosts)
    unknown = [
        name for name in _named(answers) if name not in {host.name for host in answers.hosts}
    ]
    if unknown:
        raise ValueError(f"there is no host {unknown[0]}")
    blocks = (
        _head(answers), _networks(answers), _domains(answers), _hosts(answers), _gateway(answers),
        _storage(answers), _rest(answers),
    )  # fmt: skip
    return "\n".join("\n".join(block) + "\n" for block in blocks)


def network_of(answers: Answers, kind: NetworkKind) -> Network:
    """The network of a kind that the hosts are in: the one named, or the usual one around them."""
    if kind in answers.networks:
        return answers.networks[kind]
    place = _kinds(answers).index(kind)
    first = answers.hosts[0].addresses[place]
    return ip_network((first, _USUAL_PREFIX[first.version]), strict=False)


def _named(answers: Answers) -> list[str]:
    return [
        name for name in (*answers.tuning, answers.gateway, answers.monitoring) if name is not None
    ]


def _kinds(answers: Answers) -> tuple[NetworkKind, ...]:
    return COLUMNS_OF[len(answers.hosts[0].addresses)]


def _text(value: str) -> str:
    """A scalar as it stands where YAML reads a text there, else quoted."""
    plain = re.fullmatch(r"[A-Za-z/][A-Za-z0-9._/@+-]*", value)
    return value if plain and value not in ("null", "true", "false") else json.dumps(value)


def _head(answers: Answers) -> list[str]:
    return [
        "# A site: hosts, networks, trust domains and policy. docs/sites.md has every field.",
        "# Check it with 'sovctl site check', try it with 'sovctl plan BUNDLE --site'.",
        "schema_version: 1",
        f"name: {_text(answers.name)}",
        "folder: /var/lib/sovctl # where the appliance lies on every host",
    ]


def _networks(answers: Answers) -> list[str]:
    lines = ["networks:"]
    for kind in _kinds(answers):
        lines += [
            f"  - name: {_NETWORK_NAMES[kind]} # {_NETWORK_REMARKS[kind]}",
            f"    kind: {kind}",
            f'    cidr: "{network_of(answers, kind)}"',
        ]
    return lines


def _domains(answers: Answers) -> list[str]:
    lines = ["# A trust domain is one Ray cluster with keys of its own. Ray does not isolate jobs."]
    if not answers.tuning:
        return [
            *lines,
            "trust_domains:",
            "  - name: main",
            "    purpose: shared # serves and tunes; with more hosts, keep these apart",
        ]
    return [
        *lines,
        "trust_domains:",
        "  - name: serving",
        "    purpose: serving",
        "  - name: training",
        "    purpose: tuning # private data is learnt from here, where no user's request comes",
    ]


def _hosts(answers: Answers) -> list[str]:
    serving = [host.name for host in answers.hosts if host.name not in answers.tuning]
    heads = {*serving[:1], *answers.tuning[:1]}
    gateway = answers.gateway or answers.hosts[0].name
    watcher = answers.monitoring or gateway
    lines = ["hosts:"]
    for host in answers.hosts:
        domain = (
            "training" if host.name in answers.tuning else "serving" if answers.tuning else "main"
        )
        roles = ["ray_head"] if host.name in heads else []
        roles += ["ray_worker"]
        roles += ["gateway"] if host.name == gateway else []
        roles += ["monitoring"] if host.name == watcher else []
        lines += [
            f"  - name: {_text(host.name)}",
            f"    roles: [{', '.join(roles)}]",
            f"    domain: {domain}",
            "    interfaces:",
        ]
        for kind, address in zip(_kinds(answers), host.addresses, strict=True):
            lines.append(f'      - {{network: {_NETWORK_NAMES[kind]}, address: "{address}"}}')
        if answers.gpus:
            lines.append(f"    gpus: {{count: {answers.gpus}}} # add model and minimum_driver")
        lines += _ssh(answers)
    return lines


def _ssh(answers: Answers) -> list[str]:
    lines = ["    ssh:", f"      user: {_text(answers.user)}"]
    if answers.key is not None:
        lines.append(f"      key: {_text(answers.key)}")
    return [
        *lines,
        "      # On its console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        "      host_keys: [] # - SHA256:…",
    ]


def _gateway(answers: Answers) -> list[str]:
    kinds = _kinds(answers)
    callers = next(
        kind
        for kind in (NetworkKind.ACCESS, NetworkKind.MANAGEMENT, NetworkKind.CLUSTER)
        if kind in kinds
    )
    names = ", ".join(map(_text, answers.names))
    return [
        "# Where callers come in. An authority that is made at install issues its certificate,",
        "# unless 'certificate: {chain: …, key: …}' names one of the hospital's.",
        "gateway:",
        "  port: 8443",
        f"  networks: [{_NETWORK_NAMES[callers]}]",
        f"  names: [{names}] # such as ai.hospital.example, which your own DNS answers",
    ]


def _storage(answers: Answers) -> list[str]:
    lines = ["# Data sets, checkpoints and adapters: what every host must see.", "storage:"]
    return lines + [f"  {key}: {_text(v)}" for key, v in parse_storage(answers.storage).items()]


def _rest(answers: Answers) -> list[str]:
    servers = ", ".join(f'"{address}"' for address in answers.time_servers)
    return [
        "# The first head asks these; the other hosts follow it. Without any, the clocks drift.",
        f"time_servers: [{servers}]",
        "",
        "# What may leave a host besides what the hosts need of each other: nothing, unless it is",
        "# named here with a reason. Without 'default_route' the default route is taken away.",
        "egress:",
        "  default: reject",
        "  allow: []",
        "  # - name: logs",
        "  #   reason: the hospital's log collector must see what happens here",
        "  #   sources: [gateway]",
        "  #   destination: 10.9.0.5/32",
        "  #   protocol: tcp",
        "  #   port: 6514",
    ]
