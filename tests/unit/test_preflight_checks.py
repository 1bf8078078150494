"""Preflight's judgement: each check passes a fit host and says what is wrong with an unfit one."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preflight_samples import (
    FLAGS,
    SHARED,
    answer,
    fit,
    folder,
    judged,
    site,
    site_tree,
    with_folder,
)  # fmt: skip

from appliance.errors import SudoRefused
from appliance.manifests.bundle import Platform
from appliance.manifests.environment import RuntimeEnvironment
from appliance.provision.checks import CHECKS
from appliance.provision.checks_between import between
from appliance.provision.checks_page import page
from appliance.provision.checks_storage import rooms_of
from appliance.provision.facts import (
    Card,
    Connection,
    Cpu,
    DiskWrite,
    Gpu,
    HostFacts,
    Installed,
    Interface,
    Listener,
    Memory,
    Process,
    Route,
    Security,
    System,
    Systemd,
)  # fmt: skip
from appliance.provision.facts_reader import FactsUnreadable, read_facts
from appliance.provision.host_facts import FACTS, MARK
from appliance.provision.needs import BundleNeeds
from appliance.provision.subject import Meeting

CPU = RuntimeEnvironment("", Platform(python="3.11", system="linux", machine="x86_64"), "cpu")
CUDA = RuntimeEnvironment("gpu", CPU.platform, "cuda")
GIB = 1 << 30


def bundle(**changes: Any) -> BundleNeeds:
    values: dict[str, Any] = {
        "release": "demo-1-abc", "blobs": (("ab" * 32, 10), ("cd" * 32, 5000)),
        "environments": (CPU,), "runtime": 0, "packages": 0, "model": 0, "cuda": None,
        "driver": None, **changes,
    }  # fmt: skip
    return BundleNeeds(**values)


def test_a_fit_host_passes_every_check() -> None:
    findings = judged(fit(), bundle=bundle())
    assert [f for f in findings if f.level != "pass"] == []
    alone = {check.name for check in CHECKS if check.judge is not None}
    assert {finding.check for finding in findings} == alone


H = HostFacts
GPUS = {"gpus": {"count": 2, "model": "H100", "minimum_driver": "570.86"}}
H100 = Card("NVIDIA H100 80GB HBM3", 80 * GIB, "9.0")


def port(number: int, process: str = "nginx", unit: str = "nginx.service", **more: Any) -> H:
    at = ip_address(more.pop("address", "0.0.0.0"))
    protocol = more.pop("protocol", "tcp")
    return replace(
        fit(), listeners=(Listener(protocol, at, number, process, unit=unit, **more),)
    )  # fmt: skip


WRONG: list[tuple[str, str, HostFacts, str]] = [
    ("sudo", "fail", replace(fit(), uid=1000), "sudo"),
    ("system", "fail", replace(fit(), system=System("fedora", "40", machine="x86_64")), "Debian"),
    ("system", "fail", replace(fit(), system=System("debian", "12", machine="riscv64")), "bundle"),
    ("kernel", "fail", replace(fit(), system=System(kernel="4.19.0-26-amd64")), "5.10"),
    ("kernel", "warn", replace(fit(), system=System()), "uname"),
    ("systemd", "fail", replace(fit(), systemd=Systemd("init")), "systemd"),
    ("systemd", "warn", replace(fit(), systemd=Systemd("systemd", 252, "degraded", ("x",))), "x"),
    ("cpu", "fail", replace(fit(), cpu=Cpu(8, "old", FLAGS - {"avx2"})), "avx2"),
    ("cpu", "warn", replace(fit(), cpu=Cpu(1, "small", FLAGS)), "2 cores"),
    ("memory", "fail", replace(fit(), memory=Memory(total=2 * GIB)), "3 GiB"),
    ("memory", "fail", replace(fit(), memory=Memory(total=64 * GIB, limit=GIB)), "1.0 GiB"),
    ("memory", "warn", replace(fit(), memory=Memory(total=4 * GIB)), "6 GiB"),
    ("memory", "warn", replace(fit(), memory=Memory(total=64 * GIB, swap=GIB)), "swapoff"),
    ("addresses", "fail", replace(fit(), interfaces=(
        Interface("eth0", "up", 1500, 10_000, (ip_interface("198.18.0.11/24"),)),
        Interface("eth1", "up", 1500, 10_000, (ip_interface("198.18.1.99/24"),)))), "198.18.1.11"),
    ("addresses", "fail", replace(fit(), interfaces=(
        Interface("eth0", "up", 1500, 10_000, (ip_interface("198.18.0.11/24"),)),
        Interface("eth1", "down", 1500, None, (ip_interface("198.18.1.11/24"),)))), "cable"),
    ("addresses", "warn", replace(fit(), interfaces=None), "iproute2"),
    ("speed", "warn", replace(fit(), interfaces=(
        Interface("eth1", "up", 1500, 1000, (ip_interface("198.18.1.11/24"),)),)), "1000 Mbit/s"),
    ("mtu", "fail", replace(fit(), interfaces=(
        Interface("eth1", "up", 9000, 10_000, (ip_interface("198.18.1.11/24"),)),)),
     "'ip link set eth1 mtu 1500'"),
    ("mtu", "warn", replace(fit(), connections=(
        Connection("peer n2", ip_address("198.18.1.12"), 22, "open", 1348),)), "1348"),
    ("routes", "fail", replace(fit(), routes=(
        Route(ip_network("0.0.0.0/0"), ip_address("198.18.0.1"), "eth0"),)), "default_route"),
    ("peers", "fail", replace(fit(), connections=(
        Connection("peer n2", ip_address("198.18.1.12"), 22, "open", 1448),
        Connection("peer n3", ip_address("198.18.1.13"), 22, "timeout"))), "n3 (timeout)"),
    ("ports", "fail", port(6379, "redis-server", "redis.service"), "redis.service"),
    ("ports", "fail", port(123, "ntpd", "ntp.service", protocol="udp"), "ntp.service"),
    ("ports", "fail", port(8443, address="198.18.0.11"), "the gateway"),
    ("ports", "warn", port(10500, "java", ""), "Ray's workers"),
    ("names", "warn", replace(fit(), own_name_ms=5000), "/etc/hosts"),
    ("space", "fail", with_folder(folder("/var/lib/sovctl", free=8191)), "Free"),
    ("space", "fail", with_folder(folder("/var/lib/sovctl", inodes=3)), "inodes"),
    ("disk-speed", "warn", replace(fit(), disk=DiskWrite(1 << 20, 1000)), "1 MB/s"),
    ("disk-speed", "warn", replace(fit(), disk=None), "df"),
    ("mounts", "fail", with_folder(folder("/var/lib/sovctl", options=frozenset({"noexec"}))),
     "remount"),
    ("mounts", "warn", with_folder(folder("/tmp", options=frozenset({"noexec"}))), "/tmp"),
    ("mounts", "warn", with_folder(folder("/dev/shm", free=64 << 20)), "size=30%"),
    ("storage", "fail", with_folder(replace(SHARED, mount="/", device=1)), "own disk"),
    ("storage", "fail", with_folder(replace(SHARED, exists=False)), "mount /srv/shared"),
    ("storage", "fail", with_folder(replace(SHARED, options=frozenset({"ro"}))), "remount,rw"),
    ("software", "fail", replace(fit(), services={"ufw": "active"}), "disable --now ufw"),
    ("software", "warn", replace(fit(), services={"docker": "active"}), "docker"),
    ("software", "fail", replace(fit(), processes=(Process("raylet", "/opt/ray/x"),)), "ray stop"),
    ("software", "warn", replace(fit(), firewall=("ip nat",)), "ip nat"),
    ("security", "fail", replace(fit(), security=Security("enforcing")), "setenforce 0"),
    ("python", "fail", replace(fit(), pythons=frozenset({"3.13"})), "python3.11"),
    ("runtime", "fail", replace(fit(), pythons=frozenset({"3.13"})), "none of the bundle's"),
    ("installed", "fail", replace(fit(), installed=Installed("other", "n1", "r")), "other"),
    ("installed", "fail", replace(fit(), installed=Installed("clinic", "n2", "r")), "swapped"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "level", "facts", "said"), WRONG)
def test_what_is_wrong_is_found_with_a_remedy(
    check: str, level: str, facts: HostFacts, said: str
) -> None:
    found = [f for f in judged(facts, bundle=bundle()) if (f.check, f.level) == (check, level)]
    assert found, check
    assert any(said in f"{each.text} {each.remedy}" for each in found)
    assert all(each.remedy for each in found)


@pytest.mark.parametrize(
    ("skew", "doubt", "level"),
    [(0, 5, "pass"), (-1900, 5, "pass"), (2100, 50, "warn"), (-59_000, 5, "warn"),
     (61_000, 500, "fail"), (-7_200_000, 100, "fail"), (2100, 200, "pass")],
)  # fmt: skip
def test_a_clock_is_judged_by_what_the_round_trip_leaves_certain(
    skew: int, doubt: int, level: str
) -> None:
    findings = judged(fit(), meeting=Meeting(skew, doubt, ip_address("198.18.0.2")))
    assert {f.level for f in findings if f.check == "clock"} == {level}


def test_an_operator_from_outside_would_be_locked_out() -> None:
    findings = judged(fit(), meeting=Meeting(0, 5, ip_address("10.9.9.9")))
    assert {"operator", "routes"} <= {f.check for f in findings if f.level == "fail"}


def test_why_sudo_was_refused_is_told() -> None:
    refused = SudoRefused(host="n1", user="ops", reason="A password is required.")
    found = [f for f in judged(fit(), meeting=Meeting(sudo=refused)) if f.check == "sudo"]
    assert found[0].level == "fail" and "password" in found[0].text


def test_our_own_programs_may_have_their_ports() -> None:
    ours = (
        port(6379, "gcs_server", "sovctl-ray.service"),
        port(9100, "prometheus-node", "prometheus-node-exporter.service"),
        port(8443, "python", "", program="/var/lib/sovctl/releases/x/venv/bin/python"),
        port(8265, "nginx", address="198.18.1.11"),  # we take 127.0.0.1 only
        port(123, "chronyd", "chrony.service", protocol="udp"),
    )
    for facts in ours:
        assert {f.level for f in judged(facts) if f.check == "ports"} == {"pass"}


def test_a_sealed_site_is_not_blamed_for_its_seal() -> None:
    refused = tuple(replace(c, outcome="forbidden") for c in fit().connections or ())
    facts = replace(fit(), connections=refused, services={"sovctl-egress": "active"})
    assert {f.level for f in judged(facts) if f.check == "peers"} == {"pass"}


def test_a_seal_that_was_not_confirmed_yet_is_a_seal() -> None:
    refused = tuple(replace(c, outcome="unreachable") for c in fit().connections or ())
    facts = replace(fit(), connections=refused, firewall=("inet sovctl",))
    assert {f.level for f in judged(facts) if f.check == "peers"} == {"pass"}


def test_a_host_that_is_not_sealed_may_be_refused_by_one_that_is() -> None:
    """A run was cut off between one host and the next, or this host is new."""
    refused = tuple(replace(c, outcome="unreachable") for c in fit().connections or ())
    facts = replace(fit(), connections=refused)
    peers = frozenset(host.name for host in site().hosts) - {"n1"}
    assert {f.level for f in judged(facts) if f.check == "peers"} == {"fail"}
    assert {f.level for f in judged(facts, sealed=peers) if f.check == "peers"} == {"pass"}


def test_space_is_counted_to_the_byte_and_without_what_is_there() -> None:
    facts = with_folder(folder("/var/lib/sovctl", device=2, mount="/data"))
    wanted = bundle()
    needed = {str(r.system.mount): r.needed for r in rooms_of(wanted, facts, "/var/lib/sovctl")}
    reserve = 256 << 20
    assert needed == {"/data": 4096 + 8192 + 5 * 4096 + reserve, "/": 0}
    exact = with_folder(
        folder("/var/lib/sovctl", device=2, mount="/data", free=needed["/data"])
    )  # fmt: skip
    assert {f.level for f in judged(exact, bundle=wanted) if f.check == "space"} == {"pass"}
    there = replace(facts, installed=Installed(blobs=frozenset({"cd" * 8})))
    left = rooms_of(wanted, there, "/var/lib/sovctl") or ()
    assert left[0].needed == 4096 + 4 * 4096 + reserve


@pytest.mark.parametrize(
    ("gpu", "changes", "level", "said"),
    [
        (Gpu(2, 0, (H100, H100), "570.86.15", "12.8"), {}, "pass", ""),
        (Gpu(2, 0, (H100, H100), "570.86.15", "12.4"), {}, "warn", "12.4"),
        (Gpu(1, 0, (H100,), "570.86.15", "12.8"), {}, "fail", "expects 2"),
        (Gpu(2, 0, (H100,), "570.86.15", "12.8"), {}, "fail", "sees 1 of 2"),
        (Gpu(2, 0, (Card("NVIDIA L40S"),) * 2, "570.86.15", "12.8"), {}, "fail", "L40S"),
        (Gpu(2, 0, (H100, H100), "550.1", "12.8"), {}, "fail", "570.86"),
        (Gpu(2, 0, (H100, H100), "575.1", "12.9"), {"cuda": (13, 0)}, "fail", "580.65.6"),
        (Gpu(2, 4, (H100, H100), "570.86.15", "12.8"), {}, "fail", "fabric"),
        (Gpu(2), {}, "fail", "no NVIDIA driver"),
        (Gpu(2), {"driver": "570.86.15"}, "pass", ""),
        (Gpu(2, nouveau=True), {"driver": "570.86.15"}, "warn", "nouveau"),
    ],
)  # fmt: skip
def test_gpus_driver_and_cuda(gpu: Gpu, changes: dict[str, Any], level: str, said: str) -> None:
    tree = site_tree()
    tree["hosts"][0].update(GPUS)
    of = site(hosts=tree["hosts"])
    needs = bundle(environments=(CUDA, CPU), **{"cuda": (12, 8), **changes})
    findings = [
        f for f in judged(replace(fit(), gpu=gpu), of, needs)
        if f.check in {"gpu", "driver", "runtime"} and f.level != "pass"
    ]  # fmt: skip
    assert {f.level for f in findings} == ({level} if level != "pass" else set())
    assert not findings or any(said in f"{f.text} {f.remedy}" for f in findings)


def test_two_hosts_that_are_one_are_found() -> None:
    facts = {
        "n1": fit(),
        "n2": replace(fit(), hostname="n2"),
        "n3": replace(fit(), machine_id="b" * 32),
    }
    found = {(f.host, f.check) for f in between(facts) if f.level == "fail"}
    assert found == {
        ("n1", "machine-id"), ("n2", "machine-id"), ("n1", "hostname"), ("n3", "hostname"),
    }  # fmt: skip


# --- a host that lies -----------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
WORDS = st.sampled_from(
    ["name", "uid", "addresses", "asked", "mount", "free", "device", "block", "options", "cards",
     "address", "port", "protocol", "to", "via", "outcome", "blobs", "releases", "flags"]
)  # fmt: skip
HALF_RIGHT = st.dictionaries(WORDS, ANYTHING, max_size=8)
FACTS_ODD = st.dictionaries(
    st.sampled_from(sorted(FACTS)), ANYTHING | HALF_RIGHT | st.lists(HALF_RIGHT, max_size=3)
)


@settings(max_examples=100, deadline=None)
@given(FACTS_ODD)
def test_whatever_a_host_says_it_is_judged(odd: dict[str, Any]) -> None:
    facts = read_facts(answer(odd))
    for finding in (*judged(facts, bundle=bundle()), *between({"n1": facts, "n2": facts})):
        assert finding.text and (finding.level == "pass" or finding.remedy)


@pytest.mark.parametrize(
    "printed",
    [b"", b"Welcome", MARK.encode() + b"{", MARK.encode() + b"[]", MARK.encode() + b"[" * 100_000,
     MARK.encode() + b'"' + b"x" * (9 << 20) + b'"', b"\xff\xfe" + MARK.encode() + b"1"],
    ids=range(7),
)  # fmt: skip
def test_no_answer_is_an_error(printed: bytes) -> None:
    with pytest.raises(FactsUnreadable):
        read_facts(printed)


def test_what_a_host_says_cannot_steer_a_terminal() -> None:
    evil = {"system": {"name": "\x1b[2J\x9bDebian\u202e" + "x" * 1000}, "identity": None}
    name = read_facts(answer(evil)).system.name or ""
    assert name.startswith("[2JDebian") and len(name) <= 200


def test_the_page_of_checks_is_fresh() -> None:
    from pathlib import Path

    written = Path(__file__).parents[2] / "docs" / "preflight.md"
    assert written.read_text() == page(), "run 'make docs'"


def test_findings_are_json() -> None:
    assert json.loads(json.dumps([f.as_json() for f in judged(fit())]))[0]["host"] == "n1"


def test_why_a_host_could_not_tell_is_part_of_what_is_found() -> None:
    late = dict.fromkeys(("routes", "security", "installed", "python"), "not in time")
    said = {
        "unknown": {**late, "memory": 7},
        "folders": [
            {"asked": "/srv/shared", "unknown": "Stale file handle"},
            {"asked": "/var/lib/sovctl", "unknown": "Permission denied"},
        ],
    }
    facts = read_facts(answer(said))
    assert facts.folders == ()
    findings = {finding.check: finding for finding in judged(facts, bundle=bundle())}
    texts = {check: finding.text for check, finding in findings.items()}
    for check in late:
        assert (findings[check].level, texts[check][-13:]) == ("warn", "(not in time)")
    assert texts["storage"].endswith("(Stale file handle)")
    assert texts["space"].endswith("(Permission denied)")
    assert texts["memory"] == "its memory is not known"
