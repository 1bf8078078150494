"""Login sessions of people at a browser.

A session is 256 random bits in a cookie and its record in this process's memory: nothing to forge,
nothing on disk, and logging out ends it for good. A restart of the gateway logs everyone out. The
key behind a session is looked up again at every request, so revoking a key ends its sessions.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

COOKIE = "__Host-sovctl"  # the prefix makes browsers insist on Secure, Path=/ and no Domain
LIFE_S = 8 * 3600.0
_MOST = 1024


@dataclass(frozen=True)
class _Session:
    key: str
    until: float


class Sessions:
    """The open sessions. ``clock`` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[bytes, _Session] = {}

    def begin(self, key: str) -> str:
        """Open a session for the holder of API key ``key`` (plaintext); returns the cookie's value.

        The plaintext is kept, in memory only, to ask the registry again at every request.
        """
        token = secrets.token_urlsafe(32)
        if len(self._open) >= _MOST:
            del self._open[next(iter(self._open))]
        self._open[_name(token)] = _Session(key, self._clock() + LIFE_S)
        return token

    def key_of(self, token: str) -> str | None:
        """The API key of an open session, or None."""
        session = self._open.get(_name(token))
        if session is None or session.until <= self._clock():
            self._open.pop(_name(token), None)
            return None
        return session.key

    def end(self, token: str) -> None:
        """Close a session; an unknown one is closed already."""
        self._open.pop(_name(token), None)


def _name(token: str) -> bytes:
    # Looked up by digest, so that the lookup's timing says nothing about the token.
    return hashlib.sha256(token.encode()).digest()
