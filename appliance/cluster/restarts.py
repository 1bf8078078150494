"""When a child that died is started again. Pure: takes times and returns times.

A child that ran for a minute has earned a fresh count; one that dies at once waits 1, 2, 4 … 60 s.
Before the appliance was ever healthy the third failure is final: an operator waits at the prompt,
and a defect that stops it three times will stop it a fourth.
"""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST_WAIT = 60.0
_EARNED_AFTER = 60.0
_FAILURES_AT_START = 3


@dataclass(frozen=True, slots=True)
class Record:
    """How often in a row a child failed, and when it may start again (monotonic seconds)."""

    failures: int = 0
    not_before: float = 0.0


def after_failure(record: Record, *, started: float, now: float) -> Record:
    """The record after a child started at ``started`` failed at ``now``."""
    failures = 1 if now - started >= _EARNED_AFTER else record.failures + 1
    return Record(failures, now + min(_LONGEST_WAIT, 2.0 ** (failures - 1)))


def is_final(record: Record, *, was_healthy: bool) -> bool:
    """Whether to give up."""
    return not was_healthy and record.failures >= _FAILURES_AT_START
