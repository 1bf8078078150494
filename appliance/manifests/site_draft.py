"""A first ``site.yaml`` from a few answers: text with comments, valid as it is. Pure.

    answers = Answers("hospital", hosts=(NewHost("node-1", ip_address("10.20.0.11")),), …)
    text = draft(answers)

The result is parsed by :mod:`appliance.manifests.document` before it is written, so a draft that
breaks a rule of the model is the operator's answer contradicting itself, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import yaml


@dataclass(frozen=True, slots=True)
class NewHost:
    """A machine: its name and where it is reached. ``user`` logs in over SSH; ``gpus`` it has."""

    name: str
    address: IPv4Address | IPv6Address
    user: str = "root"
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """What ``sovctl site init`` asks. One network carries everything; more are added by hand.

    ``shared`` is the folder that every host mounts; needed with more than one host.
    """

    name: str
    hosts: tuple[NewHost, ...]
    network: IPv4Network | IPv6Network
    names: tuple[str, ...] = ()
    shared: str | None = None
    time_servers: tuple[str, ...] = ()
    key: str | None = None


def smallest_network(addresses: tuple[IPv4Address | IPv6Address, ...]) -> str:
    """The /24 (IPv6: /64) of the first address: what most racks use."""
    first = addresses[0]
    return str(ip_network(f"{first}/{24 if first.version == 4 else 64}", strict=False))


def draft(answers: Answers) -> str:
    """The file's text."""
    head, *workers = answers.hosts
    lines = [
        "# A site: hosts, networks, trust domains and policy. docs/sites.md has every field.",
        "# Check it with 'sovctl site check', try it with 'sovctl plan BUNDLE --site'.",
        "schema_version: 1",
        f"name: {_scalar(answers.name)}",
        "",
        "networks:",
        "  # One network for all is the least; one each for management and storage is better.",
        "  - name: cluster",
        "    kind: cluster",
        f"    cidr: {answers.network}",
        "",
        "trust_domains:",
        "  # 'shared' serves and tunes on the same hosts; larger sites keep these apart.",
        "  - name: main",
        "    purpose: shared",
        "",
        "hosts:",
        *_host(answers, head, "[ray_head, ray_worker, gateway, monitoring]"),
    ]
    for worker in workers:
        lines += _host(answers, worker, "[ray_worker]")
    lines += [
        "",
        "gateway:",
        "  port: 8443",
        "  networks: [cluster] # where callers come from",
        f"  names: [{', '.join(map(_scalar, answers.names))}]",
        "",
    ]
    if answers.shared is not None:
        lines += [
            "storage:",
            "  kind: mounted # data sets, checkpoints and adapters; the same folder on every host",
            f"  path: {_scalar(answers.shared)}",
            "",
        ]
    lines += [
        "egress:",
        "  default: reject # nothing may leave but what the hosts need of each other",
        "  allow: []",
        "",
        f"time_servers: [{', '.join(map(_scalar, answers.time_servers))}]",
        "",
    ]
    return "\n".join(lines)


def _host(answers: Answers, host: NewHost, roles: str) -> list[str]:
    lines = [
        f"  - name: {_scalar(host.name)}",
        f"    roles: {roles}",
        "    domain: main",
        "    interfaces:",
        "      - network: cluster",
        f"        address: {_scalar(str(host.address))}",
    ]
    if host.gpus:
        lines += ["    gpus:", f"      count: {host.gpus}"]
    lines += [
        "    ssh:",
        f"      user: {_scalar(host.user)}",
    ]
    if answers.key:
        lines.append(f"      key: {_scalar(answers.key)}")
    lines += [
        "      # on its console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        "      host_keys: []",
    ]
    return lines


def _scalar(text: str) -> str:
    """A text as YAML reads it back, quoted where it has to be."""
    return yaml.safe_dump(text, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
