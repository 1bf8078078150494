"""What a run of Ansible came to, from its events. Pure: events in, values out.

    outcome = read(events)
    outcome.hosts["n1"].changed          # how much was changed, or would be
    outcome.failures[0].message          # one sentence; never a traceback or an escape sequence

A task that checks something may end its message with ``→ what to do``; that becomes the error's
remedy. What ssh and sudo say becomes the same error as where we speak to a host ourselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from appliance.errors import (
    ApplianceError,
    ConnectionLost,
    DiskFull,
    HostUnreachable,
    PlaybookFailed,
    SiteTaskFailed,
    SudoRefused,
)
from appliance.i18n import _
from appliance.provision.several import one_error

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.provision.ssh import Remote

Event = Mapping[str, Any]
"""One event of ansible-runner."""

_MOST = 600  # characters of a message
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_RESULTS = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
}
_SUDO = re.compile(r"sudo: |[Mm]issing sudo password|not in the sudoers|[Bb]ecome.*password")
_FULL = re.compile(r"No space left on device|Errno 28|Disk quota exceeded")


@dataclass(frozen=True, slots=True)
class Happened:
    """One task on one host: ``result`` is ok, failed, unreachable or skipped; ``seconds`` is how
    long Ansible worked at it, all told. ``paths`` are the files it changed, of those that say."""

    host: str
    role: str
    task: str
    result: str
    changed: bool = False
    message: str = ""
    seconds: float = 0.0
    paths: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[str, ...]:
        """What it changed, each with its role: the files, or the task as a whole."""
        if not self.changed:
            return ()
        return tuple(f"{self.role}: {path}" for path in self.paths) or (str(self),)

    def __str__(self) -> str:
        return f"{self.role}: {self.task}" if self.role else self.task


@dataclass(frozen=True, slots=True)
class Tally:
    """How one host fared. ``changes`` names the tasks and files that were changed, or would be."""

    ok: int = 0
    failed: int = 0
    unreachable: int = 0
    skipped: int = 0
    changes: tuple[str, ...] = ()

    @property
    def changed(self) -> int:
        """How many tasks and files were changed."""
        return len(self.changes)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole run: each host's tally, and what failed in the order in which it did.

    ``seconds`` are spent by task, the slowest host's, longest first.
    """

    hosts: Mapping[str, Tally]
    failures: Sequence[Happened]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def changed(self) -> int:
        """How many tasks and files were changed, over all hosts."""
        return sum(tally.changed for tally in self.hosts.values())


def happened(event: Event) -> Happened | None:
    """What one event says of a task on a host; None for every other kind."""
    result = _RESULTS.get(str(event.get("event")))
    data = event.get("event_data")
    if result is None or not isinstance(data, Mapping):
        return None
    answer = data.get("res")
    answer = answer if isinstance(answer, Mapping) else {}
    if result == "failed" and data.get("ignore_errors"):
        result = "ok"
    paths = answer.get("paths")  # of sovctl.host.files
    return Happened(
        host=str(data.get("host", "")),
        role=str(data.get("role") or ""),
        task=plain(str(data.get("task") or data.get("task_action") or "")),
        result=result,
        changed=bool(answer.get("changed")) and result == "ok",
        message=message_of(answer) if result in {"failed", "unreachable"} else "",
        seconds=float(data.get("duration") or 0.0),
        paths=tuple(plain(str(path)) for path in paths) if isinstance(paths, list) else (),
    )


def read(steps: Iterable[Happened]) -> Outcome:
    """Sum up a run."""
    hosts: dict[str, Tally] = {}
    seconds: dict[str, float] = {}
    failures = []
    for step in steps:
        before = hosts.get(step.host, Tally())
        hosts[step.host] = Tally(
            ok=before.ok + (step.result == "ok"),
            failed=before.failed + (step.result == "failed"),
            unreachable=before.unreachable + (step.result == "unreachable"),
            skipped=before.skipped + (step.result == "skipped"),
            changes=(*before.changes, *step.changes),
        )
        if step.result in {"failed", "unreachable"}:
            failures.append(step)
        seconds[str(step)] = max(seconds.get(str(step), 0.0), step.seconds)
    longest = dict(sorted(seconds.items(), key=lambda item: -item[1]))
    return Outcome(hosts, tuple(failures), longest)


