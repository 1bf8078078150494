"""Which headers pass, by allow-list. Pure.

An allow-list settles several attacks at once: hop-by-hop headers (RFC 9110 §7.6.1) and request
smuggling, a forged ``X-Appliance-*`` or ``X-Forwarded-*``, cookies and keys leaking inwards, and
server banners leaking out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

RawHeaders = list[tuple[bytes, bytes]]

_TO_SERVE = frozenset({b"accept", b"content-type"})
_TO_RAY = frozenset(
    {b"accept", b"accept-encoding", b"accept-language", b"if-none-match", b"if-modified-since"}
)
_FROM_SERVE = frozenset({"content-type", "cache-control", "retry-after"})
_FROM_RAY = frozenset(
    {
        "content-type",
        "content-length",
        "content-encoding",
        "content-disposition",
        "etag",
        "last-modified",
        "vary",
    }
)

# Everything that is not a page: nothing in it may be executed, framed, sniffed or cached.
PLAIN: RawHeaders = [
    (b"x-content-type-options", b"nosniff"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
]


def to_serve(headers: Iterable[tuple[bytes, bytes]], caller: str) -> dict[str, str]:
    """What Serve gets: the content's type, and who called (the key's id)."""
    return {**_passed(headers, _TO_SERVE), "X-Appliance-Caller": caller}


def to_ray(headers: Iterable[tuple[bytes, bytes]], token: str) -> dict[str, str]:
    """What Ray's dashboard gets: content negotiation, caching, and its token."""
    return {**_passed(headers, _TO_RAY), "Authorization": f"Bearer {token}"}


def from_serve(headers: Mapping[str, str]) -> RawHeaders:
    """What a client gets of Serve's headers; the body is framed anew."""
    return _kept(headers, _FROM_SERVE)


def from_ray(headers: Mapping[str, str]) -> RawHeaders:
    """What a browser gets of the dashboard's headers."""
    return _kept(headers, _FROM_RAY)


def _passed(headers: Iterable[tuple[bytes, bytes]], allowed: frozenset[bytes]) -> dict[str, str]:
    return {
        name.decode("ascii"): value.decode("latin-1")
        for name, value in headers
        if name.lower() in allowed
    }


def _kept(headers: Mapping[str, str], allowed: frozenset[str]) -> RawHeaders:
    return [
        (name.lower().encode("ascii"), value.encode("latin-1"))
        for name, value in headers.items()
        if name.lower() in allowed
    ]
