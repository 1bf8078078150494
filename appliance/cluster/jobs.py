"""Ray jobs: submit, list, look at, cancel, read. A :class:`RayRefused` says why Ray would not.

It speaks the dashboard's REST API itself (``/api/jobs/``, stable since Ray 2.0): the gateway needs
no Ray for it, and Ray's own client cannot show the client certificate that a relay asks for. Used
from inside the seal, or from a site's gateway through the relay of the head.

The entry point is a command line and stands in Ray's dashboard and logs: it holds no secret.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote, urlsplit

from appliance.cluster import ports
from appliance.errors import JobUnknown, RayRefused

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
FINISHED: frozenset[Status] = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})
_WITHIN_S = 30.0


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


def token_of_environment() -> str:
    """The token that this process's environment points to; empty if it points to none."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(path).read_text(encoding="ascii").strip() if path else ""


@dataclass(frozen=True)
class Jobs:
    """The jobs of one Ray cluster. ``address`` is its dashboard's base URL, ``token`` Ray's;
    ``trust`` is whom to trust, and what to show, where that is a relay."""

    address: str = ports.DASHBOARD_URL
    token: str = field(default_factory=token_of_environment, repr=False)
    trust: ssl.SSLContext | None = None

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
        # No working_dir: Ray would pack the folder into its object store. Paths are the same for
        # every process in the seal, and on every host of a site.
        wanted = {
            "entrypoint": f"cd {shlex.quote(str(run_dir))} && exec {shlex.join(argv)}",
            "submission_id": submission_id,
            "runtime_env": {"env_vars": dict(env)},
            "metadata": dict(metadata),
        }
        return str(self._ask("submit", "POST", "", wanted)["submission_id"])

    def list(self) -> tuple[Job, ...]:
        """All jobs since Ray started that were submitted through this interface, oldest first."""
        found = self._ask("list jobs", "GET", "")
        jobs = [_job(details) for details in found if details.get("submission_id")]
        never = datetime.min.replace(tzinfo=UTC)
        return tuple(sorted(jobs, key=lambda job: job.started or never))

    def status(self, job_id: str) -> Job:
        """One job. Raises :class:`JobUnknown`."""
        return _job(self._ask("look at a job", "GET", job_id))

    def cancel(self, job_id: str) -> bool:
        """Ask Ray to stop it; False if it had ended already. Raises :class:`JobUnknown`."""
        return bool(self._ask("cancel", "POST", f"{job_id}/stop")["stopped"])

    def tail(self, job_id: str, lines: int) -> str:
        """The last ``lines`` lines it printed. Raises :class:`JobUnknown`."""
        text = str(self._ask("read logs", "GET", f"{job_id}/logs")["logs"])
        return "\n".join(text.splitlines()[-lines:])

    def _ask(self, action: str, method: str, path: str, wanted: Any = None) -> Any:
        """Ray's answer. Raises :class:`RayRefused`, and :class:`JobUnknown` for a 404 of a job."""
        headers = {"Content-Type": "application/json"} if wanted is not None else {}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        connection = self._connection()
        try:
            body = None if wanted is None else json.dumps(wanted).encode()
            connection.request(method, f"/api/jobs/{quote(path)}", body, headers)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status == http.HTTPStatus.NOT_FOUND and path:
                raise JobUnknown(job=path.partition("/")[0])
            if answer.status != http.HTTPStatus.OK:
                raise RayRefused(action=action, reason=_reason(answer.status, content))
            return json.loads(content)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = f"{type(error).__name__}: {error}"
            raise RayRefused(action=action, reason=reason) from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.address)
        host = parts.hostname or ports.HOST
        if parts.scheme == "https":
            return http.client.HTTPSConnection(
                host, parts.port, timeout=_WITHIN_S, context=self.trust
            )
        return http.client.HTTPConnection(host, parts.port, timeout=_WITHIN_S)


def _job(details: Mapping[str, Any]) -> Job:
    metadata = details.get("metadata") or {}
    return Job(
        job_id=str(details["submission_id"]),
        status=cast("Status", str(details["status"])),
        entrypoint=str(details["entrypoint"]),
        message=str(details.get("message") or ""),
        metadata={str(key): str(value) for key, value in metadata.items()},
        started=_time(details.get("start_time")),
        ended=_time(details.get("end_time")),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _reason(status: int, content: bytes) -> str:
    """Why Ray refused: the last line of its answer, which may be a traceback."""
    lines = [line.strip() for line in content.decode(errors="replace").splitlines()]
    told = [line for line in lines if line]
    return f"status {status}: {told[-1][:500]}" if told else f"status {status}"
