"""The lives of a job and of an adapter, as pure functions over their states."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """A tuning job; the names are those of OpenAI's fine-tuning API."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AdapterStatus(StrEnum):
    """An adapter; it exists in the registry only once it has been evaluated and signed."""

    EVALUATED = "evaluated"
    PROMOTED = "promoted"
    RETIRED = "retired"
    REVOKED = "revoked"


_JOB_NEXT: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset(
        {JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.RUNNING: frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}

_ADAPTER_NEXT: dict[AdapterStatus, frozenset[AdapterStatus]] = {
    AdapterStatus.EVALUATED: frozenset(
        {AdapterStatus.PROMOTED, AdapterStatus.RETIRED, AdapterStatus.REVOKED}
    ),
    AdapterStatus.PROMOTED: frozenset({AdapterStatus.RETIRED, AdapterStatus.REVOKED}),
    # A retired adapter may come back into service: that is the way back after a bad promotion.
    AdapterStatus.RETIRED: frozenset({AdapterStatus.PROMOTED, AdapterStatus.REVOKED}),
    # Revoked means "not to be trusted"; nothing leads out of it.
    AdapterStatus.REVOKED: frozenset(),
}


def job_may_become(now: JobStatus, wanted: JobStatus) -> bool:
    """Whether a job may go from ``now`` to ``wanted``; staying as it is is always allowed."""
    return wanted == now or wanted in _JOB_NEXT[now]


def adapter_may_become(now: AdapterStatus, wanted: AdapterStatus) -> bool:
    """Whether an adapter may go from ``now`` to ``wanted``; staying as it is is allowed."""
    return wanted == now or wanted in _ADAPTER_NEXT[now]
