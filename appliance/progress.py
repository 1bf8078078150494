"""How long work tells someone about itself, without knowing who listens.

Rooms report through the :class:`Progress` protocol; the CLI draws bars from it, a journal records
it, and :class:`Silent` drops it. Anything that may take more than two seconds takes a ``Progress``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

Unit = Literal["bytes", "items", "steps"]


class Task(Protocol):
    """One bar: something with a size that is being worked off."""

    def advance(self, amount: int) -> None:
        """Report ``amount`` more units done. Safe to call from any thread."""

    def note(self, text: str) -> None:
        """Replace the short remark beside the bar (a loss, a file name)."""


class Progress(Protocol):
    """Where a room reports what it does."""

    def task(self, title: str, total: int | None, unit: Unit) -> AbstractContextManager[Task]:
        """Open a task of ``total`` units (None: unknown) for the length of a ``with`` block."""

    def say(self, text: str) -> None:
        """One line of narration."""


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """A :class:`Progress` nobody listens to."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: Unit) -> Iterator[Task]:
        yield _SilentTask()

    def say(self, text: str) -> None:
        pass
