"""Everything the gateway serves, and who may: one table. Pure.

What is not in :data:`ROUTES` does not exist. A test walks the table with every role, so a new line
here is a decision about access, never an accident.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from appliance.registry import Role


class Access(Enum):
    """How a caller shows who they are. Each way opens only its own routes."""

    PUBLIC = "public"
    API_KEY = "api-key"  # Authorization: Bearer
    SESSION = "session"  # the login cookie; honoured under /ray/ and nowhere else


@dataclass(frozen=True)
class Route:
    """A method and a path pattern; ``{name}`` takes one segment, ``{name*}`` the rest."""

    method: str
    pattern: str
    handler: str
    access: Access
    role: Role | None

    @cached_property
    def _expression(self) -> re.Pattern[str]:
        parts = re.split(r"(\{\w+\*?\})", self.pattern)
        return re.compile("".join(_piece(part) for part in parts))

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The path's parameters, or None where this is another route."""
        if method != self.method and not (method == "HEAD" and self.method == "GET"):
            return None
        found = self._expression.fullmatch(path)
        return None if found is None else found.groupdict()

    @property
    def name(self) -> str:
        """``POST /v1/completions``: what an error or the ledger calls it."""
        return f"{self.method} {self.pattern}"


def _piece(part: str) -> str:
    if part.endswith("*}"):
        return f"(?P<{part[1:-2]}>.*)"
    if part.startswith("{"):
        return f"(?P<{part[1:-1]}>[^/]+)"
    return re.escape(part)


def _open(method: str, pattern: str, handler: str) -> Route:
    return Route(method, pattern, handler, Access.PUBLIC, None)


def _key(role: Role, method: str, pattern: str, handler: str) -> Route:
    return Route(method, pattern, handler, Access.API_KEY, role)


_USER, _TUNER, _AUDITOR, _OPERATOR = Role.USER, Role.TUNER, Role.AUDITOR, Role.OPERATOR

ROUTES: tuple[Route, ...] = (
    _key(_USER, "POST", "/v1/chat/completions", "infer"),
    _key(_USER, "POST", "/v1/completions", "infer"),
    _key(_USER, "GET", "/v1/models", "models"),
    _key(_USER, "GET", "/v1/models/{model}", "models"),
    _open("GET", "/healthz", "healthz"),
    # OpenAI's fine-tuning API
    _key(_TUNER, "GET", "/v1/files", "files"),
    _key(_TUNER, "GET", "/v1/files/{id}", "file"),
    _key(_TUNER, "POST", "/v1/fine_tuning/jobs", "fine_tune"),
    _key(_TUNER, "GET", "/v1/fine_tuning/jobs", "fine_tunes"),
    _key(_TUNER, "GET", "/v1/fine_tuning/jobs/{id}", "fine_tune_show"),
    _key(_TUNER, "POST", "/v1/fine_tuning/jobs/{id}/cancel", "fine_tune_cancel"),
    _key(_TUNER, "GET", "/v1/fine_tuning/jobs/{id}/events", "fine_tune_events"),
    # people, and Ray's dashboard behind them
    _open("GET", "/", "front"),
    _open("GET", "/login", "login_page"),
    _open("POST", "/login", "login"),
    _open("POST", "/logout", "logout"),
    Route("GET", "/ray/{path*}", "ray", Access.SESSION, _OPERATOR),
    # sovctl; an auditor may read
    _key(_AUDITOR, "GET", "/admin/v1/status", "status"),
    _key(_AUDITOR, "GET", "/admin/v1/keys", "keys"),
    _key(_OPERATOR, "POST", "/admin/v1/keys", "key_create"),
    _key(_OPERATOR, "DELETE", "/admin/v1/keys/{id}", "key_revoke"),
    _key(_AUDITOR, "GET", "/admin/v1/models", "model_records"),
    _key(_AUDITOR, "GET", "/admin/v1/datasets", "datasets"),
    _key(_OPERATOR, "POST", "/admin/v1/datasets", "dataset_import"),
    _key(_AUDITOR, "GET", "/admin/v1/jobs", "jobs"),
    _key(_OPERATOR, "POST", "/admin/v1/jobs", "job_submit"),
    _key(_AUDITOR, "GET", "/admin/v1/jobs/{id}", "job"),
    _key(_AUDITOR, "GET", "/admin/v1/jobs/{id}/events", "job_events"),
    _key(_AUDITOR, "GET", "/admin/v1/jobs/{id}/logs", "job_logs"),
    _key(_OPERATOR, "POST", "/admin/v1/jobs/{id}/cancel", "job_cancel"),
    _key(_AUDITOR, "GET", "/admin/v1/adapters", "adapters"),
    _key(_OPERATOR, "POST", "/admin/v1/adapters", "adapter_bring"),
    _key(_AUDITOR, "GET", "/admin/v1/adapters/{name}", "adapter"),
    _key(_OPERATOR, "POST", "/admin/v1/adapters/{name}/promote", "adapter_promote"),
    _key(_OPERATOR, "POST", "/admin/v1/adapters/{name}/load", "adapter_load"),
    _key(_OPERATOR, "POST", "/admin/v1/adapters/{name}/unload", "adapter_unload"),
    _key(_OPERATOR, "POST", "/admin/v1/adapters/{name}/retire", "adapter_retire"),
    _key(_OPERATOR, "POST", "/admin/v1/egress/prove", "egress_prove"),
)


def find(method: str, path: str) -> tuple[Route, dict[str, str]] | None:
    """The route for a canonical path with its parameters, or None: it is not served."""
    for route in ROUTES:
        parameters = route.match(method, path)
        if parameters is not None:
            return route, parameters
    return None
