"""The services inside, asked by the gateway itself: Serve's internal routes, Ray's hosts."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
from pydantic import BaseModel

from appliance.egress.probe import ProbeResult, control_listener
from appliance.egress.verdict import results_from_json
from appliance.errors import AdapterRefused, ApplianceError, ServiceUnavailable
from appliance.gateway.model_service import ModelService
from appliance.registry import Adapter

_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=5)
_JSON = {"Content-Type": "application/json"}


class Node(BaseModel):
    """A host of the cluster, as Ray's dashboard lists it. Memory in bytes."""

    name: str
    address: str
    alive: bool
    head: bool
    cpus: float
    memory_total: int
    memory_available: int


class ServeInternal:
    """Serve's ``/internal`` routes (``serving/app.py``)."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def state(self) -> dict[str, Any]:
        """What is served now. Raises :class:`ServiceUnavailable`."""
        answer = await self._ask("GET", "/internal/state", None)
        return dict(answer) if isinstance(answer, dict) else {}

    async def load(self, adapter: Adapter) -> None:
        """Serve ``adapter``. Raises :class:`AdapterRefused` with Serve's reason."""
        body = {"path": adapter.path, "digest": adapter.digest}
        await self._ask("POST", f"/internal/adapters/{adapter.name}", body)

    async def unload(self, name: str) -> None:
        """Stop serving an adapter. Raises :class:`AdapterRefused` if it is not loaded."""
        await self._ask("DELETE", f"/internal/adapters/{name}", None)

    async def probe(self) -> list[ProbeResult]:
        """Probe the seal from inside the replica, against a listener of our own."""
        with control_listener() as listener:
            body = {"host": listener.host, "port": listener.port}
            answer = await self._ask("POST", "/internal/probe", body)
        try:
            return list(results_from_json(answer))
        except ValueError as error:
            raise ServiceUnavailable(service="The model service", reason=f"{error}.") from error

    async def _ask(self, method: str, path: str, wanted: dict[str, Any] | None) -> Any:
        body = None if wanted is None else json.dumps(wanted).encode()
        try:
            async with self._service.ask(
                method, path, headers=_JSON, body=body, within=_TIMEOUT
            ) as answer:
                content = await answer.json(content_type=None) if answer.status != 204 else {}
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}."
            raise ServiceUnavailable(service="The model service", reason=reason) from error
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


async def nodes(session: aiohttp.ClientSession, base: str, token: str) -> list[Node]:
    """The hosts Ray knows; empty while Ray's dashboard does not answer."""
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with session.get(
            f"{base}/nodes?view=summary", headers=headers, timeout=aiohttp.ClientTimeout(total=5)
        ) as answer:
            content = await answer.json(content_type=None)
        return [_node(entry) for entry in content["data"]["summary"]]
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError):
        return []


def _node(entry: dict[str, Any]) -> Node:
    raylet = entry.get("raylet") or {}
    total, available = (entry.get("mem") or [0, 0])[:2]
    cpus = (raylet.get("resourcesTotal") or {}).get("CPU") or (entry.get("cpus") or [0])[0]
    return Node(
        name=str(entry.get("hostname", "?")),
        address=str(entry.get("ip", raylet.get("nodeManagerAddress", "?"))),
        alive=raylet.get("state") == "ALIVE",
        head=bool(raylet.get("isHeadNode")),
        cpus=float(cpus),
        memory_total=int(total),
        memory_available=int(available),
    )
