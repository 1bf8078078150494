"""Turn a growing list of token ids into text that can be shown at once, and stop at a string.

Two small machines without I/O. A token of a byte-level vocabulary may hold part of a character, and
what a token decodes to may depend on the one before it, so text is released only when it can no
longer change (:class:`IncrementalDetokenizer`); and text that may be the beginning of a stop string
waits until it is known not to be (:class:`StopStrings`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_REPLACEMENT = "\ufffd"
# The first three bytes of a four-byte character may each be shown as U+FFFD until the last comes.
_LONGEST_INCOMPLETE = 3


@dataclass(slots=True)
class IncrementalDetokenizer:
    """Decode token ids as they come; the pieces joined are the decoding of all of them.

    ``decode`` maps token ids to text, with U+FFFD where bytes make no character. Each call decodes
    only the tokens since the text last ended in a whole character, and the stretch before them,
    which they may depend on.
    """

    decode: Callable[[Sequence[int]], str]
    _tokens: list[int] = field(default_factory=list)  # the stretch before, and the tokens since
    _whole: int = 0  # how many of them belong to the stretch before
    _released: int = 0  # how many characters of their text are released

    def push(self, tokens: Sequence[int]) -> str:
        """Add tokens; return the text that is now certain."""
        self._tokens.extend(tokens)
        text = self.decode(self._tokens)
        certain = _certain_length(text)
        piece = text[self._released : certain]
        self._released = max(self._released, certain)
        if certain == len(text):
            del self._tokens[: self._whole]
            self._whole = len(self._tokens)
            self._released = len(self.decode(self._tokens))
        return piece

    def flush(self) -> str:
        """The text held back, incomplete characters as U+FFFD; call once, at the end."""
        text = self.decode(self._tokens)
        piece = text[self._released :]
        self._released = len(text)
        return piece


def _certain_length(text: str) -> int:
    """How much of ``text`` more bytes cannot change."""
    tail = text[-_LONGEST_INCOMPLETE:]
    return len(text) - (len(tail) - len(tail.rstrip(_REPLACEMENT)))


@dataclass(slots=True)
class StopStrings:
    """Let text through until the first stop string; neither it nor what follows is let through."""

    stops: tuple[str, ...]
    stopped: bool = False
    _held: str = ""

    def push(self, text: str) -> str:
        """Add text; return what is certain to stand before any stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        first = min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=-1)
        if first >= 0:
            self.stopped = True
            self._held = ""
            return text[:first]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back, which turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
