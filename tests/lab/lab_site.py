"""The site file of a lab: what an operator would write for these hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml

from tests.lab.lab import SHARED, Host, Lab


def site_of(
    lab: Lab, *, domains: Literal["shared", "apart"] = "shared", user: str = "root"
) -> dict[str, Any]:
    """All hosts in one trust domain, or the first half serving and the rest tuning.

    The first host is a head, the gateway and where Prometheus runs.
    """
    half = len(lab.hosts) if domains == "shared" else (len(lab.hosts) + 1) // 2
    serving, tuning = lab.hosts[:half], lab.hosts[half:]
    purpose = "shared" if domains == "shared" else "serving"
    trust = [{"name": "main", "purpose": purpose}]
    if tuning:
        trust.append({"name": "training", "purpose": "tuning"})
    hosts = [_host(lab, host, "main", host is serving[0], user) for host in serving]
    hosts += [_host(lab, host, "training", host is tuning[0], user) for host in tuning]
    hosts[0]["roles"] += ["gateway", "monitoring"]
    return {
        "schema_version": 1,
        "name": "lab",
        "networks": [
            {"name": "admin", "kind": "management", "cidr": "198.18.0.0/24"},
            {"name": "ray", "kind": "cluster", "cidr": "198.18.1.0/24"},
            {"name": "files", "kind": "storage", "cidr": "198.18.2.0/24"},
        ],
        "trust_domains": trust,
        "hosts": hosts,
        "gateway": {"networks": ["admin"], "names": ["ai.lab.example"]},
        "storage": {"kind": "mounted", "path": SHARED},
    }


def write_site(lab: Lab, folder: Path, content: dict[str, Any] | None = None) -> Path:
    """``site.yaml`` in a folder: of :func:`site_of`, or of the content given."""
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content or site_of(lab), sort_keys=False))
    return path


def _host(lab: Lab, host: Host, domain: str, head: bool, user: str) -> dict[str, Any]:
    return {
        "name": host.name,
        "roles": ["ray_head", "ray_worker"] if head else ["ray_worker"],
        "domain": domain,
        "interfaces": [
            {"network": "admin", "address": host.admin},
            {"network": "ray", "address": host.cluster},
            {"network": "files", "address": host.storage},
        ],
        "ssh": {"user": user, "key": str(lab.key), "host_keys": [host.fingerprint]},
    }
