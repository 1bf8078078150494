"""The model server as the gateway asks it: where it listens, and the key that it demands.

Serve's replica listens itself (direct ingress) on a port that its controller gives it, and says in
``GET /api/serve/applications/`` of Ray's dashboard (``target_groups``, Ray's interface for load
balancers). Requests go straight there, because through Serve's proxy each token would be one more
message between Ray processes. When nobody listens there, they go to the proxy, which holds them
until Serve has replaced the replica. No request waits for the dashboard: it is asked beside them,
once a second at most, for as long as no replica is known.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

_LOOK = aiohttp.ClientTimeout(total=5)
_LOOK_EVERY_S = 1.0


class ModelService:
    """Requests to the model server. ``proxy`` and ``dashboard`` are base URLs inside the seal.

    Use as an asynchronous context manager: leaving it ends a search that is under way.
    """

    def __init__(
        self, session: aiohttp.ClientSession, proxy: str, dashboard: str, ray_token: str, key: str
    ) -> None:
        self._session = session
        self._proxy = proxy
        self._applications = f"{dashboard}/api/serve/applications/"
        self._authorization = {"Authorization": f"Bearer {ray_token}"}
        self._key = key
        self._replica: str | None = None
        self._search: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ModelService:
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        within: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to one request, its body still to be read; leaving the block ends it.

        Raises:
            aiohttp.ClientError, OSError: neither the replica nor the proxy answers.
        """
        # A connection kept for the next request may be that of a replica which has died since, and
        # a request lost in it may have been begun. A fresh one is refused before anything is sent.
        passed = {**(headers or {}), "X-Appliance-Gateway": self._key, "Connection": "close"}
        options: dict[str, Any] = {"headers": passed, "data": body, "allow_redirects": False}
        if within is not None:
            options["timeout"] = within
        replica = self._known_replica()
        try:
            answer = await self._session.request(method, (replica or self._proxy) + path, **options)
        except aiohttp.ClientConnectorError:  # before anything was sent: safe to ask again
            if replica is None:
                raise
            self._forget(replica)
            answer = await self._session.request(method, self._proxy + path, **options)
        async with answer:
            yield answer

    def _known_replica(self) -> str | None:
        """The replica's base URL; None, and a search is under way, while none is known."""
        if self._replica is None and (self._search is None or self._search.done()):
            self._search = asyncio.create_task(self._find(), name="replica")
        return self._replica

    async def _find(self) -> None:
        self._replica = await self._look()
        if self._replica is None:
            await asyncio.sleep(_LOOK_EVERY_S)  # until then nobody begins another

    def _forget(self, replica: str) -> None:
        if self._replica == replica:
            self._replica = None

    async def _look(self) -> str | None:
        try:
            async with self._session.get(
                self._applications, headers=self._authorization, timeout=_LOOK
            ) as answer:
                content = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        return replica_of(content)


def replica_of(instance: Any) -> str | None:
    """The first replica that Serve's details name, as a base URL; Serve's proxies do not count.

    ``instance`` is ``ray.serve.schema.ServeInstanceDetails`` as JSON. Pure.
    """
    try:
        for group in instance["target_groups"]:
            for target in group["targets"] if group["protocol"] == "HTTP" else ():
                if target["name"].startswith("SERVE_REPLICA::"):
                    return f"http://{target['ip']}:{int(target['port'])}"
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return None
