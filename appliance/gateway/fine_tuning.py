"""OpenAI's fine-tuning API over the same jobs that ``sovctl tune`` submits.

Source: OpenAI API reference, "Fine-tuning" and "Files". Data sets appear as files named
``file-<data set>``; they are imported by an operator, never uploaded here, so only their list is
offered. ``hyperparameters`` are translated: an epoch is rows / batch size steps, the learning-rate
multiplier multiplies :class:`TuningSpec`'s default; ``auto`` and what is left out are its defaults.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from appliance.errors import RecordMissing, RoleInsufficient
from appliance.gateway.calls import Call
from appliance.gateway.tuning_jobs import TuningJobs
from appliance.manifests.tuning import TuningSpec
from appliance.registry import Dataset, Job, Registry, Role, permits

_FILE = "file-"
_NOT_A_NAME = re.compile(r"[^a-z0-9._-]+")
_EVENTS_AT_MOST = 1000

Auto = Literal["auto"]


class Hyperparameters(BaseModel):
    """OpenAI's three; ``auto`` leaves the choice to us."""

    model_config = ConfigDict(extra="forbid")

    n_epochs: int | Auto = "auto"
    batch_size: int | Auto = "auto"
    learning_rate_multiplier: float | Auto = "auto"


class _Supervised(BaseModel):
    model_config = ConfigDict(extra="forbid")

    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)


class _Method(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["supervised"]
    supervised: _Supervised = Field(default_factory=_Supervised)


class FineTune(BaseModel):
    """``POST /v1/fine_tuning/jobs``. What would change the result and is not offered is refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    training_file: str
    suffix: str | None = Field(None, max_length=48)
    seed: int | None = None
    hyperparameters: Hyperparameters | None = None
    method: _Method | None = None
    metadata: dict[str, str] | None = None

    def settings(self) -> Hyperparameters:
        """The hyperparameters, from where the newer or the older API puts them."""
        if self.method is not None:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or Hyperparameters()


def spec_of(wanted: FineTune, rows: int, tag: str) -> dict[str, Any]:
    """The fields of a :class:`TuningSpec` for ``wanted`` on a data set of ``rows`` rows.

    ``tag`` makes the adapter's name unique where no suffix gives one.
    """
    dataset = wanted.training_file.removeprefix(_FILE)
    settings = wanted.settings()
    default = TuningSpec.model_fields
    suffix = _NOT_A_NAME.sub("-", (wanted.suffix or "").lower()).strip("-.")
    fields: dict[str, Any] = {
        "name": suffix or f"{dataset}-{tag}"[:63],
        "base": wanted.model,
        "dataset": dataset,
    }
    batch = default["batch_rows"].default
    if settings.batch_size != "auto":
        fields["batch_rows"] = batch = settings.batch_size
    if settings.n_epochs != "auto":
        fields["steps"] = max(1, math.ceil(rows * settings.n_epochs / max(1, batch)))
        fields["warmup_steps"] = min(default["warmup_steps"].default, fields["steps"] - 1)
    if settings.learning_rate_multiplier != "auto":
        rate = default["learning_rate"].default
        fields["learning_rate"] = rate * settings.learning_rate_multiplier
    if wanted.seed is not None:
        fields["seed"] = wanted.seed
    return fields


class FineTuning:
    """Handlers of ``/v1/fine_tuning/jobs`` and ``/v1/files``."""

    def __init__(self, registry: Registry, jobs: TuningJobs) -> None:
        self._registry = registry
        self._jobs = jobs

    async def fine_tune(self, call: Call) -> ASGIApp:
        """Create a job."""
        wanted = await call.model(FineTune)
        name = wanted.training_file.removeprefix(_FILE)
        dataset = await asyncio.to_thread(self._registry.datasets.get, name)
        fields = spec_of(wanted, dataset.rows, secrets.token_hex(3))
        try:
            spec = TuningSpec.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(step) for step in first["loc"]) or "hyperparameters"
            raise call.malformed(f"{field}: {first['msg']}.") from error
        return JSONResponse(job_object(await self._jobs.submit(spec, call.actor)))

    async def fine_tunes(self, call: Call) -> ASGIApp:
        """Jobs, newest first."""
        objects = [job_object(job) for job in await self._jobs.list()]
        return _page(call, objects, 20)

    async def fine_tune_show(self, call: Call) -> ASGIApp:
        """One job."""
        return JSONResponse(job_object(await self._jobs.get(call.parameters["id"])))

    async def fine_tune_cancel(self, call: Call) -> ASGIApp:
        """Cancel a job: one's own, unless one is an operator."""
        job = await self._jobs.get(call.parameters["id"])
        assert call.caller is not None
        if job.actor != call.actor and not permits(call.caller.role, Role.OPERATOR):
            raise RoleInsufficient(
                action=call.route.name, role=call.caller.role.value, needed=Role.OPERATOR.value
            )
        return JSONResponse(job_object(await self._jobs.cancel(job.id, call.actor)))

    async def fine_tune_events(self, call: Call) -> ASGIApp:
        """A job's progress as OpenAI's events, newest first."""
        job = await self._jobs.get(call.parameters["id"])
        folder = self._jobs.folder(job)
        lines = await asyncio.to_thread(_lines, folder.progress) if folder else []
        return _page(call, [_event(job.id, at, line) for at, line in lines][::-1], 20)

    async def files(self, call: Call) -> ASGIApp:
        """Data sets as files."""
        datasets = await asyncio.to_thread(self._registry.datasets.list)
        return _page(call, await asyncio.to_thread(lambda: [*map(file_object, datasets)]), 10_000)

    async def file(self, call: Call) -> ASGIApp:
        """One data set as a file."""
        identifier = call.parameters["id"]
        if not identifier.startswith(_FILE):
            raise RecordMissing(kind="file", name=identifier, group="data")
        name = identifier.removeprefix(_FILE)
        dataset = await asyncio.to_thread(self._registry.datasets.get, name)
        return JSONResponse(await asyncio.to_thread(file_object, dataset))


def job_object(job: Job) -> dict[str, Any]:
    """OpenAI's ``fine_tuning.job``."""
    spec = job.spec
    hyperparameters = {
        "n_epochs": "auto",
        "batch_size": spec.get("batch_rows", "auto"),
        "learning_rate_multiplier": "auto",
    }
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": _seconds(job.created),
        "finished_at": _seconds(job.finished),
        "estimated_finish": None,
        "model": job.base,
        "fine_tuned_model": f"{job.base}:{job.adapter}" if job.adapter else None,
        "organization_id": "appliance",
        "status": job.status.value,
        "training_file": _FILE + job.dataset,
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "seed": spec.get("seed", 0),
        "error": _error(job),
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "integrations": [],
        "metadata": {"adapter": str(spec.get("name", "")), "steps": str(spec.get("steps", ""))},
    }


