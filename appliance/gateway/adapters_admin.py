"""``/admin/v1/adapters`` and the proof of the seal: what touches the running model service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from appliance.egress.probe import ProbeResult
from appliance.egress.verdict import judge
from appliance.errors import ApplianceError
from appliance.gateway.audit import Audit
from appliance.gateway.calls import Call
from appliance.gateway.internal import Loadings, Serving
from appliance.ledger.event import Event, Outcome
from appliance.registry import Adapter, Registry

Verb = Callable[[str], Adapter]
"""``tuning.adapters.promote`` or ``retire`` bound to this installation: blocks."""

Bring = Callable[[str, str], Adapter]
"""``tuning.adapters.bring`` bound to this installation, by release and name: blocks."""

Probe = Callable[[], list[ProbeResult]]


class BroughtAdapter(BaseModel):
    """The body of ``POST /admin/v1/adapters``."""

    model_config = ConfigDict(extra="forbid")

    release: str
    name: str


class Adapters:
    """Handlers for adapters."""

    def __init__(
        self,
        registry: Registry,
        audit: Audit,
        serve: Serving,
        *,
        bring: Bring,
        promote: Verb,
        retire: Verb,
    ) -> None:
        self._registry = registry
        self._audit = audit
        self._serve = serve
        self._bring = bring
        self._promote = promote
        self._retire = retire

    async def adapters(self, call: Call) -> ASGIApp:
        """All adapters; ``loaded`` says whether one is served now (null: Serve does not answer),
        ``replicas`` on how many of how many."""
        records = await asyncio.to_thread(self._registry.adapters.list)
        loaded = await self._loaded()
        return JSONResponse({"data": [_described(record, loaded) for record in records]})

    async def adapter(self, call: Call) -> ASGIApp:
        """One adapter, with its card."""
        record = await self._record(call)
        card = await asyncio.to_thread(_card, Path(record.card_path))
        return JSONResponse({**_described(record, await self._loaded()), "card": card})

    async def adapter_bring(self, call: Call) -> ASGIApp:
        """Register an adapter that a bundle laid out under ``releases`` brought."""
        wanted = await call.model(BroughtAdapter)
        self._audit.demand()
        record = await asyncio.to_thread(self._bring, wanted.release, wanted.name)
        subject = {"adapter": record.name, "digest": record.digest, "release": wanted.release}
        await self._audit.record(Event(call.actor, "adapter.register", subject))
        return JSONResponse(record.as_json(), 201)

    async def adapter_promote(self, call: Call) -> ASGIApp:
        """Allow an adapter to be served."""
        return await self._turn(call, "adapter.promote", self._promote)

    async def adapter_retire(self, call: Call) -> ASGIApp:
        """Take an adapter out of service: unloaded if it is loaded, and not loadable any more."""
        answer = await self._turn(call, "adapter.retire", self._retire)
        loadings = await self._loaded()
        if loadings is not None and call.parameters["name"] in loadings.loaded:
            await self._serve.unload(call.parameters["name"])
        return answer

    async def adapter_load(self, call: Call) -> ASGIApp:
        """Serve an adapter. Serve verifies signature, base and status itself, and may refuse."""
        return await self._tell_serve(call, "adapter.load")

    async def adapter_unload(self, call: Call) -> ASGIApp:
        """Stop serving an adapter, without retiring it."""
        return await self._tell_serve(call, "adapter.unload")

    async def _turn(self, call: Call, action: str, verb: Verb) -> ASGIApp:
        self._audit.demand()
        name = call.parameters["name"]
        record = await asyncio.to_thread(verb, name)
        subject = {"adapter": record.name, "digest": record.digest}
        await self._audit.record(Event(call.actor, action, subject))
        return JSONResponse(record.as_json())

    async def _tell_serve(self, call: Call, action: str) -> ASGIApp:
        self._audit.demand()
        record = await self._record(call)
        subject = {"adapter": record.name, "digest": record.digest}
        try:
            if action == "adapter.load":
                await self._serve.load(record)
            else:
                await self._serve.unload(record.name)
        except ApplianceError as error:
            self._audit.note(Event(call.actor, action, {**subject, "code": error.code}, "refused"))
            raise
        await self._audit.record(Event(call.actor, action, subject))
        return JSONResponse(_described(record, await self._loaded()))

    async def _record(self, call: Call) -> Adapter:
        return await asyncio.to_thread(self._registry.adapters.get, call.parameters["name"])

    async def _loaded(self) -> Loadings | None:
        try:
            return await self._serve.loadings()
        except ApplianceError:
            return None


class Egress:
    """The handler of ``/admin/v1/egress/prove``: probes from every place where code runs."""

    def __init__(self, audit: Audit, serve: Serving, probes: Mapping[str, Probe]) -> None:
        self._audit = audit
        self._serve = serve
        self._probes = probes

    async def egress_prove(self, call: Call) -> ASGIApp:
        """The verdict over all places. A place that cannot be asked leaves it inconclusive."""
        self._audit.demand()
        asked = [asyncio.to_thread(probe) for probe in self._probes.values()]
        replicas = asyncio.create_task(self._from_replicas())
        found = await asyncio.gather(*asked, return_exceptions=True)
        results = {
            name: _unclear(name, result) if isinstance(result, BaseException) else result
            for name, result in zip(self._probes, found, strict=True)
        }
        results |= await replicas
        verdict = judge(results)
        outcomes: dict[str, Outcome] = {"closed": "ok"}
        subject = {"verdict": verdict.answer, "places": ",".join(results)}
        outcome = outcomes.get(verdict.answer, "failed")
        await self._audit.record(Event(call.actor, "egress.prove", subject, outcome))
        return JSONResponse(verdict.as_json())

    async def _from_replicas(self) -> dict[str, list[ProbeResult]]:
        try:
            return await self._serve.probe()
        except ApplianceError as error:
            return {"serve-replica": _unclear("serve-replica", error)}


def _unclear(place: str, error: BaseException) -> list[ProbeResult]:
    return [ProbeResult("seal", place, "unclear", str(error))]


def _described(record: Adapter, loadings: Loadings | None) -> dict[str, Any]:
    if loadings is None:
        return {**record.as_json(), "loaded": None}
    count = loadings.loaded.get(record.name, 0)
    replicas = {"loaded": count, "of": loadings.replicas}
    return {**record.as_json(), "loaded": count > 0, "replicas": replicas}


def _card(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
