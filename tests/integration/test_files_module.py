"""The Ansible module that writes root's files, run by Ansible itself, on this machine."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,  # each run of Ansible takes two seconds
    pytest.mark.skipif(os.geteuid() != 0, reason="it gives files to root"),
]


def ansible(folder: Path, files: list[dict[str, Any]], *options: str) -> dict[str, Any]:
    """What the module answers."""
    (folder / "ansible.cfg").touch()  # nobody else's
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible"), "localhost", "-c", "local", "-o", *options,
         "-m", "sovctl.host.files", "-a", json.dumps({"files": files})],
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
            "ANSIBLE_HOME": str(folder / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "playbooks" / "collections"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_NOCOLOR": "1",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if "=> {" in line]
    assert lines, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(lines[-1].partition("=> ")[2])
    return answer


def test_files_become_what_is_said_and_stay_so(tmp_path: Path) -> None:
    target = tmp_path / "etc"
    linked = tmp_path / "somebody-elses"
    linked.write_text("mine\n")
    target.mkdir()
    (target / "link").symlink_to(linked)
    files = [
        {"path": f"{target}/new/deep/one.conf", "content": "ä\n"},
        {"path": f"{target}/tool", "content": "#!/bin/sh\n", "mode": "0755"},
        {"path": f"{target}/link", "content": "ours\n"},
        {"path": f"{target}/secret", "content": "s\n", "mode": "0600", "in_place": True},
    ]

    foretold = ansible(tmp_path, files, "--check", "--diff")
    assert foretold["changed"] and foretold["paths"] == [file["path"] for file in files]
    assert [path.name for path in target.iterdir()] == ["link"]

    umask = os.umask(0o027)  # as role hardening sets it for operators
    try:
        done = ansible(tmp_path, files)
    finally:
        os.umask(umask)
    assert done["paths"] == foretold["paths"]
    assert (target / "new/deep/one.conf").read_text() == "ä\n"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (target, *target.rglob("*"))}
    assert modes == {
        "etc": 0o755, "new": 0o755, "deep": 0o755, "one.conf": 0o644, "tool": 0o755,
        "link": 0o644, "secret": 0o600,
    }  # fmt: skip
    assert linked.read_text() == "mine\n" and not (target / "link").is_symlink()

    again = ansible(tmp_path, files)
    assert (again["changed"], again["paths"]) == (False, [])

    # Somebody changed a mode and a text: those two, and nothing else, are put right.
    (target / "tool").chmod(0o777)
    (target / "secret").write_text("other\n")
    assert ansible(tmp_path, files)["paths"] == [f"{target}/tool", f"{target}/secret"]


def test_what_a_program_refuses_is_not_put_in_place(tmp_path: Path) -> None:
    before = tmp_path / "two"
    before.write_text("good\n")
    files = [
        {"path": f"{tmp_path}/one", "content": "good\n", "validate": "grep -q good %s"},
        {"path": str(before), "content": "bad\n", "validate": "grep good %s /nowhere"},
        {"path": f"{tmp_path}/three", "content": "good\n"},
    ]
    answer = ansible(tmp_path, files)
    assert answer["msg"].startswith(f"{before} would not do: ") and "/nowhere" in answer["msg"]
    assert (tmp_path / "one").exists() and not (tmp_path / "three").exists()
    assert before.read_text() == "good\n"

    relative = ansible(tmp_path, [{"path": "one", "content": ""}])
    assert "not an absolute path" in relative["msg"]
