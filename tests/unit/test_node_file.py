"""``node.json`` and what a process makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.cluster import environment, node_file, sizing
from appliance.cluster.environment import Place
from appliance.cluster.node_file import DomainNodes, GatewayNode, NodeFile
from appliance.errors import NodeFileInvalid
from appliance.layout import Home
from appliance.manifests.site import Purpose

NODES = ("198.18.1.11", "198.18.1.12")
N1 = NodeFile(
    version=1,
    site="lab",
    host="n1",
    domain="main",
    purpose=Purpose.SHARED,
    head=True,
    worker=True,
    address=NODES[0],
    head_address=NODES[0],
    peers=NODES,
    seal="firewall",
    release="test-1-0123456789ab",
    shared="/srv/shared",
    replicas=2,
    gateway=GatewayNode(8443, ("198.18.0.11",), DomainNodes("main", NODES[0], NODES), None),
)


def test_it_reads_what_it_wrote() -> None:
    assert node_file.parse(node_file.as_bytes(N1)) == N1
    bare = replace(
        N1, domain=None, purpose=None, head=False, worker=False, head_address=None, peers=()
    )
    assert node_file.parse(node_file.as_bytes(bare)) == bare


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"surprise": 1},
        {"head": "yes"},
        {"address": "n1.example"},
        {"address": "::0001"},
        {"purpose": "mining"},
        {"seal": "none"},
        {"peers": []},
        {"head_address": NODES[1]},
        {"domain": None},
        {"gateway": {"port": 8443}},
    ],
)
def test_what_is_not_exactly_one_is_refused(change: dict[str, Any]) -> None:
    content = json.loads(node_file.as_bytes(N1)) | change
    with pytest.raises(NodeFileInvalid):
        node_file.parse(json.dumps(content).encode())


def test_a_process_on_a_site_finds_its_head_and_its_own_authority(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert Place.of_home(home) == Place.embedded()
    worker = replace(N1, host="n2", head=False, address=NODES[1], gateway=None)
    node_file.path(home).write_bytes(node_file.as_bytes(worker))
    place = Place.of_home(home)
    shares = sizing.share_out(sizing.Machine(2, 4 << 30))
    made = environment.inner(home, Path("/r/venv/bin/python"), shares, {}, place)
    assert made["RAY_ADDRESS"] == "198.18.1.11:6379"
    assert made["RAY_TLS_CA_CERT"] == str(home.tls / "ray-ca.pem")
    assert made["SOVCTL_SEAL"] == "firewall"
    assert Place("fd00::2", "fd00::1", "ray-ca.pem", "firewall").gcs == "[fd00::1]:6379"
