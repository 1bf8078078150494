"""Work on many pieces of a large file at a time: some threads, the largest pieces first.

    run(members, copy, key=lambda m: m.size, count=lanes())      # copy(member, stopped)

SHA-256, reading and writing all let go of the interpreter, so threads use every core. The first
failure stops the rest: ``stopped()`` is true from then on, and they look at it between buffers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

MAX_LANES = 16

T = TypeVar("T")


def lanes() -> int:
    """How many lanes keep this machine's cores and its disk busy."""
    return min(MAX_LANES, 2 * len(os.sched_getaffinity(0)))


def run(
    pieces: Iterable[T],
    work: Callable[[T, Callable[[], bool]], None],
    key: Callable[[T], int],
    count: int,
) -> None:
    """Do ``work`` for every piece, those of the largest ``key`` first, in ``count`` threads.

    Raises what the first failure raised. Memory does not grow with the number of pieces.
    """
    stop, turn = threading.Event(), threading.Lock()
    queue = iter(sorted(pieces, key=key, reverse=True))

    def take_turns() -> None:
        try:
            while not stop.is_set():
                with turn:
                    piece = next(queue, None)
                if piece is None:
                    return
                work(piece, stop.is_set)
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
