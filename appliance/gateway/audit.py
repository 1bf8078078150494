"""The ledger as the gateway uses it: many requests, one durable append.

``record`` returns once the event is durable, so an answer that waits for it is accounted for.
Events that come while an append is under way go together in the next one (group commit), so that
the cost of making a batch durable is shared, and one request alone waits for one append only.

When the ledger cannot be written, the events that were to go on it are kept, ``record`` raises
:class:`AuditUnavailable`, and :meth:`Audit.demand` refuses new work until a retry succeeds: then
nothing is missing from the record and service resumes by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from appliance.errors import AuditUnavailable
from appliance.ledger.event import Event

_LOG = logging.getLogger(__name__)
_RETRY_S = 1.0
_LARGEST_BATCH = 512


@dataclass(frozen=True)
class _Waiting:
    event: Event
    durable: asyncio.Future[None]


class Audit:
    """A group-commit queue before ``append``, which blocks until its events are durable.

    Use as an asynchronous context manager: it runs one task, and leaving writes what is queued.
    """

    def __init__(self, append: Callable[[Sequence[Event]], object]) -> None:
        self._append = append
        self._queue: list[_Waiting] = []
        self._owed: list[Event] = []
        self._reason = ""
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Audit:
        self._task = asyncio.create_task(self._run(), name="audit")
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task

    @property
    def writable(self) -> bool:
        """Whether the last append succeeded."""
        return not self._owed

    def demand(self) -> None:
        """Raise :class:`AuditUnavailable` while the ledger is owed events."""
        if self._owed or self._closing:
            raise AuditUnavailable(reason=self._reason or "It is shutting down.")

    async def record(self, event: Event) -> None:
        """Return once ``event`` is durable.

        The event is recorded even if the caller is cancelled meanwhile.

        Raises:
            AuditUnavailable: it could not be written now; it is kept and will be.
        """
        durable = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(event, durable))
        self._wake.set()
        await asyncio.shield(durable)

    def note(self, event: Event) -> None:
        """Record ``event`` without waiting: for what has no answer to hold back."""
        durable = asyncio.get_running_loop().create_future()
        durable.add_done_callback(_seen)
        self._queue.append(_Waiting(event, durable))
        self._wake.set()

    async def _run(self) -> None:
        while not (self._closing and not self._queue):
            if not self._queue:
                timeout = _RETRY_S if self._owed else None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), timeout)
                self._wake.clear()
            batch, self._queue = self._queue[:_LARGEST_BATCH], self._queue[_LARGEST_BATCH:]
            if batch or self._owed:
                await self._commit(batch)

    async def _commit(self, batch: list[_Waiting]) -> None:
        events = [*self._owed, *(waiting.event for waiting in batch)]
        try:
            await asyncio.to_thread(self._append, events)
        except Exception as error:  # noqa: BLE001 - whatever it is, the record has a gap: refuse
            _LOG.error("the ledger cannot be written: %s", error)
            self._owed, self._reason = events, f"{type(error).__name__}: {error}."
            for waiting in batch:
                _settle(waiting.durable, AuditUnavailable(reason=self._reason))
            return
        if self._owed:
            _LOG.warning("the ledger is written again; %d events were owed", len(self._owed))
        self._owed = []
        for waiting in batch:
            _settle(waiting.durable, None)


def _settle(future: asyncio.Future[None], error: AuditUnavailable | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # looked at, even if the request that waited has gone


def _seen(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
