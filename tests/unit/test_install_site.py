"""A site's plan is decided by what is known, and what keeps hosts from being ready is all said."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.cluster import ports
from appliance.egress.probe import ProbeResult
from appliance.egress.verdict import judge
from appliance.errors import SiteEndpointDamaged
from appliance.install import local, lock
from appliance.install.site import doubts, keep_site_file, not_ready
from appliance.install.site_endpoint import Endpoint
from appliance.install.site_plan import SiteFacts, SitePhase, make_site_plan
from appliance.layout import Home, SitePlace
from appliance.provision.finding import HostFinding
from appliance.trust import site_ca

FACTS = SiteFacts(
    site="clinic",
    release="demo-1.0-abcd",
    digest="sha256:00",
    hosts=3,
    bare=3,
    blobs=10,
    size=1_000_000,
    wheels=600_000,
    missing_blobs=10,
    missing_bytes=1_000_000,
    release_ready=False,
)


def _pending(facts: SiteFacts) -> list[str]:
    return [step.phase for step in make_site_plan(facts).pending]


def test_a_first_plan_has_every_phase_in_order_and_counts_every_hosts_bytes() -> None:
    plan = make_site_plan(FACTS)
    assert _pending(FACTS) == list(SitePhase)
    assert plan.size == 4_000_000
    assert plan.seconds > 60


def test_what_is_here_is_skipped_and_hosts_are_asked_again() -> None:
    done = replace(FACTS, bare=0, missing_blobs=0, missing_bytes=0, release_ready=True)
    assert SitePhase.BLOBS not in _pending(done) and SitePhase.RELEASE not in _pending(done)
    assert SitePhase.DELIVER in _pending(done) and SitePhase.PROVE in _pending(done)
    assert make_site_plan(done).size == 0
    interrupted = replace(done, open_phases=frozenset({SitePhase.BLOBS}))
    assert SitePhase.BLOBS in _pending(interrupted)


def test_a_resumed_plan_has_the_same_name() -> None:
    assert make_site_plan(FACTS).id == make_site_plan(replace(FACTS, bare=1)).id
    assert make_site_plan(FACTS).id != make_site_plan(replace(FACTS, site="other")).id


def test_every_failed_check_of_every_host_is_said() -> None:
    assert not_ready("clinic", [HostFinding("n1", "disk", "warn", "slow")]) is None
    error = not_ready(
        "clinic",
        [
            HostFinding("n1", "disk", "fail", "full.", "make room"),
            HostFinding("n2", "os", "fail", "old"),
        ],
    )
    assert error is not None
    what, why, fix = error.sentences()
    assert "n1, n2" in what and "2 hosts" in what
    assert "n1 disk: full." in why and "n2 os: old." in why
    assert fix == "n1: make room"


def test_what_is_not_closed_is_told() -> None:
    bad = ProbeResult("tcp", "192.0.2.1:443", "reached", "answered")
    assert "host n1: tcp 192.0.2.1:443 reached" in doubts(judge({"host n1": [bad]}))
    assert doubts(judge({"gateway": []})) == "No place gave an answer."


def test_an_address_of_either_kind_makes_a_url() -> None:
    assert ports.at("10.0.0.1", 8443) == "10.0.0.1:8443"
    assert ports.at("fd00::1", 8443) == "[fd00::1]:8443"


@pytest.fixture
def place(tmp_path: Path) -> SitePlace:
    return SitePlace(Home(tmp_path / "home"), "clinic")


def test_where_a_site_answers_is_kept_and_read_back(place: SitePlace) -> None:
    assert Endpoint.read(place) is None
    made = Endpoint("https://10.0.0.1:8443", Path("/ca.pem"), Path("/operator.key"), "demo-1")
    made.write(place)
    assert Endpoint.read(place) == made


@pytest.mark.parametrize("content", ["{", "[]", "7", "{}", '{"url": "x", "ca": 1}', "\xff"])
def test_a_damaged_endpoint_is_said_with_what_to_do(place: SitePlace, content: str) -> None:
    place.root.mkdir(parents=True)
    place.endpoint.write_bytes(content.encode("latin-1"))
    with pytest.raises(SiteEndpointDamaged, match="clinic") as caught:
        Endpoint.read(place)
    assert "sovctl install" in caught.value.sentences()[2]


def test_a_sites_folder_is_the_operators_alone_from_the_first_plan(place: SitePlace) -> None:
    with lock.hold(place, "sovctl plan"):
        keep_site_file(place, Path("manifests/single.yaml"))
    assert place.root.stat().st_mode & 0o777 == 0o700


def test_a_gateway_that_answers_something_else_than_http_has_not_answered(tmp_path: Path) -> None:
    authority = site_ca.make_authority("x", datetime.now(UTC))
    (tmp_path / "ca.pem").write_bytes(site_ca.certificate_pem(authority[0]))
    (tmp_path / "key").write_text("sov-key")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            caller, _address = server.accept()
            with caller:
                caller.recv(4096)
                caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/admin/v1/status"
        with pytest.raises(OSError, match="BadStatusLine"):
            local.ask(url, tmp_path / "ca.pem", tmp_path / "key")
