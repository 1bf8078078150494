"""Probes of the seal from a Ray task and from a Ray job, as the gateway asks for them.

Each place makes its own control listener, so a control shows that *this* process can send. The
Serve replica and the gateway call :func:`probe_here` themselves.

``python -m appliance.cluster.prove RUN_DIR job|task`` is the job's entry point.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from appliance.cluster import ports
from appliance.cluster.files import write_whole
from appliance.cluster.jobs import FINISHED, Jobs
from appliance.egress.probe import ProbeResult, control_listener, probe_all
from appliance.egress.verdict import results_from_json
from appliance.errors import RayRefused
from appliance.layout import Home

_RESULT = "probe.json"
_TASK_SECONDS, _JOB_SECONDS = 60.0, 120.0


def probe_here() -> list[ProbeResult]:
    """Probe from this process."""
    with control_listener() as listener:
        return probe_all(listener)


def as_json(results: Iterable[ProbeResult]) -> list[dict[str, str]]:
    """The form results travel in; :func:`appliance.egress.verdict.results_from_json` reads it."""
    return [asdict(result) for result in results]


def _probe_as_json() -> list[dict[str, str]]:
    return as_json(probe_here())


def prove_from_ray_task(home: Home) -> list[ProbeResult]:
    """Probe from a fresh Ray worker. Blocks up to a minute; raises :class:`RayRefused`."""
    del home  # a task needs no folder; the two helpers are called alike
    import ray

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", ports.RAY_ADDRESS)
        ray.init(address=address, log_to_driver=False, configure_logging=False)

    probe = ray.remote(num_cpus=0, max_retries=0)(_probe_as_json)
    try:
        return list(results_from_json(ray.get(probe.remote(), timeout=_TASK_SECONDS)))
    except ray.exceptions.RayError as error:
        raise RayRefused(action="prove", reason=type(error).__name__) from error


def prove_from_ray_job(home: Home, jobs: Jobs | None = None) -> list[ProbeResult]:
    """Probe from a Ray job, submitted as a tuning job is. Blocks up to two minutes."""
    return _prove_from_job(home, jobs or Jobs(), "job")


def prove_from_task_of_job(home: Home, jobs: Jobs) -> list[ProbeResult]:
    """Probe from a Ray worker as :func:`prove_from_ray_task` does, for a caller that is not in the
    cluster: a job there starts the task. Blocks up to two minutes."""
    return _prove_from_job(home, jobs, "task")


def _prove_from_job(home: Home, jobs: Jobs, place: str) -> list[ProbeResult]:
    name = f"egress-{uuid.uuid4().hex[:12]}"
    folder = home.runs / name
    folder.mkdir(parents=True, mode=0o700)
    argv = (sys.executable, "-m", "appliance.cluster.prove", str(folder), place)
    try:
        jobs.submit(
            argv, run_dir=folder, env={}, metadata={"kind": "egress-probe"}, submission_id=name
        )
        deadline = time.monotonic() + _JOB_SECONDS
        while (job := jobs.status(name)).status not in FINISHED:
            if time.monotonic() > deadline:
                jobs.cancel(name)
                raise RayRefused(action="prove", reason=f"job {name} did not end in time")
            time.sleep(0.5)
        if job.status != "SUCCEEDED":
            raise RayRefused(action="prove", reason=f"job {name}: {job.message}")
        return list(results_from_json(json.loads((folder / _RESULT).read_bytes())))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """The job: probe from itself or from a task, and leave the results in the folder named."""
    folder, place = Path(arguments[0]), arguments[1]
    results = probe_here() if place == "job" else prove_from_ray_task(Home.from_environment())
    write_whole(folder / _RESULT, json.dumps(as_json(results)).encode(), mode=0o600)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
