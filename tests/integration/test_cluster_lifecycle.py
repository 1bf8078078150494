"""Start to stop of a sealed appliance: real seal, real Ray with token and TLS, small Serve app."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import sealed_release

from appliance.cluster import lifecycle
from appliance.cluster.processes import ProcessName
from appliance.egress import live, seal
from appliance.egress.verdict import judge, results_from_json
from appliance.errors import PortTaken, ReleaseForeign, SealUnavailable, StartFailed
from appliance.layout import Home
from appliance.ledger.log import Ledger
from appliance.progress import Silent


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    """A folder whose path alone is longer than a Unix socket's may be."""
    try:
        seal.check_supported()
    except SealUnavailable as error:
        pytest.skip(str(error))
    folder = Path(tempfile.mkdtemp(prefix="lifecycle-"))
    home = Home(folder / ("a-long-name-" * 8) / "home")
    Ledger.create(home, "test.example/lifecycle")
    yield home
    lifecycle.stop(home, Silent())
    shutil.rmtree(folder)


def get(endpoint: lifecycle.Endpoint, path: str) -> Any:
    trust = ssl.create_default_context(cafile=str(endpoint.ca))
    with urllib.request.urlopen(endpoint.url + path, timeout=150, context=trust) as answer:
        return json.load(answer)


def until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def descendants(pid: int) -> dict[int, str]:
    """Process id → command line, of everything under ``pid``."""
    found = {}
    for child in live.children(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        found[child] = command.decode("utf-8", "replace")
        found |= descendants(child)
    return found


def test_only_an_installed_release_is_started(home: Home) -> None:
    release = sealed_release.make(Home(home.root / "other"))
    with pytest.raises(ReleaseForeign):
        lifecycle.start(home, release, 0, Silent())


def test_a_taken_port_is_named(home: Home) -> None:
    release = home.releases / "some"
    release.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(PortTaken) as refused:
        lifecycle.start(home, release, other.getsockname()[1], Silent())
    assert "--port" in refused.value.sentences()[2]
    assert not lifecycle.state(home).running


@pytest.mark.slow
def test_the_whole_life(home: Home) -> None:
    release = sealed_release.make(home)
    endpoint = lifecycle.start(home, release, 0, Silent())
    state = lifecycle.state(home)
    assert (state.phase, state.endpoint) == ("healthy", endpoint)
    assert get(endpoint, "/healthz") == {"ok": True}
    check_seal(home, endpoint)

    assert lifecycle.start(home, release, 0, Silent()) == endpoint, "a second start is a no-op"
    assert lifecycle.state(home).pid == state.pid

    check_repair(home, endpoint)
    check_power_loss(home, release)

    check_hostile_state(home)

    lifecycle.stop(home, Silent())
    assert lifecycle.state(home).phase == "stopped"
    recorded = (home.ledger / "tile").rglob("*")
    text = b"".join(path.read_bytes() for path in recorded if path.is_file())
    assert all(name in text for name in (b"seal.closed", b"appliance.start", b"appliance.stop"))


def check_seal(home: Home, endpoint: lifecycle.Endpoint) -> None:
    first = lifecycle.seal_process(home)
    assert first is not None
    assert live.observe(first).sealed
    assert get(endpoint, "/serve") == {"replica": "Network is unreachable"}
    places = {name: results_from_json(get(endpoint, f"/prove/{name}")) for name in ("task", "job")}
    assert judge(places).answer == "closed"
    sovctl = [sys.executable, "-m", "appliance.cli.main", "egress", "status", "--json"]
    settings = {**os.environ, "SOVCTL_HOME": str(home.root)}
    done = subprocess.run(sovctl, env=settings, capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["closed"]) == (0, True), done.stderr
    assert get(endpoint, "/jobs") == ["job-unknown", "RUNNING", True, True, "STOPPED"]


def check_repair(home: Home, endpoint: lifecycle.Endpoint) -> None:
    """A gateway and then a raylet are killed; both come back, without a hand."""
    door = lifecycle.state(home).pid
    assert door is not None
    for name, seconds in (("appliance.gateway.server", 120.0), ("raylet/raylet", 300.0)):
        victims = [pid for pid, command in descendants(door).items() if name in command]
        os.kill(victims[0], signal.SIGKILL)
        until(lambda: lifecycle.state(home).phase != "healthy", 60, f"{name}: nobody noticed")
        until(lambda: lifecycle.state(home).phase == "healthy", seconds, f"{name} stayed away")
    assert get(endpoint, "/serve") == {"replica": "Network is unreachable"}


def check_hostile_state(home: Home) -> None:
    """What a job may do to the state files makes no program outside hang or signal a stranger."""
    record = home.run / "process.json"
    true = record.read_text()
    mine = ProcessName.of(os.getpid())
    record.write_text(json.dumps(json.loads(true) | asdict(mine)))
    assert not lifecycle.state(home).running, "a stranger's process is not the appliance"
    record.write_text(true)
    (home.run / "supervisor.json").unlink()
    os.mkfifo(home.run / "supervisor.json")
    assert lifecycle.state(home).running
    (home.run / "supervisor.json").unlink()


def check_power_loss(home: Home, release: Path) -> None:
    """The outermost process is killed: nothing survives it, and the next start is clean."""
    door = lifecycle.state(home).pid
    assert door is not None
    inside = [ProcessName.of(pid) for pid in descendants(door)]
    os.kill(door, signal.SIGKILL)
    until(lambda: not any(name.is_alive() for name in inside), 40, "something survived")
    assert lifecycle.state(home).phase == "stopped"
    assert get(lifecycle.start(home, release, 0, Silent()), "/healthz") == {"ok": True}


@pytest.mark.slow
def test_a_model_that_does_not_load_stops_the_start_with_its_log() -> None:
    folder = Path(tempfile.mkdtemp(prefix="lifecycle-"))
    home = Home(folder / "home")
    Ledger.create(home, "test.example/lifecycle")
    try:
        release = sealed_release.make(home, deploy="raise SystemExit('the weights are gone')")
        with pytest.raises(StartFailed) as failed:
            lifecycle.start(home, release, 0, Silent())
        what, why, _fix = failed.value.sentences()
        assert "serve" in what and "the weights are gone" in why
        assert not lifecycle.state(home).running
    finally:
        lifecycle.stop(home, Silent())
        shutil.rmtree(folder)
