"""One request as a handler sees it: who, what route, and its body within bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope

from appliance.errors import RequestMalformed, RequestTooLarge
from appliance.gateway.routes import Route
from appliance.i18n import _
from appliance.registry import ApiKey

LARGEST_BODY = 8 << 20  # bytes; a million tokens of text fit
_BODY_WITHIN_S = 60.0

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Call:
    """A request that was let in. ``caller`` is None on public routes only."""

    scope: Scope
    receive: Receive
    route: Route
    path: str
    parameters: dict[str, str]
    caller: ApiKey | None

    @property
    def actor(self) -> str:
        """Who this is on the ledger."""
        return f"key:{self.caller.id}" if self.caller else "anonymous:web"

    @property
    def address(self) -> str:
        """The peer's address, or ``local`` behind the appliance's own door."""
        client = self.scope.get("client")
        return str(client[0]) if client and client[0] else "local"

    def header(self, name: bytes) -> str | None:
        """The first value of a header, by its lower-case name."""
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value.decode("latin-1"))
        return None

    async def body(self) -> bytes:
        """The whole body.

        Raises:
            RequestTooLarge: it is, or announces to be, over :data:`LARGEST_BODY`.
            RequestMalformed: it did not arrive within a minute, or the client left.
        """
        announced = self.header(b"content-length") or "0"
        if announced.isdecimal() and int(announced) > LARGEST_BODY:
            raise RequestTooLarge(limit=LARGEST_BODY)
        try:
            async with asyncio.timeout(_BODY_WITHIN_S):
                return await self._read()
        except TimeoutError as error:
            raise self.malformed(_("Its body did not arrive in time.")) from error

    async def _read(self) -> bytes:
        parts, size = [], 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise self.malformed(_("The client left before its body was complete."))
            part = message.get("body", b"")
            size += len(part)
            if size > LARGEST_BODY:
                raise RequestTooLarge(limit=LARGEST_BODY)
            parts.append(part)
            if not message.get("more_body"):
                return b"".join(parts)

    async def object(self) -> dict[str, Any]:
        """The body as a JSON object; raises :class:`RequestMalformed`."""
        return self.parse_object(await self.body())

    def parse_object(self, body: bytes) -> dict[str, Any]:
        """``body`` as a JSON object; raises :class:`RequestMalformed`."""
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self.malformed(_("Its body is not JSON.")) from error
        if not isinstance(value, dict):
            raise self.malformed(_("Its body is not a JSON object."))
        return value

    async def model(self, kind: type[M]) -> M:
        """The body as a checked ``kind``; raises :class:`RequestMalformed` naming the field."""
        content = await self.object()
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(step) for step in first["loc"]) or _("the body")
            raise self.malformed(f"{field}: {first['msg']}.") from error

    def malformed(self, reason: str) -> RequestMalformed:
        """The error for a body this route does not take."""
        return RequestMalformed(action=self.route.name, reason=reason)


Handler = Callable[[Call], Awaitable[ASGIApp]]
