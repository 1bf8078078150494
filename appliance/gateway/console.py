"""The login page and the session it makes: a person at a browser, with an operator's key.

The page holds no script and no external asset. The key is posted once, over TLS, and exchanged for
a cookie that scripts cannot read and other sites cannot send (``HttpOnly``, ``SameSite=Strict``).
"""

from __future__ import annotations

import asyncio
import time
from html import escape
from urllib.parse import parse_qs, urlsplit

from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp

from appliance.errors import ApiKeyRefused, RateLimited
from appliance.gateway.app import session_cookie
from appliance.gateway.audit import Audit
from appliance.gateway.calls import Call
from appliance.gateway.identity import Identities
from appliance.gateway.languages import catalogue, preferred
from appliance.gateway.limits import Backoff
from appliance.gateway.sessions import COOKIE, LIFE_S, Sessions
from appliance.ledger.event import Event
from appliance.registry import Role, permits

_WAITING_AT_MOST = 16
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_PAGE = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>{title}</title>
<style>
:root{{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}}
body{{display:grid;place-items:center;min-height:90vh;margin:0}}
form{{width:min(26rem,90vw);display:grid;gap:.75rem}} h1{{font-size:1.25rem;margin:0}}
p{{margin:0}} input,button{{font:inherit;padding:.6rem;border-radius:.4rem;border:1px solid #8888}}
button{{background:#1a56b0;color:#fff;border:0;cursor:pointer}} [role=alert]{{color:#c22}}
:focus-visible{{outline:3px solid #5aa0ff;outline-offset:2px}}
</style></head><body><main><form method="post" action="/login">
<h1>{title}</h1>{alert}
<label for="key">{label}</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus
 aria-describedby="hint"><p id="hint">{hint}</p><button>{button}</button>
</form></main></body></html>
"""


class Console:
    """The handlers of the login page."""

    def __init__(self, identities: Identities, sessions: Sessions, audit: Audit) -> None:
        self._identities = identities
        self._sessions = sessions
        self._audit = audit
        self._backoff = Backoff()
        self._waiting = 0

    async def healthz(self, call: Call) -> ASGIApp:
        """Liveness: this process answers. Nothing else is said to strangers."""
        return JSONResponse({"status": "ok"})

    async def front(self, call: Call) -> ASGIApp:
        """The bare address, typed into a browser."""
        return RedirectResponse("/ray/", 303)

    async def login_page(self, call: Call) -> ASGIApp:
        """The form."""
        return _page(call, refused=False)

    async def login(self, call: Call) -> ASGIApp:
        """Exchange an operator's key for a session.

        Raises:
            AuditUnavailable: the login could not be recorded.
            RateLimited: too many failed logins are being held back already.
        """
        self._audit.demand()
        if not _same_origin(call):
            return _page(call, refused=True)
        fields = parse_qs((await call.body()).decode("latin-1"), max_num_fields=4)
        plaintext = fields.get("key", [""])[0].strip()
        try:
            caller = await self._identities.of_key(plaintext)
            if not permits(caller.role, Role.OPERATOR):
                raise ApiKeyRefused
        except ApiKeyRefused:
            return await self._refuse(call)
        await self._audit.record(Event(f"key:{caller.id}", "login", {"key": caller.id}))
        self._backoff.succeeded(call.address)
        answer = RedirectResponse("/ray/", 303)
        answer.set_cookie(
            COOKIE,
            self._sessions.begin(plaintext),
            max_age=int(LIFE_S),
            path="/",
            secure=True,
            httponly=True,
            samesite="strict",
        )
        return answer

    async def logout(self, call: Call) -> ASGIApp:
        """End the session, if there is one."""
        self._sessions.end(session_cookie(call.scope))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return answer

    async def _refuse(self, call: Call) -> ASGIApp:
        """Answer a failed login late, and later each time."""
        if self._waiting >= _WAITING_AT_MOST:
            raise RateLimited(limit=f"{_WAITING_AT_MOST} failed logins", seconds=8)
        self._waiting += 1
        try:
            await asyncio.sleep(self._backoff.failed(call.address, time.monotonic()))
        finally:
            self._waiting -= 1
        await self._audit.record(Event("anonymous:web", "login", {"page": "login"}, "refused"))
        return _page(call, refused=True)


def _page(call: Call, *, refused: bool) -> Response:
    language = preferred(call.header(b"accept-language") or "")
    _ = catalogue(language)
    told = _("This key does not open the console. It needs an operator's key.")
    words = {
        "language": language,
        "title": _("Appliance console"),
        "label": _("API key"),
        "hint": _("The operator's key was made at installation: secrets/operator.key."),
        "button": _("Log in"),
    }
    safe = {name: escape(text) for name, text in words.items()}
    alert = f'<p role="alert">{escape(told)}</p>' if refused else ""
    status = 403 if refused else 200
    page = _PAGE.format(**safe, alert=alert)
    return HTMLResponse(page, status, {"Content-Security-Policy": _POLICY})


def _same_origin(call: Call) -> bool:
    """Whether a form was posted from our own page: no other site may log a browser in."""
    site = call.header(b"sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = call.header(b"origin")
    return origin is None or urlsplit(origin).netloc == call.header(b"host")