def file_object(dataset: Dataset) -> dict[str, Any]:
    """OpenAI's ``file``."""
    train = Path(dataset.path) / "train.jsonl"
    return {
        "id": _FILE + dataset.name,
        "object": "file",
        "bytes": train.stat().st_size if train.exists() else 0,
        "created_at": _seconds(dataset.created),
        "filename": f"{dataset.name}.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
    }


def _error(job: Job) -> dict[str, Any] | None:
    if not job.error:
        return None
    told = json.loads(job.error)
    message = f"{told['what']} {told['why']} {told['fix']}"
    return {"code": told["code"], "message": message, "param": None}


def _event(job: str, number: int, line: dict[str, Any]) -> dict[str, Any]:
    metrics = {"step": line["step"], "total_steps": line["steps"]}
    if line.get("loss") is not None:
        metrics["train_loss"] = line["loss"]
    if line.get("heldout_loss") is not None:
        metrics["valid_loss"] = line["heldout_loss"]
    return {
        "object": "fine_tuning.job.event",
        "id": f"ftevent-{job.removeprefix('ftjob-')}-{number}",
        "created_at": _seconds(datetime.fromisoformat(line["at"])),
        "level": "info",
        "message": f"{line['phase']}: {line['step']}/{line['steps']}",
        "type": "metrics" if line["phase"] == "train" else "message",
        "data": metrics,
    }


def _lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The newest progress lines with their numbers."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    numbered = list(enumerate(lines))[-_EVENTS_AT_MOST:]
    return [(number, json.loads(line)) for number, line in numbered]


def _page(call: Call, objects: list[dict[str, Any]], usual: int) -> JSONResponse:
    """One page of a list, by OpenAI's ``limit`` and ``after``."""
    query = parse_qs(call.scope.get("query_string", b"").decode("latin-1"))
    after, limit = query.get("after", [""])[0], query.get("limit", [""])[0]
    identifiers = [each["id"] for each in objects]
    start = identifiers.index(after) + 1 if after in identifiers else 0
    many = int(limit) if limit.isdecimal() and len(limit) < 6 and int(limit) else usual
    page = objects[start : start + many]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": start + many < len(objects),
        }
    )


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())
