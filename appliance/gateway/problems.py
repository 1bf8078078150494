"""Errors as HTTP answers: one body that ``sovctl`` and OpenAI's clients both understand.

``{"error": {"message", "type", "param", "code"}}`` is OpenAI's shape; ``what``, ``why``, ``fix``
and ``fields`` beside it are :meth:`ApplianceError.as_json`, from which ``sovctl`` rebuilds it.
"""

from __future__ import annotations

from starlette.responses import JSONResponse

from appliance.errors import (
    ApiKeyRefused,
    ApplianceError,
    AuditUnavailable,
    ExitCode,
    RateLimited,
    RequestTooLarge,
    ServiceUnavailable,
)

_STATUS_OF_EXIT: dict[ExitCode, int] = {
    ExitCode.USAGE: 400,
    ExitCode.REFUSED: 403,
    ExitCode.PRECONDITION: 409,
    ExitCode.NOT_FOUND: 404,
    ExitCode.BUSY: 409,
    ExitCode.VERDICT: 409,
    ExitCode.FAILED: 502,
}
_STATUS_OF_KIND: dict[type[ApplianceError], int] = {
    ApiKeyRefused: 401,
    RateLimited: 429,
    RequestTooLarge: 413,
    AuditUnavailable: 503,
    ServiceUnavailable: 503,
}
_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


def status_of(error: ApplianceError) -> int:
    """The HTTP status an error is answered with."""
    return _STATUS_OF_KIND.get(type(error)) or _STATUS_OF_EXIT.get(error.exit_code, 500)


def problem(error: ApplianceError) -> JSONResponse:
    """The whole answer for an error."""
    status = status_of(error)
    described = error.as_json()
    body = {
        "message": f"{described['what']} {described['why']} {described['fix']}",
        "type": _TYPE_OF_STATUS.get(status, "server_error"),
        "param": None,
        **described,
    }
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    if isinstance(error, RateLimited):
        headers["Retry-After"] = error.values["seconds"]
    return JSONResponse({"error": body}, status, headers)
