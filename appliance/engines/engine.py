"""What serving asks of something that generates text, whatever runs underneath.

An engine takes prompts as token ids and gives text back piece by piece. It knows nothing of HTTP or
OpenAI; serving knows nothing of batches or caches.

    async for delta in engine.generate(request):
        print(delta.text, end="")

The last delta of every generation, and only it, carries a ``finish_reason``. Closing the iterator
early (``aclose``, or cancelling the task that reads it) cancels the generation and frees its cache.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as the model's chat template takes it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    ``temperature`` 0 is greedy. With a ``seed``, the same prompt gives the same answer whatever
    else is in the batch.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt, already in token ids, for the base model or one of its loaded adapters."""

    id: str
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What was generated since the last delta: text, and how many tokens made it.

    ``text`` may be empty while a character or a possible stop string is incomplete.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written by one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, so that a request it cannot honour is refused before it is queued.

    ``context_tokens`` bounds prompt and completion together; ``concurrent_requests`` is how many
    are decoded in one batch.
    """

    context_tokens: int
    concurrent_requests: int
    adapters: bool


class EngineFailure(Exception):
    """The engine stopped while a request was in it; the request may be sent again."""


class AdapterUnusable(Exception):
    """An adapter's files are not what this engine can load; the message says why."""


class UnknownAdapter(LookupError):
    """No adapter of that name is loaded."""


class Engine(Protocol):
    """A model in memory that generates."""

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do with this model."""

    @property
    def adapters(self) -> Sequence[str]:
        """Names of the loaded adapters, sorted."""

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a conversation by the model's own template, ready for its answer."""

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Delta]:
        """Generate until a stop token, a stop string or ``max_tokens``.

        Raises ``UnknownAdapter`` before the first delta, ``EngineFailure`` at any time.
        """

    async def load_adapter(self, name: str, path: Path) -> None:
        """Load an adapter from a folder in PEFT's format; an adapter of that name is replaced.

        Requests under way keep the adapter they began with. Raises ``AdapterUnusable``.
        """

    async def unload_adapter(self, name: str) -> None:
        """Take no more requests for an adapter. Raises ``UnknownAdapter``."""

    def check(self) -> None:
        """Raise ``EngineFailure`` when no request can be served any more."""

    async def close(self) -> None:
        """Stop, failing what is under way."""
