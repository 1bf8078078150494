"""A site file: the example is valid, contradictions are refused."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from appliance.cli.main import main
from appliance.egress.policy import flow_matrix
from appliance.errors import ManifestInvalid
from appliance.manifests.document import load, parse
from appliance.manifests.site import Site
from appliance.manifests.site_advice import advise
from appliance.manifests.site_draft import Answers, draft, parse_hosts
from tests.egress_sites import sites

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


NFS = {"kind": "nfs", "server": "fd00:1::9", "export": "/export"}


@pytest.mark.parametrize(
    ("path", "value", "field", "said"),
    [
        ("hosts 1 name", "a", "hosts[1].name", "host a is defined twice"),
        ("hosts 1 name", "all", "hosts[1].name", "more than one host to Ansible"),
        ("hosts 1 interfaces 0 address", "10.1.0.1", "hosts[1].interfaces[0].address", "to a and"),
        ("hosts 1 interfaces 0 address", "10.2.0.1", "hosts[1].interfaces[0].address", "not in"),
        ("hosts 1 interfaces 0 address", "10.1.0.255", "hosts[1].interfaces[0].address", "no host"),
        ("hosts 1 interfaces 0 network", "lan", "hosts[1].interfaces[0].network", "not defined"),
        ("hosts 1 interfaces 1", {"network": "ray", "address": "10.1.0.9"},
         "hosts[1].interfaces[1].address", "two addresses"),
        ("hosts 1 domain", "other", "hosts[1].domain", "not defined"),
        ("hosts 1 domain", None, "hosts[1]", "belongs to no trust domain"),
        ("hosts 1 roles", ["ray_worker"], "trust_domains[1]", "needs one ray_head and has 0"),
        ("hosts 0 roles", ["ray_head"], "hosts", "one host has the role gateway, not 0"),
        ("hosts 2 interfaces 0 network", "far", "hosts[2].interfaces", "different cluster"),
        ("hosts 2 ssh", {"port": 6379}, "hosts[2].ssh.port", "uses port 6379 itself"),
        ("hosts 2 gpus", {"model": "L40S"}, "hosts[2].gpus", "says there are none"),
        ("networks 1 cidr", "10.1.0.128/25", "networks[1].cidr", "overlap"),
        ("networks 1 cidr", "::/0", "networks[1].cidr", "not a network of hosts"),
        ("gateway networks", ["lan"], "gateway.networks[0]", "not defined"),
        ("gateway port", 9443, "gateway.port", "uses port 9443 for something else"),
        ("trust_domains 1 purpose", "serving", "trust_domains[1].purpose", "only one serves"),
        ("storage", {"kind": "local"}, "storage", "must be nfs or mounted"),
        ("storage", NFS | {"server": "10.9.0.9"}, "storage.server", "in none of the site's"),
        ("storage", {"kind": "mounted", "path": "/var/lib/sovctl/runs"}, "storage.path", "within"),
        ("folder", "/home/sovctl", "folder", "services do not see it"),
        ("folder", "/data/../etc", "folder", "systemd"),
    ],
)  # fmt: skip
def test_a_contradiction_names_its_field_and_what_to_type(
    path: str, value: Any, field: str, said: str
) -> None:
    content = two_domains()
    content["networks"].append({"name": "far", "kind": "cluster", "cidr": "10.7.0.0/24"})
    content["hosts"][2]["interfaces"][0]["address"] = "10.7.0.3" if value == "far" else "10.1.0.3"
    *steps, last = (int(step) if step.isdigit() else step for step in path.split())
    place: Any = content
    for step in steps:
        place = place[step]
    place[last] = value
    with pytest.raises(ManifestInvalid) as caught:
        parse(Site, yaml.safe_dump(content).encode(), Path("site.yaml"))
    assert caught.value.values["field"] == field
    assert said in caught.value.values["reason"]
    assert "schema" not in caught.value.values["expected"]


def test_storage_and_relay_must_be_reachable_where_no_route_is_left() -> None:
    content = two_domains()
    content["storage"] = NFS
    assert Site.model_validate(content)
    del content["hosts"][2]["interfaces"][1]
    with pytest.raises(ValidationError, match="c cannot reach it: not in network admin"):
        Site.model_validate(content)
    content["egress"] = {"default_route": {"reason": "files are beyond a router"}}
    assert Site.model_validate(content)

    content = two_domains()
    content["hosts"][0] |= {"roles": ["ray_head"]}
    content["hosts"].append(_host("gate", ["gateway"], "", 9) | {"domain": None})
    assert Site.model_validate(content)
    del content["hosts"][3]["interfaces"][0]
    with pytest.raises(ValidationError, match="gate is the gateway and cannot reach"):
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
    count=st.integers(1, 6), columns=st.integers(1, 4), tuning=st.integers(0, 3),
    names=st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True), max_size=2),
    user=st.from_regex(r"[a-z_][a-z0-9_-]{0,10}", fullmatch=True),
    key=st.none() | st.text("abc '\"#:{}\\é", min_size=1).map("/home/{}".format),
    six=st.booleans(),
)  # fmt: skip
def test_a_draft_is_a_valid_site_that_says_what_was_answered(
    count: int, columns: int, tuning: int, names: list[str], user: str, key: str | None, six: bool
) -> None:
    place = "fd00:{}::{}" if six else "10.9.{}.{}"
    hosts = parse_hosts(",".join(
        f"n{i}=" + "+".join(place.format(column, i) for column in range(columns))
        for i in range(1, count + 1)
    ))  # fmt: skip
    apart = tuple(f"n{i}" for i in range(1, count + 1))[-tuning:] if 0 < tuning < count else ()
    server = ip_address(place.format(0, 99))
    answers = Answers(
        "clinic", hosts, names=tuple(names), user=user, key=key, tuning=apart,
        storage=f"nfs:{server}:/export", time_servers=(server,), gpus=tuning,
    )  # fmt: skip
    site = parse(Site, draft(answers).encode(), Path("site.yaml"))
    assert [tuple(i.address for i in h.interfaces) for h in site.hosts] == [
        h.addresses for h in hosts
    ]
    assert {(h.ssh.user, h.ssh.key, h.gpus.count) for h in site.hosts} == {(user, key, tuning)}
    assert site.gateway.names == tuple(names)
    assert site.gateway_host.name == "n1"
    assert site.tuning_domain is not None
    if apart:
        assert {h.name for h in site.domain_hosts(site.tuning_domain.name)} == set(apart)
    assert site.time_servers == (server,)


@pytest.mark.parametrize(
    "typed",
    [
        [], ["--host", "a"], ["--host", "a=somewhere"],
        ["--host", "a=10.0.0.1,b=10.0.0.2+10.1.0.2"],
        ["--host", "a=10.0.0.1", "--gateway", "b"], ["--host", "a=10.0.0.1,a=10.0.0.2"],
        ["--host", "a=10.0.0.1", "--storage", "tape"], ["--host", "A=10.0.0.1"],
        ["--host", "a=10.0.0.1", "--network", "lan=10.0.0.0/8"],
        ["--host", "a=10.0.0.1", "--network", "cluster=10.1.0.0/24"],
    ],
)  # fmt: skip
def test_answers_that_contradict_each_other_write_nothing(tmp_path: Path, typed: list[str]) -> None:
    out = tmp_path / "site.yaml"
    assert main(["site", "init", "--out", str(out), *typed]) == 2
    assert not out.exists()


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


@given(sites())
def test_every_site_can_be_written_down_and_read_back(site: Site) -> None:
    text = yaml.safe_dump(json.loads(site.model_dump_json()))
    assert parse(Site, text.encode(), Path("site.yaml")) == site
    remarks = advise(site)
    assert len({(each.code, each.subject) for each in remarks}) == len(remarks)
    for host in site.hosts:
        assert site.management_address(host) in {each.address for each in host.interfaces}
    for domain in site.trust_domains:
        assert site.domain_hosts(domain.name)[0] is site.head(domain.name)


def test_advice_is_on_what_could_leave_and_on_who_stands_together() -> None:
    content = two_domains()
    flow = {"reason": "because somebody asked", "sources": ["gateway"], "protocol": "tcp"}
    content["egress"] = {"allow": [
        flow | {"name": "logs", "destination": "10.0.0.0/8", "port": 6514},
        flow | {"name": "out", "destination": "1.1.1.1/32", "port": 443},
    ]}  # fmt: skip
    content["name_servers"] = ["fd00:1::53"]
    content["hosts"][2]["ssh"] = content["hosts"][1]["ssh"] = {"host_keys": [f"SHA256:{'a' * 43}"]}
    found = {each.code: each for each in advise(Site.model_validate(content))}
    assert found.keys() == {
        "broad-flow", "public-flow", "name-servers", "beyond-a-router", "no-worker",
        "gateway-on-ray-host", "gateway-without-name", "host-keys-not-pinned", "host-key-shared",
        "no-time-servers", "no-monitoring",
    }  # fmt: skip
    assert "1.1.1.1" in found["beyond-a-router"].what
    assert "b, c" in found["host-key-shared"].what
    content["egress"]["default_route"] = {"reason": "files are beyond a router"}
    codes = {each.code for each in advise(Site.model_validate(content))}
    assert "default-route" in codes and "beyond-a-router" not in codes
