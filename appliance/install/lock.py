"""One command at a time may change an installation, or a site's.

The lock is flock(2) on ``Home.lock`` or ``SitePlace.lock``: the kernel releases it when its holder
ends, however it ends, so it is never stale. The file's content (holder's process id and command) is
only there to be shown to whoever has to wait; it decides nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from appliance.errors import Busy, PermissionRefused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_ATTEMPTS = 4
_PAUSE_S = 0.05


class Lockable(Protocol):
    """A folder with a lock: ``Home`` and ``SitePlace`` of :mod:`appliance.layout`."""

    @property
    def root(self) -> Path:
        """The folder; made if it is missing."""

    @property
    def lock(self) -> Path:
        """The lock's file, directly in it."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds the lock."""

    pid: int
    command: str


@contextmanager
def hold(home: Lockable, command: str) -> Iterator[None]:
    """Hold the installation's lock for the ``with`` block.

    ``command`` is what the operator typed, without secrets. Raises :class:`Busy` at once if
    another process holds it, naming that process, and :class:`PermissionRefused` if the folder
    cannot be made or written to.
    """
    try:
        home.root.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(home)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}."
        raise PermissionRefused(path=home.root, action="written to", reason=reason) from error
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "command": command}).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _acquire(home: Lockable) -> int:
    """Return a locked descriptor. Raises :class:`Busy` if another process keeps the lock."""
    # Not inherited by child processes: what outlives us (the appliance) must not hold the lock.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    for _attempt in range(_ATTEMPTS):
        descriptor = os.open(home.lock, flags, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # 'uninstall' removes the file while it holds it: a lock on a removed file is worth
            # nothing, so look whether what we locked is still what the name means.
            if os.path.samestat(os.fstat(descriptor), os.stat(home.lock)):  # noqa: PTH116
                return descriptor
        except BlockingIOError:
            time.sleep(_PAUSE_S)  # 'doctor' asks by locking for an instant
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    owner = _read(home.lock)
    raise Busy(home=home.root, pid=owner.pid, command=owner.command)


def holder(home: Lockable) -> Holder | None:
    """Who holds the lock now, or None if nobody does."""
    try:
        descriptor = os.open(home.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(home.lock)
    else:
        return None
    finally:
        os.close(descriptor)


def _read(path: Path) -> Holder:
    try:
        content = json.loads(path.read_bytes())
        return Holder(int(content["pid"]), str(content["command"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(0, "sovctl")
