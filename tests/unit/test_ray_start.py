"""Ray's command line on a site's hosts: no port is left to chance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from appliance.cluster import ray_start, sizing
from appliance.manifests import site_ports
from appliance.manifests.site import Purpose
from tests.unit.test_node_file import N1, NODES

SHARES = sizing.share_out(sizing.Machine(8, 64 << 30))


def options(node: object, shares: sizing.Shares = SHARES) -> dict[str, str]:
    argv = ray_start.argv(Path("/r/venv/bin/python"), node, shares, Path("/spill"))  # type: ignore[arg-type]
    named = [each[2:].partition("=") for each in argv[4:]]
    assert len({name for name, _equals, _value in named}) == len(named)
    return {name: value for name, _equals, value in named}


def test_every_port_is_the_firewalls() -> None:
    head, worker = options(N1), options(replace(N1, head=False, address=NODES[1], host="n2"))
    for made in (head, worker):
        given = {int(value) for name, value in made.items() if name.endswith("port")}
        assert {6380, 6381, 6382, 6383, 6384, 6385} <= given
        assert (made["min-worker-port"], made["max-worker-port"]) == ("10002", "10999")
    assert head["dashboard-host"] == "127.0.0.1"
    assert int(head["port"]) == site_ports.GCS
    assert worker["address"] == f"{NODES[0]}:{site_ports.GCS}"
    assert worker["node-ip-address"] == NODES[1]
    assert not {"head", "port", "dashboard-host"} & worker.keys()


def test_a_head_that_is_no_worker_schedules_nothing() -> None:
    only_head = options(replace(N1, worker=False))
    assert (only_head["num-cpus"], only_head["num-gpus"]) == ("0", "0")
    assert json.loads(only_head["resources"]) == {"host:n1": 1.0}
    assert options(N1)["num-cpus"] == "8"


def test_models_are_served_only_where_a_domain_serves() -> None:
    assert json.loads(options(N1)["resources"]) == {"host:n1": 1.0, "model_server": 1.0}
    tuning = replace(N1, purpose=Purpose.TUNING)
    assert json.loads(options(tuning)["resources"]) == {"host:n1": 1.0}
