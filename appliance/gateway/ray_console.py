"""Ray's dashboard behind the login: reading it, and nothing else.

The dashboard's pages name their assets and data relative to themselves, so they work under
``/ray/`` as they are. What they read is listed in :data:`READABLE`; the rest of the dashboard's API
(job submission: CVE-2023-48022 "ShadowRay", packages, Serve's configuration, profilers that attach
to processes) is not reachable through here even for an operator. Only GET passes, so nothing can be
changed, and Ray's token is added here: a browser never has it.
"""

from __future__ import annotations

import re

import aiohttp
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from appliance.errors import RouteUnknown, ServiceUnavailable
from appliance.gateway import headers
from appliance.gateway.calls import Call
from appliance.gateway.paths import encoded
from appliance.gateway.problems import problem

_STATE = (
    "actors|cluster_events|cluster_metadata|jobs|logs|logs/[a-z]+|nodes|objects|placement_groups"
    "|platform_events|runtime_env_redaction|runtime_envs|tasks|workers"
    "|(actors|objects|tasks)/summarize|tasks/timeline"
)
_NAME = r"[A-Za-z0-9_.-]+"
READABLE = re.compile(
    r"|favicon\.ico|static/(js|css|media)/[A-Za-z0-9_.-]+"
    r"|timezone|usage_stats_enabled|cluster_id|events|nodes|logical/actors"
    rf"|nodes/{_NAME}|logical/actors/{_NAME}"
    r"|api/(authentication_mode|profiling_enabled|grafana_health|prometheus_health|cluster_status"
    r"|component_activities|version|ray/version|gcs_healthz|healthz)"
    rf"|api/jobs/|api/jobs/{_NAME}|api/jobs/{_NAME}/logs|api/data/datasets/{_NAME}"
    r"|api/serve/applications/|api/train/v2/runs(/v1)?"
    rf"|api/v0/({_STATE})"
)

# The dashboard's own styles are inline; its scripts are files.
_POLICY = (
    b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'"
)


class RayConsole:
    """The handler of ``/ray/…``."""

    def __init__(self, session: aiohttp.ClientSession, base: str, token: str) -> None:
        self._session = session
        self._base = base
        self._token = token

    async def ray(self, call: Call) -> ASGIApp:
        """A page, an asset or data of the dashboard. Raises :class:`RouteUnknown` for the rest."""
        path = call.parameters["path"]
        if not READABLE.fullmatch(path):
            raise RouteUnknown(action=f"GET {call.path}")
        return _Page(self._open(call, path))

    def _open(self, call: Call, path: str) -> aiohttp.client._RequestContextManager:
        query = call.scope.get("query_string", b"").decode("latin-1")
        url = f"{self._base}/{encoded(path)}" + (f"?{query}" if query else "")
        return self._session.request(
            call.scope["method"],
            URL(url, encoded=True),
            headers=headers.to_ray(call.scope["headers"], self._token),
            allow_redirects=False,
        )


class _Page:
    """Ray's answer, streamed to the browser."""

    def __init__(self, opening: aiohttp.client._RequestContextManager) -> None:
        self._opening = opening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = await self._opening
        except (aiohttp.ClientError, OSError) as error:
            reason = f"{type(error).__name__}: {error}."
            told = ServiceUnavailable(service="Ray's dashboard", reason=reason)
            await problem(told)(scope, receive, send)
            return
        async with answer:
            kept = headers.from_ray(answer.headers)
            policy = (b"content-security-policy", _POLICY)
            start = {"status": answer.status, "headers": [*kept, policy]}
            await send({"type": "http.response.start", **start})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
