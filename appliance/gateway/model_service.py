"""The model server as the gateway asks it: where it listens, and the key that it demands.

Serve's replicas listen themselves (direct ingress) on ports that its controller gives them, and it
says where in ``GET /api/serve/applications/`` of Ray's dashboard (``target_groups``, which are for
load balancers). Requests go straight there, because through Serve's proxy each token would be one
more message between Ray processes. When no replica takes them they go to the proxy, which holds
them until Serve has a replica again. No request waits for the dashboard: it is asked beside them.

Embedded there is one replica on this machine; it is looked for, once a second at most, for as long
as none is known. On a site there is one on each serving host, behind its relay (TLS, client
certificate); :class:`appliance.gateway.reconciler.Reconciler` looks at them all the time.

A request goes on to another replica only if nobody can have begun it. Embedded that is certain when
the connection is refused. A relay accepts connections for a replica that is gone, so a question
travels there only after the replica itself has said ``100 Continue`` (RFC 9110, 10.1.1): whatever
ends before that has not begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import BytesPayload

from appliance.gateway.replicas import Reach, Replica, Replicas, Target, beside, replicas_of

_LOOK = aiohttp.ClientTimeout(total=5)
_LOOK_EVERY_S = 1.0


class ModelService:
    """Requests to the model server. ``proxy`` and ``dashboard`` are base URLs inside the seal.

    ``relay`` tells under which base URL a replica's relay listens; then somebody else keeps
    ``replicas`` (:meth:`look`, :meth:`appliance.gateway.replicas.Replicas.admit`).

    Use as an asynchronous context manager: leaving it ends a search that is under way.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        proxy: str,
        dashboard: str,
        ray_token: str,
        key: str,
        *,
        relay: Reach | None = None,
    ) -> None:
        self.replicas = Replicas(at_once=relay is None)
        self._session = session
        self._proxy = proxy
        self._applications = f"{dashboard}/api/serve/applications/"
        self._authorization = {"Authorization": f"Bearer {ray_token}"}
        self._key = key
        self._reach = relay or beside
        self._relayed = relay is not None
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
            aiohttp.ClientError, OSError: neither a replica nor the proxy answers.
        """
        asked = _Asked(method, path, headers, body, within)
        while True:
            replica = self._take()
            try:
                base = self._proxy if replica is None else self._reach(replica.target)
                try:
                    answer = await self._open(base, asked)
                except _NotBegun as error:
                    if replica is None:
                        assert error.__cause__ is not None
                        raise error.__cause__ from None
                    self.replicas.forget(replica)
                    continue
                async with answer:
                    yield answer
                    return
            finally:
                if replica is not None:
                    self.replicas.give_back(replica)

    @asynccontextmanager
    async def ask_one(
        self,
        replica: Replica,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        within: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """As :meth:`ask`, of this replica and no other."""
        base = self._reach(replica.target)
        try:
            answer = await self._open(base, _Asked(method, path, headers, body, within))
        except _NotBegun as error:
            assert error.__cause__ is not None
            raise error.__cause__ from None
        async with answer:
            yield answer

    async def look(self) -> tuple[Target, ...] | None:
        """The replicas that Serve's controller names; None: it does not answer. 5 s at most."""
        try:
            async with self._session.get(
                self._applications, headers=self._authorization, timeout=_LOOK
            ) as answer:
                return replicas_of(await answer.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    async def _open(self, base: str, asked: _Asked) -> aiohttp.ClientResponse:
        # A connection kept for the next request may be that of a replica which has died since, and
        # a request lost in it may have been begun. A fresh one is refused before anything is sent.
        headers = {**(asked.headers or {}), "X-Appliance-Gateway": self._key, "Connection": "close"}
        options: dict[str, Any] = {"headers": headers, "data": asked.body, "allow_redirects": False}
        if asked.within is not None:
            options["timeout"] = asked.within
        question: _Question | None = None
        if self._relayed and asked.body is not None:
            question = _Question(asked.body, content_type="application/json")
            options |= {"data": question, "expect100": True}
        try:
            return await self._session.request(asked.method, base + asked.path, **options)
        except aiohttp.ClientConnectorError as error:
            raise _NotBegun from error
        except (aiohttp.ClientConnectionError, ConnectionResetError) as error:
            unsent = question is not None and not question.begun
            if self._relayed and (unsent or asked.method == "GET"):
                raise _NotBegun from error
            raise

    def _take(self) -> Replica | None:
        """A replica; None where none is ready. Embedded, a search is under way then."""
        replica = self.replicas.take()
        searching = self._search is not None and not self._search.done()
        if replica is None and not self._relayed and not searching:
            self._search = asyncio.create_task(self._find(), name="replica")
        return replica

    async def _find(self) -> None:
        self.replicas.update(await self.look() or ())
        if not self.replicas.known:
            await asyncio.sleep(_LOOK_EVERY_S)  # until then nobody begins another


class _Asked(NamedTuple):
    """One request, to whichever replica."""

    method: str
    path: str
    headers: Mapping[str, str] | None
    body: bytes | None
    within: aiohttp.ClientTimeout | None


class _NotBegun(Exception):
    """The request failed, for the error that caused this, before anybody can have begun it."""


class _Question(BytesPayload):
    """A body that knows whether any of it was sent."""

    begun = False

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self.begun = True
        await super().write_with_length(writer, content_length)
