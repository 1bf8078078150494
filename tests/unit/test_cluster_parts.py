"""The cluster room's deciding parts: shares, restarts, process names, certificates, files."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from appliance.cluster import environment, pki, restarts, sizing
from appliance.cluster.children import Children
from appliance.cluster.processes import ProcessName
from appliance.layout import Home
from appliance.trust import site_ca

MIB, GIB = 1 << 20, 1 << 30


@given(st.integers(1, 512), st.integers(2 * GIB, 4096 * GIB))
def test_serving_and_tuning_always_both_fit(cores: int, memory: int) -> None:
    shares = sizing.share_out(sizing.Machine(cores, memory))
    assert shares.replica_cpus + shares.tuning_cpus <= shares.ray_cpus
    assert min(shares.replica_threads, shares.tuning_threads) >= 1
    assert shares.tuning_threads <= cores
    assert shares.replica_threads <= cores
    assert shares.object_store >= 75 * MIB  # Ray's own least
    assert shares.object_store < shares.shared_memory
    assert shares.object_store + shares.ray_memory <= memory


@given(st.lists(st.floats(0, 59), min_size=1, max_size=20))
def test_waits_grow_and_stay_bounded(lives: list[float]) -> None:
    record, now, waits = restarts.Record(), 0.0, []
    for life in lives:
        record = restarts.after_failure(record, started=now, now=now + life)
        waits.append(record.not_before - (now + life))
        now = record.not_before
    assert all(b >= a - 1e-6 for a, b in pairwise(waits))
    assert max(waits) <= 60.0 + 1e-6
    assert restarts.is_final(record, was_healthy=False) == (len(lives) >= 3)
    assert not restarts.is_final(record, was_healthy=True)


def test_a_long_life_earns_a_fresh_count() -> None:
    worn = restarts.Record(failures=9, not_before=100.0)
    assert restarts.after_failure(worn, started=100, now=200).failures == 1


def test_a_recycled_pid_is_another_process() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        name = ProcessName.of(child.pid)
        assert name.is_alive()
        earlier = ProcessName(child.pid, name.started_ticks - 1, name.boot_id)
        before_power_loss = ProcessName(child.pid, name.started_ticks, "another-boot")
        for stale in (earlier, before_power_loss):
            assert not stale.is_alive()
            stale.send(signal.SIGKILL)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
    assert not name.is_alive()


def test_children_are_reaped_and_ended_with_their_session(tmp_path: Path) -> None:
    children = Children(tmp_path)
    stubborn = "trap '' TERM; echo deaf; sleep 60 & wait; sleep 60"
    child = children.start(["sh", "-c", stubborn], "stubborn", os.environ)
    while (tmp_path / "stubborn.log").read_text() != "deaf\n":
        time.sleep(0.01)
    quick = children.start(["sh", "-c", "echo told; exit 3"], "quick", os.environ)
    while quick.returncode is None:
        children.reap()
    assert quick.returncode == 3
    assert (tmp_path / "quick.log").read_text() == "told\n"
    children.end(child, 0.3)
    while child.returncode is None:
        children.reap()
    assert child.returncode == -signal.SIGKILL


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def certificate(home: Home, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((home.tls / f"{name}.pem").read_bytes())


def test_certificates_are_made_once(home: Home) -> None:
    pki.ensure(home)
    before = {path: path.read_bytes() for path in [*home.tls.iterdir(), *home.secrets.iterdir()]}
    pki.ensure(home)
    assert {path: path.read_bytes() for path in before} == before
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in home.secrets.iterdir())
    names = certificate(home, "gateway").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert {"localhost"} <= set(names.value.get_values_for_type(x509.DNSName))
    certificate(home, "ray").verify_directly_issued_by(certificate(home, "ca"))


def test_a_leaf_near_its_end_is_renewed_and_the_authority_stays(home: Home) -> None:
    pki.ensure(home)
    authority = pki.load(home.tls / "ca.pem", home.secrets / "ca.key")
    assert authority is not None
    nearly_over = datetime.now(UTC) - timedelta(days=380)
    leaf = pki.leaves("")[1]
    old = site_ca.issue(leaf, authority, nearly_over)
    pki.store(home.tls / "ray.pem", home.secrets / "ray.key", old)
    pki.ensure(home)
    assert certificate(home, "ray").not_valid_after_utc > datetime.now(UTC) + timedelta(days=360)
    assert certificate(home, "ca") == authority[0]


def test_a_lost_or_foreign_key_makes_a_new_pair(home: Home) -> None:
    pki.ensure(home)
    old = certificate(home, "gateway")
    (home.secrets / "gateway.key").write_bytes((home.secrets / "ray.key").read_bytes())
    pki.ensure(home)
    assert certificate(home, "gateway") != old


def test_the_environment_holds_paths_and_no_secret_of_the_operator(home: Home) -> None:
    shares = sizing.share_out(sizing.Machine(2, 24 * GIB))
    operator = {"LANG": "fr_FR.UTF-8", "AWS_SECRET_ACCESS_KEY": "x", "https_proxy": "http://p"}
    handed_on = environment.outer(operator)  # by sovctl, to the release's supervisor
    made = environment.inner(home, Path("/r/venv/bin/python"), shares, handed_on)
    assert made["LANG"] == "fr_FR.UTF-8"
    assert not {"AWS_SECRET_ACCESS_KEY", "https_proxy"} & made.keys()
    assert made["RAY_AUTH_MODE"] == "token" and made["RAY_USE_TLS"] == "1"
    assert made["RAY_AUTH_TOKEN_PATH"] == str(home.secrets / "ray.token")
    assert made["PATH"].startswith("/r/venv/bin:")
