"""Who is calling: an API key, checked against the registry and remembered for a moment.

What is remembered is the SHA-256 of the key, so that a memory dump of the cache holds no key. A
revocation through this gateway takes effect at once (:meth:`Identities.forget`), one by another
process within :data:`REMEMBER_S`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable

from appliance.errors import ApiKeyRefused
from appliance.registry import ApiKey

REMEMBER_S = 2.0
_MOST = 4096


class Identities:
    """Turns an ``Authorization`` header into an :class:`ApiKey`.

    ``authenticate`` is the registry's: plaintext → key, or None.
    """

    def __init__(
        self,
        authenticate: Callable[[str], ApiKey | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticate = authenticate
        self._clock = clock
        self._known: dict[bytes, tuple[ApiKey, float]] = {}

    async def of_header(self, authorization: str | None) -> ApiKey:
        """The key that ``Authorization: Bearer KEY`` proves.

        Raises:
            ApiKeyRefused: no header, another scheme, or not a valid key.
        """
        scheme, _space, plaintext = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise ApiKeyRefused
        return await self.of_key(plaintext.strip())

    async def of_key(self, plaintext: str) -> ApiKey:
        """The key that ``plaintext`` is; raises :class:`ApiKeyRefused`."""
        digest = hashlib.sha256(plaintext.encode()).digest()
        remembered = self._known.get(digest)
        if remembered is not None and remembered[1] > self._clock():
            return remembered[0]
        key = await asyncio.to_thread(self._authenticate, plaintext)
        if key is None:
            self._known.pop(digest, None)
            raise ApiKeyRefused
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[digest] = (key, self._clock() + REMEMBER_S)
        return key

    def forget(self) -> None:
        """Ask the registry again for every key; call after a revocation."""
        self._known.clear()
