"""Request paths: one canonical form, or a refusal. Pure.

Proxies are attacked through paths that two programs read differently: ``//``, ``..``, an encoded
slash, a doubly encoded dot. The gateway therefore decodes once, refuses whatever is still
ambiguous, decides on the result, and sends upstream an encoding of exactly what it decided on.
"""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

from appliance.errors import RequestMalformed
from appliance.i18n import N_

LONGEST = 2048  # bytes, as sent
_ENCODED_SEPARATORS = (b"%2f", b"%5c")


def canonical(raw: bytes) -> str:
    """The decoded path: absolute, without empty, ``.`` or ``..`` segments; ``/`` may end it.

    ``raw`` is the path as the client sent it, percent-encoded, without its query.

    Raises:
        RequestMalformed: it is too long, not UTF-8, or could be read in more than one way.
    """
    lowered = raw.lower()
    if len(raw) > LONGEST or not raw.startswith(b"/"):
        raise _refused()
    if any(separator in lowered for separator in _ENCODED_SEPARATORS):
        raise _refused()
    try:
        path = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused() from error
    if any(character in "\\%;?#" or not character.isprintable() for character in path):
        raise _refused()
    *middle, _last = path[1:].split("/")
    if "" in middle or any(segment in (".", "..") for segment in path.split("/")):
        raise _refused()
    return path


def encoded(path: str) -> str:
    """A canonical path as it is sent upstream.

    >>> encoded("/v1/models/base:adapter é")
    '/v1/models/base:adapter%20%C3%A9'
    """
    return quote(path, safe="/:@!$&'()*+,=~")


def _refused() -> RequestMalformed:
    return RequestMalformed(
        action=N_("the gateway"), reason=N_("Its path is ambiguous or too long.")
    )
