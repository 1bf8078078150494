"""Tuning jobs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypedDict, Unpack

from sqlalchemy import select

from appliance.errors import RecordMissing, TransitionRefused
from appliance.registry.records import Job
from appliance.registry.sessions import Sessions
from appliance.registry.states import JobStatus, job_may_become
from appliance.registry.tables import JobRow


class JobChanges(TypedDict, total=False):
    """What of a job may change after it was submitted."""

    submission_id: str | None
    status: JobStatus
    started: datetime | None
    finished: datetime | None
    adapter: str | None
    error: str | None


class Jobs:
    """Tuning jobs, from submission to their end."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def add(self, *, spec: Mapping[str, Any], actor: str, base: str, dataset: str) -> Job:
        """Record a queued job under a new id (``ftjob-`` and 24 hex digits, as OpenAI's look)."""
        row = JobRow(
            id=f"ftjob-{secrets.token_hex(12)}",
            submission_id=None,
            spec=dict(spec),
            status=JobStatus.QUEUED.value,
            created=datetime.now(UTC),
            actor=actor,
            base=base,
            dataset=dataset,
        )
        with self._sessions.write() as session:
            session.add(row)
            session.flush()
            return _record(row)

    def update(self, identifier: str, **changes: Unpack[JobChanges]) -> Job:
        """Change a job. ``started`` and ``finished`` are set with the status if not given.

        Raises:
            RecordMissing: no job has this id.
            TransitionRefused: the job is past the status asked for (a finished job stays finished).
        """
        with self._sessions.write() as session:
            row = session.get(JobRow, identifier)
            if row is None:
                raise RecordMissing(kind="job", name=identifier, group="tune")
            status = changes.pop("status", None)
            if status is not None:
                _enter(row, status, datetime.now(UTC))
            for field, value in changes.items():
                setattr(row, field, value)
            return _record(row)

    def get(self, identifier: str) -> Job:
        """The job with this id.

        Raises:
            RecordMissing: there is none.
        """
        with self._sessions.read() as session:
            row = session.get(JobRow, identifier)
            if row is None:
                raise RecordMissing(kind="job", name=identifier, group="tune")
            return _record(row)

    def list(self) -> list[Job]:
        """All jobs, newest first."""
        with self._sessions.read() as session:
            rows = session.scalars(select(JobRow).order_by(JobRow.created.desc(), JobRow.id))
            return [_record(row) for row in rows]


def _enter(row: JobRow, status: JobStatus, now: datetime) -> None:
    if not job_may_become(JobStatus(row.status), status):
        raise TransitionRefused(
            kind="job", name=row.id, now=row.status, wanted=status, group="tune"
        )
    row.status = status.value
    if status is JobStatus.RUNNING:
        row.started = row.started or now
    if status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED):
        row.finished = row.finished or now


def _record(row: JobRow) -> Job:
    return Job(
        id=row.id,
        submission_id=row.submission_id,
        spec=row.spec,
        status=JobStatus(row.status),
        created=row.created,
        started=row.started,
        finished=row.finished,
        actor=row.actor,
        base=row.base,
        dataset=row.dataset,
        adapter=row.adapter,
        error=row.error,
    )