def message_of(answer: Mapping[str, Any]) -> str:
    """One or two sentences out of a module's answer."""
    if answer.get("censored") or answer.get("_ansible_no_log") is True:
        return _("Its output is hidden, because it holds secrets.")
    items = answer.get("results")
    if isinstance(items, Sequence) and not isinstance(items, str):
        for item in items:
            if isinstance(item, Mapping) and (item.get("failed") or item.get("unreachable")):
                return message_of(item)
    texts = (answer.get(name) for name in ("msg", "stderr", "module_stderr", "module_stdout"))
    found = [_without_traceback(plain(_text(text))) for text in texts if text]
    # "MODULE FAILURE … See stdout/stderr" says nothing that its stderr does not say better.
    useful = [text for text in found if text and not text.startswith("MODULE FAILURE")]
    told = useful[:1]
    if "non-zero return code" in "".join(told) and len(useful) > 1:
        told = useful[1:2]
    text = (told or found or [_("It gave no reason.")])[0]
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"


def plain(text: str) -> str:
    """``text`` without escape sequences and control characters, in one line."""
    return " ".join(_ESCAPES.sub("", text).split())


def _text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(each) for each in value)
    return str(value)


def _without_traceback(text: str) -> str:
    """What a traceback ends in: the name of the exception and what it says."""
    before, found, trace = text.partition("Traceback (most recent call last):")
    if not found:
        return text
    ends = re.findall(r"\b((?:\w+\.)*\w*(?:Error|Exception|Exit|Interrupt)\b: ?.*)", trace)
    ending = ends[-1] if ends else ""
    return (before.strip() or ending.strip() or _("A program on the host failed.")).strip()


# --- errors ---------------------------------------------------------------------------------------


def problem(
    outcome: Outcome, status: int, remotes: Mapping[str, Remote], log: Path
) -> ApplianceError | None:
    """The error of a run that ended with ``status``; None for one that went well."""
    if status == 0 and not outcome.failures:
        return None
    first: dict[str, Happened] = {}
    for failure in outcome.failures:
        first.setdefault(failure.host, failure)
    if not first:
        return PlaybookFailed(status=status, log=log)
    errors = {name: _error(step, remotes.get(name), log) for name, step in first.items()}
    return one_error(errors)


def _error(step: Happened, remote: Remote | None, log: Path) -> ApplianceError:
    message, _arrow, remedy = (part.strip() for part in step.message.partition("→"))
    if remote is not None and step.result == "unreachable":
        return _unreachable(step, message, remote, log)
    if remote is not None and _SUDO.search(message):
        return SudoRefused(host=step.host, user=remote.user, reason=message)
    if _FULL.search(message):
        reason = _("Host {host} filled up in '{task}'.").format(host=step.host, task=step)
        return DiskFull(path=step.host, needed=_("more"), free=_("too little"), reason=reason)
    if not remedy:
        text = _("Put it right on the host, then run the same command again. All output: {log}")
        remedy = text.format(log=log)
    return SiteTaskFailed(host=step.host, task=step, message=message, remedy=remedy)


def _unreachable(step: Happened, message: str, remote: Remote, log: Path) -> ApplianceError:
    """Its address is right, for it was spoken to before: a host that is gone went during the run.

    What else ssh may say (another key, a login that is refused) is the same error as everywhere.
    """
    judged = remote.judge(255, message.encode())
    if judged is not None and not isinstance(judged, (HostUnreachable, ConnectionLost)):
        return judged
    said = message.rpartition("via ssh: ")[2].rstrip(".")
    where = _("{said}. It was at '{task}'; all output: {log}")
    reason = where.format(said=said, task=step, log=log)
    return ConnectionLost(host=step.host, address=remote.address, reason=reason)
