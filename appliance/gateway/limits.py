"""How much one key may ask: a token bucket for the rate, a count for what runs at once. Pure.

Times are seconds of a monotonic clock, passed in. Memory is bounded by the number of keys, because
only authenticated callers come this far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from appliance.errors import RateLimited


@dataclass(frozen=True)
class Allowance:
    """What one key may do: ``rate`` requests/s, ``burst`` in a moment, ``together`` running."""

    rate: float = 50.0
    burst: int = 200
    together: int = 64


@dataclass
class _Use:
    tokens: float
    at: float
    running: int = 0


class Limiter:
    """Counts what each key does against one :class:`Allowance`."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._uses: dict[str, _Use] = {}

    def enter(self, key: str, now: float) -> None:
        """Admit one request of ``key``; every admission needs one :meth:`leave`.

        Raises:
            RateLimited: over the rate, or too many at once; nothing is counted then.
        """
        allowance = self._allowance
        use = self._uses.setdefault(key, _Use(float(allowance.burst), now))
        use.tokens = min(allowance.burst, use.tokens + (now - use.at) * allowance.rate)
        use.at = now
        if use.running >= allowance.together:
            raise RateLimited(limit=f"{allowance.together} at once", seconds=1)
        if use.tokens < 1.0:
            wait = math.ceil((1.0 - use.tokens) / allowance.rate)
            raise RateLimited(limit=f"{allowance.rate:g}/s", seconds=wait)
        use.tokens -= 1.0
        use.running += 1

    def leave(self, key: str) -> None:
        """A request admitted before has ended."""
        self._uses[key].running -= 1


class Backoff:
    """How long to hold an answer to a failed login: doubling from 0.25 s to 8 s, then forgotten.

    The keys hold 256 random bits and cannot be guessed; this is for the log to stay readable and
    for the CPU to stay free. Bounded: with more than 1024 addresses the oldest is forgotten.
    """

    _FIRST_S, _LONGEST_S, _FORGET_S, _MOST = 0.25, 8.0, 300.0, 1024

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}

    def failed(self, address: str, now: float) -> float:
        """Count a failure and return the seconds to wait before answering it."""
        count, at = self._failures.pop(address, (0, now))
        count = 0 if now - at > self._FORGET_S else count
        self._failures[address] = (count + 1, now)
        if len(self._failures) > self._MOST:
            del self._failures[next(iter(self._failures))]
        return float(min(self._LONGEST_S, self._FIRST_S * 2**count))

    def succeeded(self, address: str) -> None:
        """Forget the failures of ``address``."""
        self._failures.pop(address, None)
