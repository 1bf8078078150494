"""What surrounds a site's firewall: names, routes, and what is made of a host's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from egress_sites import hospital

from appliance.egress import live, probe
from appliance.egress.names import hosts_file
from appliance.egress.verdict import judge
from appliance.provision.proof import as_made, gateway_places, results_of

LOOPBACK = "00000000000000000000000000000000 00 0 00 0 0 ffffffff 1 0 00200200 lo"


def test_names_that_software_asks_for_unasked_lead_nowhere() -> None:
    lines = hosts_file(hospital(), hospital().host("n1")).splitlines()
    assert "127.0.0.1 metadata.google.internal" in lines
    assert "127.0.0.1 usage-stats.ray.io" in lines
    assert "10.1.0.4 n4" in lines  # Ray looks itself up by name
    assert "10.2.0.4 n4.disk" in lines
    assert "fd00:1::4 n4.admin6" in lines


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "out"),
    [
        ("eth0 0000010A 00000000 1 0 0 0 00FFFFFF 0 0 0", LOOPBACK, 0),
        ("eth0 00000000 0100010A 3 0 0 0 00000000 0 0 0", LOOPBACK, 1),
        ("eth0 00000000 0100010A 3 0 0 0 00000080 0 0 0", LOOPBACK, 1),  # 0.0.0.0/1
        ("eth0 000000E0 00000000 1 0 0 0 000000F0 0 0 0", LOOPBACK, 0),  # multicast
        ("", f"{'0' * 32} 00 0 00 fe80 400 0 0 3 eth0", 1),
        ("", f"ff{'0' * 30} 08 0 00 0 400 0 0 1 eth0", 0),
        ("", f"2{'0' * 31} 03 0 00 fe80 400 0 0 3 eth0", 1),  # 2000::/3
    ],
)
def test_default_routes_and_their_disguises_are_seen(ipv4: str, ipv6: str, out: int) -> None:
    routes = live.parse_routes(f"heading\n{ipv4}\n", f"{ipv6}\n")
    seen = live.Observation({}, ["lo", "eth0"], routes, 0, False, {})
    assert len(seen.default_routes) == out


def test_behind_a_firewall_a_default_route_needs_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_route = live.Observation({}, ["lo", "eth0"], ["00000000/00000000 via eth0"], 0, False, {})
    monkeypatch.setattr(live, "observe", lambda _pid: with_route)
    monkeypatch.setattr(probe, "ROUTE_REASON", tmp_path / "default-route")
    nowhere = probe.Listener("127.0.0.1", 9)
    monkeypatch.setenv("SOVCTL_SEAL", "firewall")
    assert [r.outcome for r in probe.probe_all(nowhere)] == ["not-sealed"]
    (tmp_path / "default-route").write_text("\n")
    assert [r.outcome for r in probe.probe_all(nowhere)] == ["not-sealed"]
    monkeypatch.setenv("SOVCTL_SEAL", "namespace")
    (tmp_path / "default-route").write_text("the storage is behind a router\n")
    assert [r.outcome for r in probe.probe_all(nowhere)] == ["not-sealed"]


def report(**changes: Any) -> bytes:
    names = ("refused_tcp", "refused_udp", "refused_dns", "refused_icmp", "refused_ipv6")
    attempt = {"probe": "tcp", "target": "192.0.2.1", "outcome": "blocked", "detail": "EPERM"}
    value = {
        "ruleset": "same", "difference": [], "boots": True, "guard": True, "pending": False,
        "default_routes": [], "route_reason": "", "foreign_tables": [], "ipv6": True,
        "before": dict.fromkeys(names, 1), "after": dict.fromkeys(names, 3), "attempts": [attempt],
    }  # fmt: skip
    return json.dumps({**value, **changes}).encode()


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, "closed"),
        ({"ruleset": "differs", "difference": ["+ accept"]}, "open"),
        ({"ruleset": "missing"}, "open"),
        ({"boots": False}, "open"),
        ({"default_routes": ["default via 10.0.0.1"]}, "open"),
        ({"default_routes": ["default via 10.0.0.1"], "route_reason": "the router"}, "closed"),
        ({"after": {}}, "inconclusive"),
        ({"after": None}, "inconclusive"),
        ({"before": [1]}, "inconclusive"),
        ({"ruleset": "unknown"}, "inconclusive"),
        ({"guard": False}, "inconclusive"),
        ({"pending": True}, "inconclusive"),
        ({"attempts": "none"}, "inconclusive"),
        ({"attempts": []}, "inconclusive"),
    ],
)
def test_what_a_hosts_report_proves(changes: dict[str, Any], answer: str) -> None:
    assert judge({"host n1": results_of(report(**changes))}).answer == answer


def test_what_a_hosts_state_says_without_attempts() -> None:
    def answer(**changes: Any) -> str:
        return as_made({"host n1": results_of(report(attempts=[], **changes), attempts=False)})

    assert answer() == "closed"
    assert answer(boots=False) == "open"
    assert answer(guard=False) == "inconclusive"


def test_a_report_that_is_none_proves_nothing() -> None:
    for printed in (b"Welcome to Debian", b"[" * 100_000, b"null", b"7"):
        assert judge({"host n1": results_of(printed)}).answer == "inconclusive"
    assert judge(gateway_places({"places": [None]})).answer == "inconclusive"
    assert judge(gateway_places({"error": "no"})).answer == "inconclusive"
