"""Events of Ansible become tallies, and errors a person can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError
from appliance.provision import outcome
from appliance.provision.outcome import Happened, happened, message_of, problem, read
from appliance.provision.ssh import Control, Remote

TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in f
PermissionError: [Errno 13] denied: '/x'
"""
LOG = Path("/var/log/x")
REMOTE = Remote("n1", "ops", "10.0.0.1", 22, Path("/key"), Path("/known"), Control(Path("/c")))


def _event(kind: str, **data: Any) -> dict[str, Any]:
    return {"event": f"runner_on_{kind}", "event_data": {"host": "n1", "task": "Do", **data}}


def _error(result: str, message: str) -> ApplianceError:
    found = problem(
        read([Happened("n1", "base", "Do", result, False, message)]), 2, {"n1": REMOTE}, LOG
    )
    assert found is not None
    return found


def test_a_run_is_summed_up_by_host() -> None:
    steps = [
        happened(_event("ok", role="base", res={"changed": True})),
        happened(_event("ok", role="base", res={"changed": False, "paths": []})),
        happened(_event("ok", role="time", res={"changed": True, "paths": ["/a", "/b\x1b[1m"]})),
        happened(_event("skipped", res={})),
        happened(_event("failed", res={"msg": "no"}, ignore_errors=True)),
        happened({"event": "playbook_on_start", "event_data": {}}),
    ]
    tally = read(step for step in steps if step is not None).hosts["n1"]
    assert (tally.ok, tally.changed, tally.skipped, tally.failed) == (4, 3, 1, 0)
    assert tally.changes == ("base: Do", "time: /a", "time: /b")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"msg": "\x1b[31mred\x1b[0m and\r\nmore"}, "red and more"),
        ({"msg": "MODULE FAILURE\nSee stdout/stderr", "module_stderr": TRACEBACK},
         "PermissionError: [Errno 13] denied: '/x'"),
        ({"msg": "non-zero return code", "stderr": "E: no such package"}, "E: no such package"),
        ({"results": [{"failed": False, "msg": "fine"}, {"failed": True, "msg": "bad"}]}, "bad"),
        ({"censored": "the output has been hidden", "msg": "hunter2"},
         "Its output is hidden, because it holds secrets."),
        ({}, "It gave no reason."),
    ],
)  # fmt: skip
def test_a_message_is_one_plain_sentence(answer: dict[str, Any], said: str) -> None:
    assert message_of(answer) == said


def test_a_long_message_is_cut() -> None:
    assert len(message_of({"msg": "x" * 10_000})) == outcome._MOST + 1


@pytest.mark.parametrize(
    ("result", "message", "code"),
    [
        (
            "unreachable",
            "ssh: connect to host 10.0.0.1 port 22: No route to host",
            "connection-lost",
        ),
        ("unreachable", "Data could not be sent to remote host", "connection-lost"),
        ("unreachable", "Permission denied (publickey).", "login-refused"),
        ("failed", "Missing sudo password", "sudo-refused"),
        ("failed", "[Errno 28] No space left on device", "disk-full"),
        ("failed", "something else", "site-task-failed"),
    ],
)
def test_what_ssh_and_sudo_say_is_the_same_error_as_everywhere(
    result: str, message: str, code: str
) -> None:
    assert _error(result, message).code == code


def test_of_a_host_that_died_it_says_at_which_task_and_where_all_is_said() -> None:
    prefix = "Task failed: Failed to connect to the host via ssh: "
    _what, why, fix = _error("unreachable", f"{prefix}No route to host").sentences()
    assert why == f"No route to host. It was at 'base: Do'; all output: {LOG}"
    assert "run the same command again" in fix


def test_a_task_may_bring_its_own_remedy() -> None:
    _what, why, fix = _error("failed", "The disk is small. → Buy a larger one.").sentences()
    assert (why, fix) == ("The disk is small.", "Buy a larger one.")


def test_several_hosts_are_all_named() -> None:
    steps = [
        Happened(name, "base", "Do", "failed", False, f"{name} broke") for name in ("n1", "n2")
    ]
    found = problem(read([*steps, steps[0]]), 2, {}, LOG)
    assert found is not None and found.code == "several-hosts-failed"
    what, why, _fix = found.sentences()
    assert what == "2 hosts failed: n1, n2."
    assert "n1 broke" in why and "n2 broke" in why
