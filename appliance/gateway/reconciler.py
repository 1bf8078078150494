"""Every replica of a site's model server brought to the same adapters, and kept there.

The gateway remembers which adapters are to be served (``registry/served-adapters.json``), because
no replica outlives its host. Every two seconds it asks Serve's controller which replicas there are
and each of them what it has loaded, and loads and unloads until that is what it should be. So an
operator's command, a replica that was replaced, a host that came back and a gateway that was
restarted are one path. A replica takes requests only once it has been spoken to in this way; one
that no longer answers takes none, usually before a request has found out.

Whether an adapter may be served is asked of the registry each time it is brought to a replica: it
may have been retired or revoked since. The replica then verifies every file itself, against the key
it is told (:class:`appliance.serving.gate.SignedGate`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.egress.probe import ProbeResult
from appliance.errors import (
    AdapterRefused,
    ApplianceError,
    RecordMissing,
    ServiceUnavailable,
)
from appliance.gateway.audit import Audit
from appliance.gateway.internal import JSON, SERVICE, Loadings, probed, told
from appliance.gateway.model_service import ModelService
from appliance.gateway.release_catalogue import ACTOR
from appliance.gateway.replicas import Replica
from appliance.i18n import _
from appliance.ledger.event import Event
from appliance.registry import Adapter
from appliance.tuning.files import write_atomically

_LOG = logging.getLogger(__name__)
_ROUND_EVERY_S = 2.0
_STATE_WITHIN = aiohttp.ClientTimeout(total=5, sock_connect=2)
_LOAD_WITHIN = aiohttp.ClientTimeout(total=120, sock_connect=2)


@dataclass(frozen=True, slots=True)
class Order:
    """What a replica is told to load: the adapter's folder and digest, and the public key (PEM)
    that signed it."""

    path: str
    digest: str
    signer: str

    def body(self) -> bytes:
        """As ``POST /internal/adapters/{name}`` takes it."""
        content = {"path": self.path, "digest": self.digest, "signer": self.signer}
        return json.dumps(content).encode()


Clear = Callable[[str, str], Order]
"""Clears the adapter of that name and digest for serving: blocks; raises ``ApplianceError``."""


class _Remembered(BaseModel):
    """``served-adapters.json``: digests by name. ``replicas``: those entered in the ledger."""

    model_config = ConfigDict(extra="forbid")

    adapters: dict[str, str] = Field(default_factory=dict)
    replicas: list[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Difference:
    """What one replica has yet to do."""

    load: tuple[str, ...]
    unload: tuple[str, ...]


def difference(wanted: dict[str, str], loaded: dict[str, str]) -> Difference:
    """From what is loaded to what is wanted, digests by name. Pure.

    An adapter that is there in another version goes first.
    """
    return Difference(
        load=tuple(name for name, digest in wanted.items() if loaded.get(name) != digest),
        unload=tuple(name for name, digest in loaded.items() if wanted.get(name) != digest),
    )


class Reconciler:
    """The model server of a site as a whole. Use as an asynchronous context manager: it watches."""

    def __init__(self, service: ModelService, audit: Audit, clear: Clear, file: Path) -> None:
        self._service = service
        self._audit = audit
        self._clear = clear
        self._file = file
        self._remembered = _remembered(file)
        self._states: dict[str, dict[str, Any]] = {}  # by replica, of those that answer
        self._refused: set[tuple[str, str, str]] = set()  # replica, adapter, digest
        self._changing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Reconciler:
        self._task = asyncio.create_task(self._watch(), name="reconciler")
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # --- what is asked of the model server as a whole -------------------------------------------

    async def state(self) -> dict[str, Any]:
        """What is served now, and by whom. Raises :class:`ServiceUnavailable`."""
        parts = [self._described(replica) for replica in self._known()]
        answering = [state for state in self._states.values() if state]
        if not answering:
            raise ServiceUnavailable(service=SERVICE, reason=_("No replica answers."))
        first = answering[0]
        return {
            "model": first.get("model"),
            "release": first.get("release"),
            "context_tokens": first.get("context_tokens"),
            "adapters": [
                {"name": name, "digest": digest}
                for name, digest in self._remembered.adapters.items()
            ],
            "requests": sum(int(state.get("requests", 0)) for state in answering),
            "places": sum(int(state.get("places", 0)) for state in answering),
            "replicas": parts,
        }

    async def loadings(self) -> Loadings:
        """Which adapters are loaded on how many replicas, as of the last round."""
        if not self._states:
            raise ServiceUnavailable(service=SERVICE, reason=_("No replica answers."))
        counts: dict[str, int] = dict.fromkeys(self._remembered.adapters, 0)
        for state in self._states.values():
            for name in _loaded(state):
                counts[name] = counts.get(name, 0) + 1
        return Loadings(len(self._known()), counts)

    async def load(self, adapter: Adapter) -> None:
        """Serve ``adapter`` on every replica: those that answer now, and the others when they do.

        Raises:
            AdapterRefused: the registry or a replica does not let it in; then none serves it.
            ServiceUnavailable: no replica answers.
        """
        order = await asyncio.to_thread(self._clear, adapter.name, adapter.digest)
        async with self._changing:
            before = self._remembered.adapters.get(adapter.name)
            self._refused = {asked for asked in self._refused if asked[1] != adapter.name}
            results = await self._on_all(lambda each: self._load(each, adapter.name, order))
            refused = [r for r in results if isinstance(r, ApplianceError) and not _absent(r)]
            if not refused and any(result is None for result in results):
                self._remember(adapter.name, adapter.digest)
                return
            await self._on_all(lambda each: self._unload(each, adapter.name))
            if before is not None:
                self._remember(adapter.name, None)
        if refused:
            raise refused[0]
        raise ServiceUnavailable(service=SERVICE, reason=_("No replica answers."))

    async def unload(self, name: str) -> None:
        """Stop serving an adapter everywhere. Raises :class:`AdapterRefused` if none serves it.

        A replica that cannot be asked now takes no requests, and is asked before it does again.
        """
        async with self._changing:
            loaded = any(name in _loaded(state) for state in self._states.values())
            if name not in self._remembered.adapters and not loaded:
                raise AdapterRefused(name=name, reason=_("It is not loaded."))
            self._remember(name, None)
            await self._on_all(lambda each: self._unload(each, name))

    async def probe(self) -> dict[str, list[ProbeResult]]:
        """Probe the seal from inside every replica; one that cannot say is unclear."""

        async def one(replica: Replica) -> list[ProbeResult]:
            return probed(await self._ask(replica, "POST", "/internal/probe", _LOAD_WITHIN))

        known = self._known()
        if not known:
            raise ServiceUnavailable(service=SERVICE, reason=_("No replica answers."))
        found = await asyncio.gather(*map(one, known), return_exceptions=True)
        places = [f"serve-replica@{replica.target.address}" for replica in known]
        return {
            place: [ProbeResult("seal", place, "unclear", str(result))]
            if isinstance(result, BaseException)
            else result
            for place, result in zip(places, found, strict=True)
        }

    # --- keeping them there ---------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                await self.round()
            except Exception as error:  # noqa: BLE001 - the disk or Ray may be back in a moment
                _LOG.warning("the replicas could not be looked at: %s", error)
            await asyncio.sleep(_ROUND_EVERY_S)

    async def round(self) -> None:
        """Look at every replica once, and bring it to what is wanted."""
        named = await self._service.look()
        if named is not None:
            self._service.replicas.update(named)
        async with self._changing:
            await asyncio.gather(*map(self._look, self._known()))
            orders = await self._orders()
            await asyncio.gather(*(self._bring(replica, orders) for replica in self._known()))
        present = self._service.replicas.known
        self._states = {name: state for name, state in self._states.items() if name in present}
        self._refused = {asked for asked in self._refused if asked[0] in present}

    async def _orders(self) -> dict[str, Order]:
        """Clearance for what some replica lacks; what is not cleared any more is given up."""
        orders: dict[str, Order] = {}
        for name, digest in list(self._remembered.adapters.items()):
            try:
                if self._is_everywhere(name, digest):
                    continue
                orders[name] = await asyncio.to_thread(self._clear, name, digest)
            except (AdapterRefused, RecordMissing) as error:
                _LOG.warning("adapter %s is not served any more: %s", name, error)
                self._remember(name, None)
                subject = {"adapter": name, "digest": digest, "code": error.code}
                self._audit.note(Event(ACTOR, "adapter.unload", subject))
            except ApplianceError as error:
                _LOG.warning("adapter %s is not brought to more replicas: %s", name, error)
        return orders

    def _is_everywhere(self, name: str, digest: str) -> bool:
        return all(
            _loaded(state).get(name) == digest or (replica, name, digest) in self._refused
            for replica, state in self._states.items()
        )

    async def _look(self, replica: Replica) -> None:
        """Ask one replica what it has loaded; one that does not say takes no requests."""
        name = replica.target.name
        try:
            self._states[name] = await self._ask(replica, "GET", "/internal/state", _STATE_WITHIN)
        except ApplianceError as error:
            self._lose(replica, error)

    async def _bring(self, replica: Replica, orders: dict[str, Order]) -> None:
        """Change what is to be changed on one replica that answers, and let it take requests."""
        state = self._states.get(replica.target.name)
        if state is None:
            return
        todo = difference(self._remembered.adapters, _loaded(state))
        try:
            for adapter in todo.unload:
                await self._unload(replica, adapter)
            for adapter in todo.load:
                if adapter in orders:
                    await self._try(replica, adapter, orders[adapter])
        except ServiceUnavailable as error:
            self._lose(replica, error)
            return
        if self._service.replicas.admit(replica):
            self._enter(replica, state)

    def _lose(self, replica: Replica, error: ApplianceError) -> None:
        if replica.ready:
            _LOG.warning("%s takes no requests: %s", replica.target.address, error)
        self._service.replicas.forget(replica)
        self._states.pop(replica.target.name, None)

    async def _try(self, replica: Replica, name: str, order: Order) -> None:
        """Load, once. A replica that refuses serves the model all the same, and what it lacks is
        seen (:meth:`loadings`); asked every other second it would do nothing but hash."""
        asked = (replica.target.name, name, order.digest)
        if asked in self._refused:
            return
        try:
            await self._load(replica, name, order)
        except ServiceUnavailable:
            raise
        except ApplianceError as error:
            self._refused.add(asked)
            _LOG.warning("%s does not load %s: %s", replica.target.address, name, error)

    def _enter(self, replica: Replica, state: dict[str, Any]) -> None:
        """A new replica answers from now on: put it on the ledger, once."""
        name = replica.target.name
        if name in self._remembered.replicas:
            return
        subject = {
            "model": str(state.get("model", "?")),
            "release": str(state.get("release", "?")),
            "host": replica.target.address,
        }
        self._audit.note(Event(ACTOR, "model.load", subject))
        known = [each for each in self._remembered.replicas if each in self._service.replicas.known]
        self._remembered.replicas = [*known, name]
        self._save()

    # --- one replica ----------------------------------------------------------------------------

    async def _on_all(self, change: Callable[[Replica], Any]) -> list[BaseException | None]:
        """Do it on every replica that takes requests; None where it went well."""
        ready = [replica for replica in self._known() if replica.ready]
        results = await asyncio.gather(*map(change, ready), return_exceptions=True)
        return [result if isinstance(result, BaseException) else None for result in results]

    async def _load(self, replica: Replica, name: str, order: Order) -> None:
        path = f"/internal/adapters/{name}"
        await self._ask(replica, "POST", path, _LOAD_WITHIN, order.body())
        state = self._states.setdefault(replica.target.name, {})
        pins = [pin for pin in state.get("adapters", ()) if pin["name"] != name]
        state["adapters"] = [*pins, {"name": name, "path": order.path, "digest": order.digest}]

    async def _unload(self, replica: Replica, name: str) -> None:
        with contextlib.suppress(AdapterRefused):  # it was not loaded
            path = f"/internal/adapters/{name}"
            await self._ask(replica, "DELETE", path, _LOAD_WITHIN)
        state = self._states.setdefault(replica.target.name, {})
        state["adapters"] = [pin for pin in state.get("adapters", ()) if pin["name"] != name]

    async def _ask(
        self,
        replica: Replica,
        method: str,
        path: str,
        within: aiohttp.ClientTimeout,
        body: bytes | None = None,
    ) -> Any:
        opening = self._service.ask_one(
            replica, method, path, headers=JSON, body=body, within=within
        )
        return await told(opening, path)

    def _known(self) -> list[Replica]:
        return list(self._service.replicas.known.values())

    def _described(self, replica: Replica) -> dict[str, Any]:
        state = self._states.get(replica.target.name) or {}
        return {
            "name": replica.target.name.rpartition("#")[2],
            "host": replica.target.address,
            "ready": replica.ready,
            "requests": state.get("requests"),
            "release": state.get("release"),
            "adapters": sorted(_loaded(state)),
        }

    # --- what is remembered ---------------------------------------------------------------------

    def _remember(self, name: str, digest: str | None) -> None:
        if digest is None:
            self._remembered.adapters.pop(name, None)
        else:
            self._remembered.adapters[name] = digest
        self._save()

    def _save(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, self._remembered.model_dump_json(indent=1).encode())


def _loaded(state: dict[str, Any] | None) -> dict[str, str]:
    pins: Iterable[dict[str, Any]] = (state or {}).get("adapters", ())
    return {str(pin["name"]): str(pin["digest"]) for pin in pins}


def _absent(error: ApplianceError) -> bool:
    return isinstance(error, ServiceUnavailable)


def _remembered(file: Path) -> _Remembered:
    """What was served before. A file that cannot be read stands for nothing: it is said, and an
    operator loads again."""
    try:
        return _Remembered.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return _Remembered()
    except (OSError, ValidationError) as error:
        _LOG.error("%s is not readable, no adapter is served: %s", file, error)
        return _Remembered()
