"""Tuning jobs from submission to a signed adapter, for both APIs that offer them.

A job is a registry record, a Ray job and a run folder. The folder is named by the run's digest, so
the same spec on the same content finds its checkpoints again; Ray's submission id carries that name
(``tune-<run>-<job>``), so a restarted gateway finds the folder of every job it has to watch.

The job computes; the control plane, here, signs and registers what came out
(``docs/adr/0007-control-plane-signs.md``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from appliance.cluster.jobs import FINISHED
from appliance.cluster.jobs import Job as RayJob
from appliance.errors import (
    ApplianceError,
    JobUnknown,
    NameTaken,
    RayRefused,
    RunInProgress,
    TuneStopped,
    TuneWorkersTooMany,
)
from appliance.gateway.audit import Audit
from appliance.gateway.release_catalogue import ACTOR
from appliance.i18n import _
from appliance.layout import Home
from appliance.ledger.event import Event, Outcome
from appliance.manifests.tuning import TuningSpec
from appliance.registry import Adapter, Job, JobStatus, Registry
from appliance.tuning.run import Resolved, Run, RunFolder

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
_STOP_WITHIN_S = 20.0
_ACTIVE = (JobStatus.QUEUED, JobStatus.RUNNING)


class RayJobs(Protocol):
    """What is needed of :class:`appliance.cluster.jobs.Jobs`; every call blocks."""

    def submit(
        self,
        argv: Sequence[str],
        *,
        run_dir: Path,
        env: Mapping[str, str],
        metadata: Mapping[str, str],
        submission_id: str,
    ) -> str: ...

    def status(self, job_id: str) -> RayJob: ...

    def cancel(self, job_id: str) -> bool: ...

    def tail(self, job_id: str, lines: int) -> str: ...


class NoTuning:
    """Ray's jobs on a site where no domain tunes: each is refused."""

    def submit(self, *_arguments: object, **_named: object) -> str:
        """Raises :class:`RayRefused`."""
        raise RayRefused(action="submit", reason=_("No trust domain of this site tunes models."))

    def status(self, job_id: str) -> RayJob:
        """Raises :class:`JobUnknown`."""
        raise JobUnknown(job=job_id)

    def cancel(self, job_id: str) -> bool:
        """Raises :class:`JobUnknown`."""
        raise JobUnknown(job=job_id)

    def tail(self, job_id: str, lines: int) -> str:
        """Raises :class:`JobUnknown`."""
        raise JobUnknown(job=job_id)


Register = Callable[[RunFolder, Job], Adapter]
"""Signs and registers the adapter of a finished run. Raises :class:`ApplianceError`."""


