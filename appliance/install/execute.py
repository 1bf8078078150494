"""Carry out a plan: phase by phase, every intent on the disk before the act, and a way back.

The phases up to ``secrets`` only prepare; whatever goes wrong there, the running release is
untouched. From ``activate`` on a failure (or ^C) goes back to the release the plan replaces, and
starts it again.

    acts = {Phase.BLOBS: load, Phase.RELEASE: lay_out, …}        # Progress -> None
    execute(plan, acts, go_back, journal, progress)

Nothing here knows what a phase does, so a test can kill the process at any point of it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from appliance.errors import ApplianceError, DiskFull, PermissionRefused, ReleaseUnhealthy
from appliance.i18n import _
from appliance.install.journal import Entry, Journal, Mark
from appliance.install.plan import Phase, Plan
from appliance.install.preflight import free_bytes

if TYPE_CHECKING:
    from appliance.progress import Progress

Act = Callable[["Progress"], None]
GoBack = Callable[[str, "Progress"], None]
"""Makes the release of that id current again and starts it if it ran before."""

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_AFTER_SWITCH = frozenset({Phase.ACTIVATE, Phase.START, Phase.HEALTH})


def execute(
    plan: Plan, acts: Mapping[str, Act], go_back: GoBack, journal: Journal, progress: Progress
) -> None:
    """Run the pending phases of ``plan``; return when all are done.

    Raises what a phase raised after recording it; :class:`DiskFull` for a full disk; and
    :class:`ReleaseUnhealthy` if the new release did not work and the one before runs again.
    """
    if not plan.pending:
        left = journal.unfinished()  # killed after the last act and before its record
        if left is not None and left.release == plan.release:
            _record(journal, plan, "end")
        return
    _record(journal, plan, "begin")
    for step in plan.pending:
        _record(journal, plan, "intent", step.phase)
        try:
            acts[step.phase](progress)
        except BaseException as error:
            problem = _translate(error, journal)
            _record(journal, plan, "failed", step.phase, reason=_reason(problem))
            if plan.replaces is not None and step.phase in _AFTER_SWITCH:
                progress.say(_("Going back to {release}").format(release=plan.replaces))
                go_back(plan.replaces, progress)
                _record(journal, plan, "given-up", step.phase)
                problem = _unhealthy(plan, plan.replaces, problem)
            if problem is error:
                raise
            raise problem from error
        _record(journal, plan, "done", step.phase)
    _record(journal, plan, "end")


def _unhealthy(plan: Plan, previous: str, problem: BaseException) -> BaseException:
    if not isinstance(problem, Exception):  # ^C: said by the command's boundary
        return problem
    text = _("{release}, which was here before, is in use again.").format(release=previous)
    return ReleaseUnhealthy(release=plan.release, reason=_reason(problem), previous=text)


def _translate(error: BaseException, journal: Journal) -> BaseException:
    """A full disk or a folder we may not write is the operator's to mend, wherever it was met."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        place = journal.path.parent
        return DiskFull(
            path=error.filename or place,
            needed=_("more"),
            free=_("{n} bytes").format(n=free_bytes(place)),
            reason=_("The disk filled up while installing; what was written so far is kept."),
        )
    if isinstance(error, OSError) and error.errno in _FORBIDDEN:
        return PermissionRefused(
            path=error.filename or journal.path.parent,
            action=_("written to"),
            reason=f"{error.strerror}.",
        )
    return error


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, ApplianceError):
        what, why, _fix = error.sentences()
        return f"{what} {why}"
    return f"{type(error).__name__}: {error}"


def _record(journal: Journal, plan: Plan, mark: Mark, phase: str = "", reason: str = "") -> None:
    entry = Entry(
        plan=plan.id,
        phase=phase,
        mark=mark,
        at=datetime.now(UTC),
        release=plan.release if mark == "begin" else "",
        replaces=plan.replaces if mark == "begin" else None,
        reason=reason,
    )
    try:
        journal.append(entry)
    except OSError:
        # A disk that is full cannot take the record of its being full; the act's own error counts.
        if mark != "failed":
            raise
