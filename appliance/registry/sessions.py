"""Sessions over one engine: one for reading, one for writing, errors in the operator's words."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlalchemy.orm import Session

from appliance.errors import ApplianceError, DiskFull, RegistryBusy, RegistryDamaged


class Sessions:
    """Hands out transactions.

    A writing one takes SQLite's write lock as it begins (``BEGIN IMMEDIATE``): a transaction that
    reads first and asks for the lock later can lose to another writer and cannot wait for it.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self._reading = engine
        self._writing = engine.execution_options(sqlite_begin="IMMEDIATE")
        self._path = path

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that changes nothing and waits for nobody."""
        with translated(self._path), Session(self._reading) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits when the block ends well and leaves no trace otherwise."""
        with translated(self._path), Session(self._writing) as session, session.begin():
            yield session


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn SQLite's complaints about the file itself into errors an operator can act on."""
    try:
        yield
    except IntegrityError:
        raise  # about a row, not about the file: the caller knows what it means
    except DatabaseError as error:
        raise _operator_error(error.orig, path) or error from error


def _operator_error(cause: BaseException | None, path: Path) -> ApplianceError | None:
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
    if code == sqlite3.SQLITE_FULL:
        stat = os.statvfs(path.parent)
        free = stat.f_bavail * stat.f_frsize
        reason = "The registry is as it was; what could not be written was not done."
        return DiskFull(path=path.parent, needed="1 MB", free=f"{free} B", reason=reason)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RegistryBusy(path=path)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return RegistryDamaged(path=path, reason=cause)
    return None
