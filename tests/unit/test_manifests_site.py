"""A site file: the example is valid, contradictions are refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from appliance.manifests.document import load
from appliance.manifests.site import Site

EXAMPLE = Path(__file__).parents[2] / "manifests" / "single.yaml"


def two_domains() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": "clinic",
        "networks": [
            {"name": "ray", "kind": "cluster", "cidr": "10.1.0.0/24"},
            {"name": "admin", "kind": "management", "cidr": "fd00:1::/64"},
        ],
        "trust_domains": [
            {"name": "serve", "purpose": "serving"},
            {"name": "tune", "purpose": "tuning"},
        ],
        "hosts": [
            _host("a", ["ray_head", "gateway"], "serve", 1),
            _host("b", ["ray_head", "ray_worker"], "tune", 2),
            _host("c", ["ray_worker"], "tune", 3),
        ],
        "gateway": {"networks": ["admin"]},
        "storage": {"kind": "mounted", "path": "/srv/shared"},
    }


def _host(name: str, roles: list[str], domain: str, number: int) -> dict[str, Any]:
    return {
        "name": name,
        "roles": roles,
        "domain": domain,
        "interfaces": [
            {"network": "ray", "address": f"10.1.0.{number}"},
            {"network": "admin", "address": f"fd00:1::{number}"},
        ],
    }


def test_the_example_is_valid() -> None:
    site = load(Site, EXAMPLE)
    assert site.head("main").name == "node-1"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("hosts", 1, "name"), "a", "host a is defined twice"),
        (("hosts", 1, "interfaces", 0, "address"), "10.1.0.1", "given to a and to b"),
        (("hosts", 1, "interfaces", 0, "address"), "10.2.0.1", "is not in ray"),
        (("hosts", 1, "interfaces", 0, "address"), 167837697, "text"),
        (("hosts", 1, "domain"), "other", "not defined"),
        (("hosts", 1, "domain"), None, "belongs to no trust domain"),
        (("hosts", 1, "roles"), ["ray_worker"], "needs one ray_head and has 0"),
        (("hosts", 0, "roles"), ["ray_head"], "one host has the role gateway, not 0"),
        (("networks", 1, "cidr"), "10.1.0.128/25", "overlap"),
        (("gateway", "networks"), ["lan"], "not defined"),
        (("egress",), {"default": "accept"}, "reject"),
    ],
)
def test_a_contradiction_is_refused(path: tuple[Any, ...], value: Any, said: str) -> None:
    content = copy.deepcopy(two_domains())
    place: Any = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError, match=said):
        Site.model_validate(content)


def test_a_flow_to_everywhere_is_no_policy() -> None:
    content = two_domains()
    flow = {
        "name": "out", "reason": "because somebody asked", "sources": ["gateway"],
        "destination": "0.0.0.0/0", "protocol": "tcp", "port": 443,
    }  # fmt: skip
    content["egress"] = {"allow": [flow]}
    with pytest.raises(ValidationError, match="flow to everywhere"):
        Site.model_validate(content)
