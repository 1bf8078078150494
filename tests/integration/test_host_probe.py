"""The probe for real: on this machine, as root and as nobody, by every Python that is here."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.provision import host_facts
from appliance.provision.facts import HostFacts
from appliance.provision.facts_reader import read_facts
from appliance.provision.preflight import program

ALONE = ("unshare", "--net", "--map-root-user")
NOBODY = 65534


def probe(
    tmp_path: Path, python: str, *, uid: int | None = None, **asked: object
) -> tuple[HostFacts, dict[str, object]]:
    """Without any network: what it may ask others must stay here."""
    sent = program({"folder": str(tmp_path), "write_bytes": 1 << 20, "deadline_s": 30, **asked})
    # As root a network namespace needs no user namespace, and uid 0 stays what it is.
    argv = ["unshare", "--net"] if os.geteuid() == 0 and uid is None else [*ALONE]
    done = subprocess.run(
        [*argv, python, "-"], input=sent, capture_output=True, check=False, user=uid, cwd="/"
    )
    if b"unshare" in done.stderr:
        pytest.skip("this kernel gives out no namespaces")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    line = done.stdout.decode().splitlines()[-1]
    return read_facts(done.stdout), json.loads(line.removeprefix(host_facts.MARK))


def test_it_is_one_file_for_old_pythons_that_needs_no_other() -> None:
    parsed = ast.parse(Path(host_facts.__file__).read_text(), feature_version=(3, 6))
    nodes = list(ast.walk(parsed))
    imported = {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
    assert "__future__" not in imported  # its annotations are of 3.7
    assert {"main", "collect"} <= {n.name for n in parsed.body if isinstance(n, ast.FunctionDef)}


def _pythons() -> list[str]:
    others = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path) for path in sorted(others.glob("3.*/bin/python3"))]
    return [
        sys.executable,
        *([p] if (p := shutil.which("python3", path="/usr/bin")) else []),
        *found,
    ]


@pytest.mark.parametrize("python", _pythons())
def test_every_fact_can_be_read_on_a_machine_in_order(python: str, tmp_path: Path) -> None:
    facts, raw = probe(tmp_path, python)
    # What a desk may lack: systemd as process 1, Debian's tools, an installation.
    missing = {name for name, value in raw.items() if value is None}
    assert missing <= {"services", "packages", "firewall", "installed"}
    assert raw["unknown"] == {}
    assert facts.system.machine == os.uname().machine
    assert facts.cpu.cores and facts.memory.total
    assert facts.disk is not None and facts.disk.bytes == 1 << 20
    assert facts.folder(str(tmp_path)) is not None
    assert facts.pythons is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_nobody_gets_an_answer_too(tmp_path: Path) -> None:
    facts, raw = probe(tmp_path, "/usr/bin/python3", uid=NOBODY)
    assert facts.memory.total
    assert raw["disk"] is None  # it may not write there, and does not fall over it
    assert facts.unknown["disk"] == "Permission denied"
    assert facts.folder(str(tmp_path)) is not None or facts.folder("/") is not None


def test_ports_and_connections_are_seen(tmp_path: Path) -> None:
    """In the probe's own namespace nothing listens, and the peer is nowhere."""
    facts, _raw = probe(tmp_path, sys.executable, connect=[["peer n2", "198.18.1.12", 22]])
    assert facts.listeners == ()
    assert [each.outcome for each in facts.connections or ()] == ["unreachable"]


def test_what_is_asked_wrongly_costs_that_fact_only(tmp_path: Path) -> None:
    facts, raw = probe(tmp_path, sys.executable, connect="x", folders=[7], write_bytes="much")
    assert raw["connections"] is None and raw["disk"] is None
    assert facts.memory.total
    assert facts.unknown.keys() == {"connections", "disk"}
    assert facts.unknown["disk"].startswith("ValueError: ")


def test_a_folder_that_cannot_be_looked_at_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: str) -> os.statvfs_result:
        if path == "/proc":
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return real(path)

    real = os.statvfs
    monkeypatch.setattr(host_facts.os, "statvfs", stale)
    printed = host_facts.MARK + json.dumps(host_facts.collect({"folders": ["/proc"]}))
    facts = read_facts(printed.encode())
    assert facts.folder("/proc") is None and facts.folder("/") is not None
    assert facts.unknown == {"/proc": "Stale file handle"}
