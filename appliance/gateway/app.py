"""The gateway as an ASGI application: lets a request in, or says why not.

:class:`Gateway` decides (path, route, identity, role, limits) and hands over to the route's
handler; every way in goes through :meth:`Gateway._admit`, and there is no other.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

from starlette.responses import RedirectResponse
from starlette.types import Message, Receive, Scope, Send

from appliance.errors import (
    ApiKeyRefused,
    ApplianceError,
    InternalError,
    RateLimited,
    RoleInsufficient,
    RouteUnknown,
)
from appliance.gateway import headers
from appliance.gateway.audit import Audit
from appliance.gateway.calls import Call, Handler
from appliance.gateway.identity import Identities
from appliance.gateway.limits import Allowance, Limiter
from appliance.gateway.paths import canonical
from appliance.gateway.problems import problem
from appliance.gateway.routes import ROUTES, Access, find
from appliance.gateway.sessions import COOKIE, Sessions
from appliance.ledger.event import Event
from appliance.registry import ApiKey, permits

_LOG = logging.getLogger(__name__)
_ADDED = dict(headers.PLAIN)


class Gateway:
    """Routes to handlers; without one for every route of the table it does not start."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        identities: Identities,
        sessions: Sessions,
        audit: Audit,
        allowance: Allowance,
    ) -> None:
        missing = {route.handler for route in ROUTES} - handlers.keys()
        if missing:
            raise ValueError(f"routes without a handler: {sorted(missing)}")
        self._handlers = handlers
        self._identities = identities
        self._sessions = sessions
        self._audit = audit
        self._limiter = Limiter(allowance)
        self._refusals = Limiter(Allowance(rate=1.0, burst=20, together=1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no websockets: neither Serve nor the dashboard's pages use any
        guarded = _Guarded(send)
        try:
            await self._serve(scope, receive, guarded)
        except ApplianceError as error:
            await guarded.fail(error, scope, receive)
        except Exception as error:  # noqa: BLE001 - the boundary: no traceback reaches a client
            _LOG.error("%s %s\n%s", scope["method"], scope["path"], traceback.format_exc())
            unforeseen = InternalError(error=type(error).__name__, log="logs/gateway.log")
            await guarded.fail(unforeseen, scope, receive)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = await self._admit(scope, receive)
        if isinstance(call, RedirectResponse):
            await call(scope, receive, send)
            return
        if call.caller is None:
            answer = await self._handlers[call.route.handler](call)
            await answer(scope, receive, send)
            return
        self._limiter.enter(call.caller.id, time.monotonic())
        try:
            answer = await self._handlers[call.route.handler](call)
            await answer(scope, receive, send)
        finally:
            self._limiter.leave(call.caller.id)

    async def _admit(self, scope: Scope, receive: Receive) -> Call | RedirectResponse:
        """Decide about a request before anything is done for it.

        Raises the :class:`ApplianceError` that says why not. Without a valid key an unknown path
        and a known one look the same.
        """
        raw = scope.get("raw_path") or scope["path"].encode()
        path = canonical(raw.partition(b"?")[0])
        found = find(scope["method"], path)
        if found is None:
            await self._identities.of_header(_header(scope, b"authorization"))
            raise RouteUnknown(action=f"{scope['method']} {path}")
        route, parameters = found
        call = Call(scope, receive, route, path, parameters, None)
        if route.access is Access.PUBLIC:
            return call
        try:
            if route.access is Access.SESSION:
                caller = await self._of_session(scope)
            else:
                caller = await self._identities.of_header(_header(scope, b"authorization"))
        except ApiKeyRefused:
            self._note_refusal("anonymous:web", route.name)
            if route.access is Access.SESSION and _is_page(scope):
                return RedirectResponse("/login", 303)
            raise
        if route.role is None or not permits(caller.role, route.role):
            self._note_refusal(f"key:{caller.id}", route.name)
            needed = route.role.value if route.role else "?"
            raise RoleInsufficient(action=route.name, role=caller.role.value, needed=needed)
        return Call(scope, receive, route, path, parameters, caller)

    async def _of_session(self, scope: Scope) -> ApiKey:
        key = self._sessions.key_of(session_cookie(scope))
        if key is None:
            raise ApiKeyRefused
        return await self._identities.of_key(key)

    def _note_refusal(self, actor: str, action: str) -> None:
        """Put a refusal on the ledger, but not more than one a second for each caller.

        An outsider could fill the disk with refusals otherwise.
        """
        method, _space, pattern = action.partition(" ")
        try:
            self._refusals.enter(actor, time.monotonic())
        except RateLimited:
            return
        self._refusals.leave(actor)
        subject = {"method": method, "route": pattern}
        self._audit.note(Event(actor, "access.refused", subject, "refused"))


class _Guarded:
    """``send`` that adds the safety headers, and knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._begun = True
            given = message.get("headers", [])
            names = {name for name, _value in given}
            added = [(name, value) for name, value in _ADDED.items() if name not in names]
            message = {**message, "headers": [*given, *added]}
        await self._send(message)

    async def fail(self, error: ApplianceError, scope: Scope, receive: Receive) -> None:
        """Answer with ``error``; if an answer has begun, leave it visibly incomplete."""
        if not self._begun:
            await problem(error)(scope, receive, self)


def session_cookie(scope: Scope) -> str:
    """The session cookie's value, or an empty text."""
    try:
        cookies = SimpleCookie(_header(scope, b"cookie") or "")
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def _is_page(scope: Scope) -> bool:
    """Whether a browser asks for a page to show, rather than a script for data."""
    return "text/html" in (_header(scope, b"accept") or "")
