"""Ray jobs: submit, list, look at, cancel, read. A :class:`RayRefused` says why Ray would not.

Used from inside the seal (the gateway), where the environment holds the token's path and Ray adds
the token to every call by itself. ``ray`` is imported when the first call is made.

The entry point is a command line and stands in Ray's dashboard and logs: it holds no secret.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from appliance.cluster import ports
from appliance.errors import JobUnknown, RayRefused

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
FINISHED: frozenset[Status] = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})


@dataclass(frozen=True, slots=True)
class Job:
    """A job as Ray knows it. ``message`` is Ray's reason, times are UTC."""

    job_id: str
    status: Status
    entrypoint: str
    message: str
    metadata: Mapping[str, str]
    started: datetime | None
    ended: datetime | None


class Jobs:
    """The jobs of this appliance's Ray."""

    def __init__(self, address: str = ports.DASHBOARD_URL) -> None:
        self._address = address
        self._client: JobSubmissionClient | None = None

    def submit(
        self,
        argv: Sequence[str],
        *,
        run_dir: Path,
        env: Mapping[str, str],
        metadata: Mapping[str, str],
        submission_id: str,
    ) -> str:
        """Start ``argv`` as a job whose working folder is ``run_dir``; returns ``submission_id``.

        A second submission of the same id is refused by Ray (:class:`RayRefused`). ``env`` is added
        to the environment every inner process has; it must hold no secret, Ray shows it.
        """
        entrypoint = f"cd {shlex.quote(str(run_dir))} && exec {shlex.join(argv)}"
        with _operator_errors("submit"):
            # No working_dir: Ray would pack the folder into its object store. Paths are the same
            # for every process in the seal.
            return str(
                self._connect().submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env={"env_vars": dict(env)},
                    metadata=dict(metadata),
                )
            )

    def list(self) -> tuple[Job, ...]:
        """All jobs since Ray started that were submitted through this interface, oldest first."""
        with _operator_errors("list jobs"):
            found = self._connect().list_jobs()
        jobs = [_job(details) for details in found if details.submission_id]
        never = datetime.min.replace(tzinfo=UTC)
        return tuple(sorted(jobs, key=lambda job: job.started or never))

    def status(self, job_id: str) -> Job:
        """One job. Raises :class:`JobUnknown`."""
        with _operator_errors("look at a job", job_id):
            return _job(self._connect().get_job_info(job_id))

    def cancel(self, job_id: str) -> bool:
        """Ask Ray to stop it; False if it had ended already. Raises :class:`JobUnknown`."""
        with _operator_errors("cancel", job_id):
            return bool(self._connect().stop_job(job_id))

    def tail(self, job_id: str, lines: int) -> str:
        """The last ``lines`` lines it printed. Raises :class:`JobUnknown`."""
        with _operator_errors("read logs", job_id):
            text = str(self._connect().get_job_logs(job_id))
        return "\n".join(text.splitlines()[-lines:])

    def _connect(self) -> JobSubmissionClient:
        if self._client is None:
            from ray.job_submission import JobSubmissionClient

            self._client = JobSubmissionClient(self._address)
        return self._client


def _job(details: JobDetails) -> Job:
    return Job(
        job_id=str(details.submission_id),
        status=cast("Status", details.status.value),
        entrypoint=str(details.entrypoint),
        message=str(details.message or ""),
        metadata={str(key): str(value) for key, value in (details.metadata or {}).items()},
        started=_time(details.start_time),
        ended=_time(details.end_time),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


@contextmanager
def _operator_errors(action: str, job_id: str = "") -> Iterator[None]:
    """Ray's client raises RuntimeError for HTTP errors and ConnectionError when nobody is there."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        text = str(error)
        if job_id and ("404" in text or "does not exist" in text):
            raise JobUnknown(job=job_id) from error
        reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise RayRefused(action=action, reason=reason) from error