class TuningJobs:
    """Submits, watches and ends tuning jobs. Use as an asynchronous context manager: it watches."""

    def __init__(
        self,
        home: Home,
        registry: Registry,
        ray: RayJobs,
        register: Register,
        audit: Audit,
        *,
        hosts: int = 1,
    ) -> None:
        self._hosts = hosts
        self._home = home
        self._registry = registry
        self._ray = ray
        self._register = register
        self._audit = audit
        self._stop_by: dict[str, float] = {}
        self._submitting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> TuningJobs:
        self._task = asyncio.create_task(self._watch(), name="tuning-jobs")
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def submit(self, spec: TuningSpec, actor: str) -> Job:
        """Start a job.

        Raises:
            TuneWorkersTooMany: it wants more workers than there are hosts.
            RecordMissing: there is no such base or data set.
            NameTaken: an adapter of that name exists.
            RunInProgress: the same run, or one for the same adapter, is under way.
            RayRefused: Ray did not take it.
            AuditUnavailable: it could not be recorded; nothing was started.
        """
        self._audit.demand()
        if spec.workers > self._hosts:
            raise TuneWorkersTooMany(workers=spec.workers, hosts=self._hosts)
        async with self._submitting:
            run = await asyncio.to_thread(self._resolve, spec)
            folder = self._folder_of_run(run)
            job = await asyncio.to_thread(self._enter, run, actor)
            subject = {
                "job": job.id,
                "adapter": spec.name,
                "base": run.base.digest,
                "dataset": run.dataset.digest,
                "run": run.digest(),
            }
            try:
                await self._audit.record(Event(actor, "tune.submit", subject))
                return await asyncio.to_thread(self._start, job, run, folder)
            except ApplianceError as error:
                await asyncio.to_thread(self._fail, job, error)
                raise

    async def cancel(self, identifier: str, actor: str) -> Job:
        """Ask a job to stop: its step in hand is saved; after 20 s Ray ends it.

        Raises :class:`RecordMissing`. A finished job stays as it is.
        """
        self._audit.demand()
        job = await asyncio.to_thread(self._registry.jobs.get, identifier)
        if job.status not in _ACTIVE:
            return job
        await self._audit.record(Event(actor, "tune.cancel", {"job": job.id}))
        folder = self.folder(job)
        if folder is not None:
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(folder.stop.touch)
        # A job that Ray has not started yet has no step in hand to wait for.
        wait = _STOP_WITHIN_S if job.status is JobStatus.RUNNING else 0.0
        self._stop_by.setdefault(job.id, time.monotonic() + wait)
        return job

    async def get(self, identifier: str) -> Job:
        """One job. Raises :class:`RecordMissing`."""
        return await asyncio.to_thread(self._registry.jobs.get, identifier)

    async def list(self) -> list[Job]:
        """All jobs, newest first."""
        return await asyncio.to_thread(self._registry.jobs.list)

    async def logs(self, identifier: str, lines: int) -> str:
        """The last lines the job printed; empty if it never reached Ray."""
        job = await self.get(identifier)
        if job.submission_id is None:
            return ""
        return await asyncio.to_thread(self._ray.tail, job.submission_id, lines)

    async def progress(self, identifier: str) -> AsyncIterator[dict[str, Any] | None]:
        """The job's progress lines as they are written, until it ends; None every second of
        silence."""
        job, offset = await self.get(identifier), 0
        while True:
            ended = job.status not in _ACTIVE
            folder = self.folder(job)
            lines, offset = await asyncio.to_thread(_read_lines, folder, offset)
            for line in lines:
                yield line
            if ended:
                return
            if not lines:
                yield None
            await asyncio.sleep(0.5)
            job = await self.get(identifier)

    def folder(self, job: Job) -> RunFolder | None:
        """Where the job runs, if it got that far."""
        if job.submission_id is None:
            return None
        _tune, run, _job = job.submission_id.split("-")
        return RunFolder(self._home.runs / run)

    # --- starting -------------------------------------------------------------------------------

    def _resolve(self, spec: TuningSpec) -> Run:
        model = self._registry.models.get(spec.base)
        dataset = self._registry.datasets.get(spec.dataset)
        base = (self._home.current / "models" / spec.base).resolve()
        return Run(
            spec=spec,
            base=Resolved(name=spec.base, path=base, digest=model.digest),
            dataset=Resolved(name=spec.dataset, path=Path(dataset.path), digest=dataset.digest),
            threads=None,
        )

    def _enter(self, run: Run, actor: str) -> Job:
        """Record the job, unless its adapter exists or is being made."""
        spec = run.spec
        for adapter in self._registry.adapters.list():
            if adapter.name == spec.name:
                raise NameTaken(
                    kind="adapter", name=adapter.name, digest=adapter.digest, group="adapters"
                )
        for job in self._registry.jobs.list():
            folder = self.folder(job)
            same_run = folder is not None and folder.root == self._folder_of_run(run).root
            if job.status in _ACTIVE and (same_run or job.spec.get("name") == spec.name):
                raise RunInProgress(adapter=spec.name, job=job.id)
        return self._registry.jobs.add(
            spec=spec.model_dump(mode="json"), actor=actor, base=spec.base, dataset=spec.dataset
        )

    def _start(self, job: Job, run: Run, folder: RunFolder) -> Job:
        submission = f"tune-{folder.root.name}-{job.id.removeprefix('ftjob-')}"
        # Written first: if we die after Ray has taken it, the next gateway knows what to watch.
        job = self._registry.jobs.update(job.id, submission_id=submission)
        for stale in (folder.stop, folder.error, folder.progress):
            stale.unlink(missing_ok=True)
        folder.create(run)
        argv = (sys.executable, "-m", "appliance.tuning.job", str(folder.root))
        self._ray.submit(
            argv, run_dir=folder.root, env={}, metadata={"job": job.id}, submission_id=submission
        )
        return job

    def _folder_of_run(self, run: Run) -> RunFolder:
        return RunFolder(self._home.runs / run.digest().removeprefix("sha256:")[:16])

    # --- watching -------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look at every unfinished job once a second, for as long as the gateway runs."""
        while True:
            try:
                # Not while a job is being submitted: Ray does not know it yet.
                async with self._submitting:
                    jobs = await self.list()
                    for job in jobs:
                        if job.status in _ACTIVE:
                            await self._look(job)
            except Exception as error:  # noqa: BLE001 - Ray or the disk may be back in a second
                _LOG.warning("jobs could not be looked at: %s", error)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self, job: Job) -> None:
        """Bring one job's record up to what Ray says."""
        folder = self.folder(job)
        if job.submission_id is None or folder is None:
            await self._finish(job, RayRefused(action="submit", reason="The gateway ended before."))
            return
        try:
            seen = await asyncio.to_thread(self._ray.status, job.submission_id)
        except JobUnknown as unknown:
            # Ray was restarted since. The run may have finished just before.
            outcome = None if folder.result_file.exists() else unknown
            await self._finish(job, outcome)
            return
        if seen.status == "RUNNING" and job.status is JobStatus.QUEUED:
            await asyncio.to_thread(self._registry.jobs.update, job.id, status=JobStatus.RUNNING)
        if seen.status in FINISHED:
            await self._finish(job, _failure(seen, folder))
        elif time.monotonic() > self._stop_by.get(job.id, float("inf")):
            await asyncio.to_thread(self._ray.cancel, job.submission_id)

    async def _finish(self, job: Job, failure: ApplianceError | None) -> None:
        """Enter the end of a job in the registry and on the ledger; sign what came out."""
        asked = self._stop_by.pop(job.id, None) is not None
        if failure is None:
            failure = await self._register_adapter(job)
        if failure is None:
            status: JobStatus = JobStatus.SUCCEEDED
            outcome: Outcome = "ok"
            await asyncio.to_thread(
                self._registry.jobs.update, job.id, status=status, adapter=job.spec["name"]
            )
        elif asked or isinstance(failure, TuneStopped):
            status, outcome = JobStatus.CANCELLED, "failed"
            await asyncio.to_thread(self._registry.jobs.update, job.id, status=status)
        else:
            status, outcome = JobStatus.FAILED, "failed"
            await asyncio.to_thread(self._fail, job, failure)
        subject = {"job": job.id, "status": status.value, "for": job.actor}
        self._audit.note(Event(ACTOR, "tune.finish", subject, outcome))

    async def _register_adapter(self, job: Job) -> ApplianceError | None:
        folder = self.folder(job)
        assert folder is not None
        try:
            adapter = await asyncio.to_thread(self._register, folder, job)
        except ApplianceError as error:
            return error
        subject = {"adapter": adapter.name, "digest": adapter.digest, "job": job.id}
        self._audit.note(Event(ACTOR, "adapter.register", subject))
        return None

    def _fail(self, job: Job, error: ApplianceError) -> None:
        folder = self.folder(self._registry.jobs.get(job.id))
        if folder is not None and folder.root.is_dir() and not folder.error.exists():
            folder.fail(error)
        told = json.dumps(error.as_json(), ensure_ascii=False)
        self._registry.jobs.update(job.id, status=JobStatus.FAILED, error=told)


def _failure(seen: RayJob, folder: RunFolder) -> ApplianceError | None:
    """Why a job that Ray says has ended did not succeed; None: it did."""
    if seen.status == "SUCCEEDED":
        return None
    recorded = _recorded(folder)
    if recorded is not None:
        return recorded
    if seen.status == "STOPPED":
        return TuneStopped(step="?", steps="?")
    last = (seen.message.strip().splitlines() or ["?"])[-1]
    return RayRefused(action="tune", reason=last[:500])


def _recorded(folder: RunFolder) -> ApplianceError | None:
    """The error that the job left in ``error.json``, as the class it was."""
    try:
        body = json.loads(folder.error.read_bytes())
        kind = ApplianceError.catalogue[body["code"]]
        return kind(**body["fields"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_lines(folder: RunFolder | None, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines of ``progress.jsonl`` from byte ``offset`` on, and where they end."""
    if folder is None:
        return [], offset
    try:
        with folder.progress.open("rb") as file:
            file.seek(offset)
            content = file.read(1 << 20)
    except OSError:
        return [], offset
    end = content.rfind(b"\n") + 1
    return [json.loads(line) for line in content[:end].splitlines()], offset + end
