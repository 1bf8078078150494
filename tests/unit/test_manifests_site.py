"""A site file: the example is valid, contradictions are refused."""

from __future__ import annotations

import copy
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from appliance.cli.main import main
from appliance.egress.policy import flow_matrix
from appliance.manifests.document import load, parse
from appliance.manifests.site import Site
from appliance.manifests.site_advice import advise
from appliance.manifests.site_draft import Answers, NewHost, draft

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


EXAMPLES = sorted(EXAMPLE.parent.glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_valid_and_advised_on(path: Path) -> None:
    site = load(Site, path)
    assert flow_matrix(site)
    codes = {each.code for each in advise(site)}
    assert ("shared-domain" in codes) == (len(site.trust_domains) == 1)
    assert all(each.fix for each in advise(site))


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


@given(
    count=st.integers(1, 5),
    names=st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True), max_size=2),
    user=st.from_regex(r"[a-z_][a-z0-9_-]{0,10}", fullmatch=True),
)
def test_a_draft_is_a_valid_site_that_says_what_was_answered(
    count: int, names: list[str], user: str
) -> None:
    hosts = tuple(
        NewHost(f"n{number}", ip_address(f"192.0.2.{number}"), user)
        for number in range(1, count + 1)
    )
    answers = Answers(
        "clinic", hosts, ip_network("192.0.2.0/24"), tuple(names), "/srv/shared", ("192.0.2.9",)
    )
    site = parse(Site, draft(answers).encode(), Path("site.yaml"))
    assert [(host.name, host.ssh.user) for host in site.hosts] == [(h.name, user) for h in hosts]
    assert site.gateway.names == tuple(names)
    assert site.gateway_host.name == "n1"


def test_init_writes_what_check_reads_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOVCTL_HOME", str(tmp_path / "home"))
    out = tmp_path / "site.yaml"
    command = ["site", "init", "--out", str(out), "--host", "a=192.0.2.1", "--host", "b=192.0.2.2"]
    assert main(command) == 0
    assert main(["site", "check", str(out)]) == 0
    before = out.read_bytes()
    assert main(command) == 2
    assert out.read_bytes() == before
    assert main(["site", "init", "--out", str(tmp_path / "x"), "--host", "a=somewhere"]) == 2
    assert not (tmp_path / "home" / "sites").exists()
