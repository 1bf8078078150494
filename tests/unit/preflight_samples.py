"""A site of three hosts and the facts of a host that is fit for it."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from appliance.manifests.site import Site
from appliance.provision.checks import judge
from appliance.provision.facts import (
    Connection,
    Cpu,
    DiskWrite,
    Folder,
    Gpu,
    HostFacts,
    Interface,
    Memory,
    Route,
    System,
    Systemd,
)
from appliance.provision.finding import HostFinding
from appliance.provision.host_facts import MARK
from appliance.provision.needs import BundleNeeds, host_needs
from appliance.provision.subject import Meeting, Subject

MET = Meeting(skew_ms=3, doubt_ms=5, client=ip_address("198.18.0.2"))
FLAGS = frozenset({"avx2", "sse4_2", "ssse3", "popcnt", "cx16"})


def site_tree(**changes: Any) -> dict[str, Any]:
    def host(name: str, roles: list[str], number: int) -> dict[str, Any]:
        return {
            "name": name,
            "roles": roles,
            "domain": "main",
            "interfaces": [
                {"network": "admin", "address": f"198.18.0.{number}"},
                {"network": "ray", "address": f"198.18.1.{number}"},
            ],
        }

    return {
        "schema_version": 1,
        "name": "clinic",
        "networks": [
            {"name": "admin", "kind": "management", "cidr": "198.18.0.0/24"},
            {"name": "ray", "kind": "cluster", "cidr": "198.18.1.0/24"},
        ],
        "trust_domains": [{"name": "main", "purpose": "shared"}],
        "hosts": [
            host("n1", ["ray_head", "ray_worker", "gateway", "monitoring"], 11),
            host("n2", ["ray_worker"], 12),
            host("n3", ["ray_worker"], 13),
        ],
        "gateway": {"networks": ["admin"]},
        "storage": {"kind": "mounted", "path": "/srv/shared"},
        **changes,
    }


def site(**changes: Any) -> Site:
    return Site.model_validate(site_tree(**changes))


def folder(asked: str, **changes: Any) -> Folder:
    values: dict[str, Any] = {
        "asked": asked, "exists": True, "mount": "/", "type": "ext4", "source": "/dev/vda1",
        "options": frozenset({"rw", "relatime"}), "device": 1, "free": 100 << 30, "block": 4096,
        "inodes": 1_000_000, **changes,
    }  # fmt: skip
    return Folder(**values)


SHARED = folder("/srv/shared", mount="/srv/shared", type="nfs4", source="nas:/x", device=9)


def fit() -> HostFacts:
    """A host n1 that passes every check."""
    return HostFacts(
        uid=0,
        user="root",
        hostname="n1",
        machine_id="a" * 32,
        system=System("debian", "12", "Debian GNU/Linux 12", "6.1.0-26-amd64", "x86_64"),
        cpu=Cpu(16, "EPYC", FLAGS),
        memory=Memory(total=64 << 30, swap=0),
        systemd=Systemd("systemd", 252, "running"),
        services={"chrony": "active"},
        packages={},
        pythons=frozenset({"3.11"}),
        interfaces=(
            Interface("eth0", "up", 1500, 10_000, (ip_interface("198.18.0.11/24"),)),
            Interface("eth1", "up", 1500, 25_000, (ip_interface("198.18.1.11/24"),)),
        ),
        routes=(
            Route(ip_network("0.0.0.0/0"), ip_address("198.18.0.1"), "eth0"),
            Route(ip_network("198.18.0.0/24"), None, "eth0"),
        ),
        listeners=(),
        firewall=(),
        connections=tuple(
            Connection(f"peer n{n}", ip_address(f"198.18.1.{10 + n}"), 22, "open", 1448)
            for n in (2, 3)
        ),
        own_name_found=True,
        own_name_ms=1,
        folders=(
            folder("/var/lib/sovctl"),
            folder("/"),
            folder("/tmp"),
            folder("/var/tmp"),
            folder("/dev/shm", mount="/dev/shm", device=7, free=30 << 30),
            SHARED,
        ),
        disk=DiskWrite(32 << 20, 50),
        gpu=Gpu(),
    )


def with_folder(changed: Folder) -> HostFacts:
    facts = fit()
    others = tuple(each for each in facts.folders if each.asked != changed.asked)
    return replace(facts, folders=(*others, changed))


def judged(
    facts: HostFacts,
    of: Site | None = None,
    bundle: BundleNeeds | None = None,
    meeting: Meeting = MET,
    sealed: frozenset[str] = frozenset(),
) -> tuple[HostFinding, ...]:
    """What the checks say of host n1."""
    here = of or site()
    host = here.host("n1")
    wanted = host_needs(here, host, bundle)
    return judge(Subject(here, host, wanted, facts, meeting, sealed=sealed))


def answer(facts: object) -> bytes:
    """What the probe would print."""
    return f"Welcome!\n{MARK}{json.dumps(facts)}\n".encode()
