"""kill -9 at random moments of an operation, many times, in bounded time.

    report = Lab(folder, seed=7).run(Operation("load", reset, work, settled, done), kills=80)

Everything is imported once; each trial forks, the child does ``work``, and the parent kills it
after a delay drawn over the time it takes. What a kill leaves is the next trial's start, as on
a real machine, until one trial reaches the end; then ``done`` looks at it, and ``reset`` begins
anew. Another operation is one more :class:`Operation`, usually one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.store.blobs import Store


@dataclass(frozen=True)
class Operation:
    """``reset`` prepares a fresh start; ``work`` is what is killed, in a child, and does nothing
    that the next try could not; ``settled`` asserts what must hold after every kill, ``done`` what
    must hold after an undisturbed end."""

    name: str
    reset: Callable[[], None]
    work: Callable[[], object]
    settled: Callable[[], None]
    done: Callable[[], None]


@dataclass(frozen=True)
class Report:
    """``kills`` hit a child at work; ``completed`` trials outran theirs. ``typical`` in seconds."""

    name: str
    kills: int
    completed: int
    typical: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.kills} kills, {self.completed} completed,"
            f" {self.typical * 1000:.0f} ms undisturbed"
        )


class Lab:
    """One seed for all the delays; a failure prints it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._chance = random.Random(seed)

    def run(self, operation: Operation, kills: int) -> Report:
        """Kill ``operation`` that often, with what must hold asserted after each kill."""
        try:
            return self._run(operation, kills)
        except BaseException:
            print(f"kill lab: {operation.name}, seed {self.seed}", file=sys.stderr)
            raise

    def _run(self, operation: Operation, kills: int) -> Report:
        typical = statistics.median(self._undisturbed(operation) for _ in range(3))
        operation.reset()
        done = completed = 0
        while done < kills:
            if self._trial(operation, self._chance.uniform(0, typical)):
                done += 1
                operation.settled()
            else:
                completed += 1
                operation.done()
                operation.reset()
            assert completed <= 3 * kills + 20, "it ends too fast to be hit"
        self._complete(operation)
        return Report(operation.name, done, completed, typical)

    def _undisturbed(self, operation: Operation) -> float:
        operation.reset()
        started = time.monotonic()
        self._complete(operation)
        return time.monotonic() - started

    def _complete(self, operation: Operation) -> None:
        """Let it come to its end, as the operator's next try would."""
        child = _fork(operation.work)
        _pid, status = os.waitpid(child, 0)
        assert status == 0, f"{operation.name} failed after a kill"
        operation.done()

    def _trial(self, operation: Operation, delay: float) -> bool:
        """Whether the kill came before the end."""
        child = _fork(operation.work)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)  # not waited for yet, so it is still ours, if only a zombie
        _pid, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return True
        assert status == 0, f"{operation.name} failed after a kill"
        return False


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    with contextlib.suppress(BaseException):
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
    os._exit(code)


# --- what must hold ------------------------------------------------------------------------------


def assert_whole_blobs(store: Store) -> None:
    """Every blob with its final name has the content its name says."""
    for digest in store.digests():
        store.check(digest)


def assert_nothing_unfinished(store: Store) -> None:
    """No writer left a file behind."""
    assert list((store.root / "tmp").iterdir()) == []


def assert_whole_or_absent(path: Path, *allowed: str) -> None:
    """The file is not there, or has one of the SHA-256 sums."""
    if path.exists():
        assert sha256(path) in allowed, f"{path.name} is half written under its final name"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
