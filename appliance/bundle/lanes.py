"""Work on many pieces of a large file at a time: some threads, a buffer each, the largest first.

    run(members, lambda member, lane: copy(member, lane), size_of=lambda m: m.size, threads=4)

SHA-256, reading and writing all let go of the interpreter, so threads use every core; the buffers
are all that memory it takes. The first failure stops the rest at their next buffer.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

BUFFER = 4 << 20  # bytes a lane reads, hashes and writes at a time
MAX_LANES = 16

T = TypeVar("T")


class Lane:
    """What one thread has to itself: ``buffer``, page-aligned as O_DIRECT wants it."""

    def __init__(self, stop: threading.Event) -> None:
        self.buffer = memoryview(mmap.mmap(-1, BUFFER))
        self._stop = stop

    @property
    def stopped(self) -> bool:
        """Whether another lane failed: whatever this one does is for nothing."""
        return self._stop.is_set()


def lanes() -> int:
    """How many lanes keep this machine's cores and its disk busy."""
    return min(MAX_LANES, 2 * len(os.sched_getaffinity(0)))


def run(
    pieces: Iterable[T], work: Callable[[T, Lane], None], size_of: Callable[[T], int], count: int
) -> None:
    """Do ``work`` for every piece in ``count`` threads; raise what the first failure raised."""
    stop, turn = threading.Event(), threading.Lock()
    queue = iter(sorted(pieces, key=lambda piece: -size_of(piece)))

    def take_turns() -> None:
        lane = Lane(stop)
        try:
            while not stop.is_set():
                with turn:
                    piece = next(queue, None)
                if piece is None:
                    return
                work(piece, lane)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(count, thread_name_prefix="lane") as pool:
        jobs = [pool.submit(take_turns) for _ in range(count)]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
    for job in jobs:
        job.result()
