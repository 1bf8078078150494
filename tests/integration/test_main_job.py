"""The main job for real: what ``make demo`` does, then what an operator does to it afterwards.

The tests in this file run in order on the one running appliance that ``tests/conftest.py`` has the
demo set up.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Appliance

BASE = "smollm2-135m-instruct"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_tuning_improves_what_it_was_for(appliance: Appliance) -> None:
    card = appliance.summary["adapter"]["card"]
    data = appliance.home / "current" / "datasets" / "icd10cm" / "card.json"
    baseline = json.loads(data.read_text())["baseline"]
    before, after = card["before"], card["after"]
    assert after["loss"] < before["loss"] / 2
    best_guess = max(before["chapter_accuracy"], baseline["letter"]["right"])
    assert after["chapter_accuracy"] > best_guess + 0.15
    assert after["category_accuracy"] > baseline["category"]["right"]
    assert card["training"]["no_way_out"]
    shown = appliance.sovctl("adapters", "show", "icd10").stdout
    told = (f"{after['chapter_accuracy']:.1%}", card["dataset"]["digest"], "yes, as its process")
    assert all(text in shown for text in told), shown


def test_every_step_is_on_the_ledger(appliance: Appliance) -> None:
    actions = {entry["action"] for entry in appliance.ask("audit", "log")}
    assert actions >= {
        "trust.pin",
        "bundle.load",
        "release.install",
        "release.activate",
        "seal.closed",
        "model.load",
        "appliance.start",
        "inference",
        "key.create",
        "tune.submit",
        "tune.finish",
        "adapter.register",
        "adapter.promote",
        "adapter.load",
        "egress.prove",
    }


def test_a_touched_ledger_is_found(appliance: Appliance) -> None:
    partial = (appliance.home / "ledger" / "tile" / "entries").rglob("*.p/*")
    entries = max(partial, key=lambda path: int(path.name))
    whole = entries.read_bytes()
    assert b"egress.prove" in whole
    entries.write_bytes(whole.replace(b"egress.prove", b"egress.drove", 1))
    try:
        assert appliance.sovctl("audit", "verify").returncode == 8
    finally:
        entries.write_bytes(whole)
    assert appliance.sovctl("audit", "verify").returncode == 0


def test_without_a_key_nothing_answers(appliance: Appliance) -> None:
    import httpx

    endpoint = appliance.ask("status")["endpoint"]
    trusted = ssl.create_default_context(cafile=appliance.home / "tls" / "ca.pem")
    with httpx.Client(verify=trusted, trust_env=False) as client:
        assert client.get(f"{endpoint}/v1/models").status_code == 401
        assert client.get(f"{endpoint}/admin/v1/status").status_code == 401
        assert client.get(f"{endpoint}/ray/api/jobs/").status_code in (302, 303, 401)


def test_raw_ports_are_not_reachable_from_outside(appliance: Appliance) -> None:
    import socket

    for port in (8000, 8100, 8265, 6379):
        with socket.socket() as probe, pytest.raises(OSError):
            probe.settimeout(1)
            probe.connect(("127.0.0.1", port))


def test_the_gateway_knows_where_serve_listens(appliance: Appliance) -> None:
    """Ray's real answer, through the dashboard's door, read by what the gateway reads it with."""
    import httpx

    from appliance.cluster import ports
    from appliance.gateway.replicas import replicas_of

    endpoint = appliance.ask("status")["endpoint"]
    trusted = ssl.create_default_context(cafile=appliance.home / "tls" / "ca.pem")
    key = (appliance.home / "secrets" / "operator.key").read_text().strip()
    with httpx.Client(verify=trusted, trust_env=False, base_url=endpoint) as client:
        client.post("/login", data={"key": key}, headers={"Origin": endpoint})
        details = client.get("/ray/api/serve/applications/").json()
    found = replicas_of(details)
    assert found, details
    assert [each.port in ports.REPLICAS for each in found] == [True]


def test_a_tampered_bundle_is_refused_and_nothing_changes(appliance: Appliance) -> None:
    bad = appliance.folder / "bad.tar"
    size = appliance.bundle.stat().st_size
    subprocess.run(["cp", "--reflink=auto", appliance.bundle, bad], check=True)
    with bad.open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)
        file.seek(size // 2)
        file.write(bytes([byte[0] ^ 1]))
    before = (appliance.home / "current").readlink()
    done = appliance.sovctl("bundle", "verify", str(bad), "--json")
    assert done.returncode == 3
    assert "tampered" in json.loads(done.stderr)["error"]["code"]
    assert (appliance.home / "current").readlink() == before
    bad.unlink()


def test_status_and_doctor_are_content(appliance: Appliance) -> None:
    status = appliance.ask("status")
    assert status["phase"] == "healthy"
    done = appliance.sovctl("doctor")
    assert done.returncode == 0, done.stdout


def test_it_comes_back_after_a_kill(appliance: Appliance) -> None:
    process = json.loads((appliance.home / "run" / "process.json").read_text())
    os.kill(process["pid"], signal.SIGKILL)
    time.sleep(1)
    done = appliance.sovctl("chat", BASE, "-m", "hello")
    assert done.returncode == 7
    assert "sovctl start" in done.stderr
    assert appliance.sovctl("start").returncode == 0
    assert appliance.sovctl("chat", BASE, "-m", "hello").returncode == 0
    assert appliance.sovctl("chat", f"{BASE}:icd10", "-m", "hello").returncode == 0
    assert appliance.sovctl("audit", "verify").returncode == 0


def test_a_question_outlives_the_replica(appliance: Appliance) -> None:
    """The model server dies; the next question waits for its successor, adapter included."""
    (replica,) = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _command(entry).startswith(b"ray::ServeReplica:appliance:model")
    ]
    os.kill(replica, signal.SIGKILL)
    answered = appliance.sovctl("chat", f"{BASE}:icd10", "-m", "hello")
    assert answered.returncode == 0, answered.stderr


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
