"""``sovctl audit`` as an operator and an auditor use it, on a stopped appliance."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.layout import Home
from appliance.ledger.event import Event
from appliance.ledger.log import Ledger
from appliance.ledger.note import Verifier
from appliance.ledger.proof import Proof


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = Home(tmp_path / "home")
    monkeypatch.setenv("SOVCTL_HOME", str(home.root))
    ledger = Ledger.create(home, "hospital.example/one")
    long_ago = datetime.now(UTC) - timedelta(days=3)
    ledger.append(
        [
            Event("operator:alice", "key.create", {"key": "3f9a"}, at=long_ago),
            Event("key:3f9a", "tune.submit", {"job": "ftjob-1"}),
            Event("key:3f9a", "tune.finish", {"job": "ftjob-1"}, "failed"),
            Event("key:3f9a", "inference", {"model": "smollm2"}),
        ]
    )
    return home


def sovctl(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["audit", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_log_is_filtered(home: Home, capsys):
    status, out, _err = sovctl(capsys, "log")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == ["0", "1", "2", "3"]
    assert "tune.finish" in out.splitlines()[2]
    for arguments, expected in (
        (["--since", "2h"], [1, 2, 3]),
        (["--since", "2020-01-01"], [0, 1, 2, 3]),
        (["--action", "tune"], [1, 2]),
        (["--action", "tune.finish"], [2]),
        (["--last", "1"], [3]),
    ):
        _status, out, _err = sovctl(capsys, "log", "--json", *arguments)
        assert [entry["index"] for entry in json.loads(out)] == expected


def test_a_moment_that_is_none_is_refused(home: Home, capsys):
    status, _out, err = sovctl(capsys, "log", "--since", "yesterday")
    assert status == 2
    assert "2026-11-24" in err


def test_verify_says_yes_and_no(home: Home, capsys, tmp_path: Path):
    status, old, _err = sovctl(capsys, "checkpoint")
    assert status == 0
    kept = tmp_path / "kept-checkpoint"
    kept.write_text(old)
    Ledger.open(home).append([Event("operator:alice", "login", {})] * 300)
    key = (home.ledger / "verifier.txt").read_text().strip()
    status, out, _err = sovctl(capsys, "verify", "--key", key, "--against", str(kept))
    assert (status, "304 entries" in out, "extends" in out) == (0, True, True)

    copy = tmp_path / "copy"
    shutil.copytree(home.ledger, copy)
    bundle = copy / "tile/entries/000"
    bundle.write_bytes(bundle.read_bytes().replace(b"smollm2", b"smollm3"))
    status, out, _err = sovctl(capsys, "verify", "--ledger", str(copy))
    assert status == 8
    assert "first bad entry is 3" in out
    status, out, _err = sovctl(capsys, "verify", "--ledger", str(copy), "--json")
    assert (status, json.loads(out)["first_bad"]) == (8, 3)


def test_a_stopped_reader_finds_the_key_in_a_file(home: Home, capsys):
    status, _out, _err = sovctl(capsys, "verify", "--key", str(home.ledger / "verifier.txt"))
    assert status == 0
    other = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    status, out, _err = sovctl(capsys, "verify", "--key", other)
    assert (status, "no trusted key" in out) == (8, True)
    status, _out, err = sovctl(capsys, "verify", "--key", "a+b+c")
    assert (status, "ledger-key-unusable" in err) == (3, True)
    status, _out, err = sovctl(capsys, "verify", "--key", "no-such-file")
    assert (status, "file-unreadable" in err) == (2, True)


def test_prove_prints_a_proof_that_holds(home: Home, capsys, tmp_path: Path):
    status, out, _err = sovctl(capsys, "prove", "2")
    assert status == 0
    key = Verifier.parse((home.ledger / "verifier.txt").read_text().strip())
    _head, event = Proof.parse(out).check(key)
    assert (event.action, event.outcome) == ("tune.finish", "failed")
    status, _out, _err = sovctl(capsys, "prove", "2", "--out", str(tmp_path / "2.tlog-proof"))
    assert status == 0
    assert (tmp_path / "2.tlog-proof").read_text() == out
    status, _out, err = sovctl(capsys, "prove", "4")
    assert (status, "ledger-entry-missing" in err) == (5, True)


def test_without_a_ledger_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("SOVCTL_HOME", str(tmp_path))
    for command in ("log", "verify", "checkpoint"):
        status, _out, err = sovctl(capsys, command)
        assert (status, "ledger-missing" in err) == (5, True)


@pytest.mark.parametrize("lost", ["checkpoint", "verifier.txt", "tile/entries/000.p/4"])
@pytest.mark.parametrize("command", [["log"], ["verify"], ["prove", "1"], ["checkpoint"]])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_damaged_ledger_never_gives_a_traceback(
    home: Home, capsys, lost: str, command: list[str], how: str
):
    if how == "changed":
        (home.ledger / lost).write_bytes(b"\xff\x00rubbish")
    else:
        (home.ledger / lost).unlink()
    status, out, err = sovctl(capsys, *command)
    if command == ["checkpoint"] and lost.startswith("tile"):
        assert status == 0
    else:
        assert status in (2, 3, 8)
    assert "Traceback" not in out + err
    assert "internal-error" not in err


HEAVY = {
    "torch",
    "ray",
    "sqlalchemy",
    "alembic",
    "cryptography",
    "tuf",
    "pydantic",
    "httpx",
    "rich",
}


@pytest.mark.parametrize("arguments", [["--help"], ["audit", "--help"], ["audit", "log", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]):
    """What makes ``--help`` quick, without timing it."""
    script = f"""
import sys
from appliance.cli.main import main
try:
    main({arguments!r})
finally:
    print("loaded:", *sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded:"
