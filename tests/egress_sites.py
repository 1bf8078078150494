"""Sites that the tests of the seal use: one host, one hospital, two domains apart, IPv6."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from appliance.manifests.site import Site


def hospital(**changes: Any) -> Site:
    """Two trust domains, a gateway in front, NFS, monitoring, an operator's flow, IPv6 admin."""
    content: dict[str, Any] = {
        "schema_version": 1,
        "name": "clinic",
        "networks": [
            {"name": "admin", "kind": "management", "cidr": "10.0.0.0/24"},
            {"name": "admin6", "kind": "management", "cidr": "fd00:1::/64"},
            {"name": "ray", "kind": "cluster", "cidr": "10.1.0.0/24"},
            {"name": "disk", "kind": "storage", "cidr": "10.2.0.0/24"},
            {"name": "wards", "kind": "access", "cidr": "10.3.0.0/24"},
        ],
        "trust_domains": [
            {"name": "serve", "purpose": "serving"},
            {"name": "tune", "purpose": "tuning"},
        ],
        "hosts": [
            _host(1, ["gateway", "monitoring"], None, access=True),
            _host(2, ["ray_head", "ray_worker"], "serve"),
            _host(3, ["ray_worker"], "serve"),
            _host(4, ["ray_head", "ray_worker"], "tune"),
            _host(5, ["ray_worker"], "tune"),
        ],
        "gateway": {"networks": ["wards"]},
        "storage": {"kind": "nfs", "server": "10.2.0.250", "export": "/export/ai"},
        "time_servers": ["10.0.0.200"],
        "name_servers": ["10.0.0.201", "fd00:1::201"],
        "egress": {
            "allow": [
                {
                    "name": "siem",
                    "reason": "the hospital's log collector\n; flush ruleset",
                    "sources": ["gateway"],
                    "destination": "10.9.0.0/29",
                    "protocol": "tcp",
                    "port": 6514,
                }
            ]
        },
    }
    return Site.model_validate({**content, **changes})


def single() -> Site:
    """One host that is everything, in a cluster network and one where callers are."""
    return Site.model_validate(
        {
            "schema_version": 1,
            "name": "single",
            "networks": [
                {"name": "cluster", "kind": "cluster", "cidr": "10.20.0.0/24"},
                {"name": "users", "kind": "access", "cidr": "10.30.0.0/24"},
            ],
            "trust_domains": [{"name": "main", "purpose": "shared"}],
            "hosts": [
                {
                    "name": "node-1",
                    "roles": ["ray_head", "ray_worker", "gateway"],
                    "domain": "main",
                    "interfaces": [
                        {"network": "cluster", "address": "10.20.0.11"},
                        {"network": "users", "address": "10.30.0.11"},
                    ],
                }
            ],
            "gateway": {"networks": ["users"]},
        }
    )


def _host(
    number: int, roles: list[str], domain: str | None, access: bool = False
) -> dict[str, Any]:
    interfaces = [
        {"network": "admin", "address": f"10.0.0.{number}"},
        {"network": "admin6", "address": f"fd00:1::{number}"},
        {"network": "ray", "address": f"10.1.0.{number}"},
        {"network": "disk", "address": f"10.2.0.{number}"},
    ]
    if access:
        interfaces.append({"network": "wards", "address": f"10.3.0.{number}"})
    return {"name": f"n{number}", "roles": roles, "domain": domain, "interfaces": interfaces}


@st.composite
def sites(draw: st.DrawFn) -> Site:
    """Sites of one to six hosts with any roles and networks that the model allows."""
    count = draw(st.integers(1, 6))
    apart = count > 1 and draw(st.booleans())
    admin = draw(st.sampled_from(["10.0.0.0/24", "fd00:9::/64", None]))
    networks = [{"name": "ray", "kind": "cluster", "cidr": "10.1.0.0/24"}]
    if admin:
        networks.append({"name": "admin", "kind": "management", "cidr": admin})
    watcher = draw(st.integers(0, count))  # 0: no host has that role
    hosts = []
    for number in range(1, count + 1):
        second = apart and number > 1
        head = number == 1 or (apart and number == 2)
        roles = {"ray_worker"} | ({"ray_head"} if head else set())
        roles |= {"gateway"} if number == 1 else set()
        roles |= {"monitoring"} if number == watcher else set()
        interfaces = [{"network": "ray", "address": f"10.1.0.{number}"}]
        if admin:
            interfaces.append(
                {
                    "network": "admin",
                    "address": admin.split("0/")[0] + str(number)
                    if ":" not in admin
                    else f"fd00:9::{number}",
                }
            )
        hosts.append({
            "name": f"h{number}", "roles": sorted(roles), "domain": "b" if second else "a",
            "interfaces": interfaces, "ssh": {"port": draw(st.sampled_from([22, 2222]))},
        })  # fmt: skip
    domains = [{"name": "a", "purpose": "serving" if apart else "shared"}]
    if apart:
        domains.append({"name": "b", "purpose": "tuning"})
    return Site.model_validate({
        "schema_version": 1, "name": "any", "networks": networks, "trust_domains": domains,
        "hosts": hosts, "gateway": {"networks": [draw(st.sampled_from(networks))["name"]]},
        "storage": {"kind": "mounted", "path": "/srv/shared"} if count > 1 else {"kind": "local"},
        "time_servers": draw(st.lists(st.sampled_from(["10.0.0.200", "fd00:9::200"]), unique=True)),
    })  # fmt: skip
