"""The services inside, asked by the gateway itself: Serve's internal routes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp

from appliance.egress.probe import ProbeResult, control_listener
from appliance.egress.verdict import results_from_json
from appliance.errors import AdapterRefused, ApplianceError, ServiceUnavailable
from appliance.gateway.model_service import ModelService
from appliance.registry import Adapter

_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=5)
JSON = {"Content-Type": "application/json"}
SERVICE = "The model service"


@dataclass(frozen=True)
class Loadings:
    """On how many replicas each adapter is loaded, by name; and how many replicas there are."""

    replicas: int
    loaded: Mapping[str, int]


class Serving(Protocol):
    """The model server as a whole, be it one replica or many."""

    async def state(self) -> dict[str, Any]:
        """What is served now. Raises :class:`ServiceUnavailable`."""

    async def loadings(self) -> Loadings:
        """Which adapters are loaded. Raises :class:`ServiceUnavailable`."""

    async def load(self, adapter: Adapter) -> None:
        """Serve ``adapter``. Raises :class:`AdapterRefused` with the reason."""

    async def unload(self, name: str) -> None:
        """Stop serving an adapter. Raises :class:`AdapterRefused` if it is not loaded."""

    async def probe(self) -> dict[str, list[ProbeResult]]:
        """Probe the seal from inside the replicas, by place. Raises :class:`ServiceUnavailable`."""


class ServeInternal:
    """Serve's ``/internal`` routes (``serving/app.py``), embedded: one replica, which remembers
    itself what is loaded."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def state(self) -> dict[str, Any]:
        """What is served now. Raises :class:`ServiceUnavailable`."""
        answer = await self._ask("GET", "/internal/state", None)
        return dict(answer) if isinstance(answer, dict) else {}

    async def loadings(self) -> Loadings:
        """Which adapters are loaded. Raises :class:`ServiceUnavailable`."""
        state = await self.state()
        return Loadings(1, {str(pin["name"]): 1 for pin in state.get("adapters", ())})

    async def load(self, adapter: Adapter) -> None:
        """Serve ``adapter``. Raises :class:`AdapterRefused` with Serve's reason."""
        body = {"path": adapter.path, "digest": adapter.digest}
        await self._ask("POST", f"/internal/adapters/{adapter.name}", body)

    async def unload(self, name: str) -> None:
        """Stop serving an adapter. Raises :class:`AdapterRefused` if it is not loaded."""
        await self._ask("DELETE", f"/internal/adapters/{name}", None)

    async def probe(self) -> dict[str, list[ProbeResult]]:
        """Probe the seal from inside the replica, against a listener of our own."""
        with control_listener() as listener:
            body = {"host": listener.host, "port": listener.port}
            answer = await self._ask("POST", "/internal/probe", body)
        return {"serve-replica": probed(answer)}

    async def _ask(self, method: str, path: str, wanted: dict[str, Any] | None) -> Any:
        body = None if wanted is None else json.dumps(wanted).encode()
        opening = self._service.ask(method, path, headers=JSON, body=body, within=_TIMEOUT)
        return await told(opening, path)


def probed(answer: Any) -> list[ProbeResult]:
    """A replica's probes. Raises :class:`ServiceUnavailable` for what are none."""
    try:
        return list(results_from_json(answer))
    except ValueError as error:
        raise ServiceUnavailable(service=SERVICE, reason=f"{error}.") from error


async def told(opening: AbstractAsyncContextManager[aiohttp.ClientResponse], path: str) -> Any:
    """What an internal route answers. Raises its error, or :class:`ServiceUnavailable`."""
    try:
        async with opening as answer:
            content = await answer.json(content_type=None) if answer.status != 204 else {}
    except (aiohttp.ClientError, OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}."
        raise ServiceUnavailable(service=SERVICE, reason=reason) from error
    if answer.status >= 400:
        raise _told(content, path.rpartition("/")[2])
    return content


def _told(content: Any, name: str) -> ApplianceError:
    """Serve's error as the class it was, or as a refusal in its own words."""
    body = content.get("error") if isinstance(content, dict) else None
    body = body if isinstance(body, dict) else {}
    kind, fields = ApplianceError.catalogue.get(str(body.get("code"))), body.get("fields")
    if kind is not None and isinstance(fields, dict) and kind.fields() <= fields.keys():
        return kind(**fields)
    return AdapterRefused(name=name, reason=body.get("message") or "?")
