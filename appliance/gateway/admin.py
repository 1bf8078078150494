"""``/admin/v1``: what ``sovctl`` asks of a running appliance.

Lists are answered as ``{"data": […]}``. Every change is on the ledger before it is acknowledged,
and is refused while the ledger cannot be written.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp

from appliance.egress import live
from appliance.errors import ApplianceError, FileUnreadable
from appliance.gateway.audit import Audit
from appliance.gateway.calls import Call
from appliance.gateway.identity import Identities
from appliance.gateway.internal import Serving
from appliance.gateway.nodes import Node
from appliance.gateway.tuning_jobs import TuningJobs
from appliance.i18n import _
from appliance.layout import Home
from appliance.ledger.event import Event
from appliance.manifests.tuning import Name, TuningSpec
from appliance.progress import Silent
from appliance.registry import Job, Registry, Role
from appliance.tuning.datasets import import_dataset

_HEARTBEATS_EVERY = 20  # turns of half a second without a line


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KeyRequest(_Body):
    """``POST /admin/v1/keys``."""

    name: str
    role: Role = Role.USER


class DatasetRequest(_Body):
    """``POST /admin/v1/datasets``: ``path`` is a file or folder under the staging folder."""

    name: Name
    path: Path


class Admin:
    """Handlers for keys, data sets, jobs and status."""

    def __init__(
        self,
        *,
        home: Home,
        registry: Registry,
        identities: Identities,
        audit: Audit,
        jobs: TuningJobs,
        serve: Serving,
        nodes: Callable[[], Awaitable[list[Node]]],
    ) -> None:
        self._home = home
        self._registry = registry
        self._identities = identities
        self._audit = audit
        self._jobs = jobs
        self._serve = serve
        self._nodes = nodes

    async def status(self, call: Call) -> ASGIApp:
        """Everything at a glance. ``serve`` is null while the model service does not answer."""
        nodes, serve = await asyncio.gather(self._nodes(), self._serve_state())
        models, adapters, jobs = await asyncio.to_thread(self._records)
        seen = await asyncio.to_thread(live.observe, "self")
        return JSONResponse(
            {
                "nodes": [node.model_dump() for node in nodes],
                "serve": serve,
                "models": models,
                "adapters": adapters,
                "jobs": jobs,
                "seal": _seal(seen),
                "ledger": {"writable": self._audit.writable},
            }
        )

    # --- keys -----------------------------------------------------------------------------------

    async def keys(self, call: Call) -> ASGIApp:
        """All keys; never their plaintext."""
        return _data(await asyncio.to_thread(self._registry.api_keys.list))

    async def key_create(self, call: Call) -> ASGIApp:
        """Make a key; the answer is the one time its plaintext is shown."""
        wanted = await call.model(KeyRequest)
        self._audit.demand()
        key, plaintext = await asyncio.to_thread(
            self._registry.api_keys.create, wanted.name, wanted.role
        )
        subject = {"key": key.id, "role": key.role.value}
        try:
            await self._audit.record(Event(call.actor, "key.create", subject))
        except ApplianceError:
            await asyncio.to_thread(self._registry.api_keys.revoke, key.id)
            raise
        return JSONResponse({**key.as_json(), "key": plaintext}, 201)

    async def key_revoke(self, call: Call) -> ASGIApp:
        """Revoke a key, at once. Raises :class:`RecordMissing`."""
        key = await asyncio.to_thread(self._registry.api_keys.revoke, call.parameters["id"])
        self._identities.forget()
        await self._audit.record(Event(call.actor, "key.revoke", {"key": key.id}))
        return JSONResponse(key.as_json())

    # --- models and data sets -------------------------------------------------------------------

    async def model_records(self, call: Call) -> ASGIApp:
        """The base models of the current release."""
        return _data(await asyncio.to_thread(self._registry.models.list))

    async def datasets(self, call: Call) -> ASGIApp:
        """The data sets."""
        return _data(await asyncio.to_thread(self._registry.datasets.list))

    async def dataset_import(self, call: Call) -> ASGIApp:
        """Check, copy and register what was staged. The staged copy is the caller's to remove."""
        wanted = await call.model(DatasetRequest)
        self._audit.demand()
        source = self._staged(call, wanted.path)
        dataset = await asyncio.to_thread(
            import_dataset,
            self._home,
            self._registry,
            source,
            wanted.name,
            call.actor,
            Silent(),
        )
        subject = {"dataset": dataset.name, "digest": dataset.digest}
        await self._audit.record(Event(call.actor, "dataset.import", subject))
        return JSONResponse(dataset.as_json(), 201)

    def _staged(self, call: Call, path: Path) -> Path:
        """``path``, once it is certain to lie under the staging folder, links followed."""
        staging = (self._home.datasets / "staging").resolve()
        try:
            source = (staging / path).resolve()
            # Before looking whether it exists: what lies elsewhere is nobody's to ask here.
            if not source.is_relative_to(staging) or source == staging:
                raise call.malformed(_("The path is not under the staging folder."))
            source.stat()
        except (OSError, ValueError) as error:
            raise FileUnreadable(path=path, reason=error) from error
        return source

    # --- jobs -----------------------------------------------------------------------------------

    async def jobs(self, call: Call) -> ASGIApp:
        """All jobs, newest first."""
        return JSONResponse({"data": [described(job) for job in await self._jobs.list()]})

    async def job_submit(self, call: Call) -> ASGIApp:
        """Start a tuning job."""
        spec = await call.model(TuningSpec)
        return JSONResponse(described(await self._jobs.submit(spec, call.actor)), 201)

    async def job(self, call: Call) -> ASGIApp:
        """One job."""
        return JSONResponse(described(await self._jobs.get(call.parameters["id"])))

    async def job_cancel(self, call: Call) -> ASGIApp:
        """Ask a job to stop."""
        return JSONResponse(described(await self._jobs.cancel(call.parameters["id"], call.actor)))

    async def job_logs(self, call: Call) -> ASGIApp:
        """The last thousand lines the job printed."""
        return JSONResponse({"text": await self._jobs.logs(call.parameters["id"], 1000)})

    async def job_events(self, call: Call) -> ASGIApp:
        """``progress.jsonl`` as server-sent events; the last one is ``{"job": record}``."""
        await self._jobs.get(call.parameters["id"])
        events = self._events(call.parameters["id"])
        return StreamingResponse(events, media_type="text/event-stream")

    async def _events(self, identifier: str) -> AsyncIterator[bytes]:
        silence = 0
        async for line in self._jobs.progress(identifier):
            silence = silence + 1 if line is None else 0
            if line is not None:
                yield f"data: {json.dumps(line)}\n\n".encode()
            elif silence % _HEARTBEATS_EVERY == 0:
                yield b": waiting\n\n"
        job = await self._jobs.get(identifier)
        yield f"data: {json.dumps({'job': described(job)})}\n\n".encode()

    # --- parts of the status --------------------------------------------------------------------

    async def _serve_state(self) -> dict[str, Any] | None:
        try:
            return await self._serve.state()
        except ApplianceError:
            return None

    def _records(self) -> tuple[list[Any], list[Any], list[Any]]:
        registry = self._registry
        return (
            [model.as_json() for model in registry.models.list()],
            [adapter.as_json() for adapter in registry.adapters.list()],
            [described(job) for job in registry.jobs.list()[:20]],
        )


def described(job: Job) -> dict[str, Any]:
    """A job as JSON, its error an object."""
    content = job.as_json()
    content["error"] = json.loads(job.error) if job.error else None
    return content


def _data(records: Any) -> JSONResponse:
    return JSONResponse({"data": [record.as_json() for record in records]})


def _seal(seen: live.Observation) -> dict[str, Any]:
    """What this process sees of its seal; a firewall it cannot see, only the routes."""
    if os.environ.get("SOVCTL_SEAL") == "firewall":
        return {"kind": "firewall", "default_routes": list(seen.default_routes)}
    return {"kind": "namespace", "sealed": seen.sealed, "no_way_out": seen.no_way_out}
