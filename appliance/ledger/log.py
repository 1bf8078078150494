"""The ledger's writer: append-only, durable before it answers, safe against a kill at any moment.

>>> Ledger.create(home, origin="hospital.example/appliance-1")      # once, at install
>>> ledger = Ledger.open(home)
>>> ledger.append([Event("operator:alice", "key.create", {"key": "3f9a…"})])
[0]

Order of an append, under one ``flock`` for all processes: write the tiles and entry bundles that
the new size needs, fsync them and their folders, then replace ``checkpoint`` atomically. Until that
rename the log is what it was; whatever lies beyond the checkpoint is a torn tail and is removed
before the next append. Indices are returned only after the new checkpoint is on the disk.

Threads that append at the same time share one set of fsyncs (group commit). ``append`` blocks for
the length of a few fsyncs: call it from asyncio through ``asyncio.to_thread``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from appliance.errors import (
    DiskFull,
    LedgerDamaged,
    LedgerExists,
    LedgerKeyUnusable,
    LedgerMissing,
    LedgerUnwritable,
)
from appliance.layout import Home
from appliance.ledger.durable import publish, remove_tail, remove_tree, write_all
from appliance.ledger.edge import Edge, Growth
from appliance.ledger.event import Event
from appliance.ledger.files import CHECKPOINT, VERIFIER, LedgerFiles, TileUnreadable
from appliance.ledger.merkle import leaf_hash
from appliance.ledger.note import Checkpoint, NoteInvalid, Signer, verify_checkpoint
from appliance.ledger.tiles import WIDTH, decode_entries

KEY = "ledger.key"  # under Home.secrets
_LOCK = "lock"  # under Home.ledger


@dataclass(slots=True)
class _Request:
    """One thread's entries, waiting for a commit."""

    entries: list[bytes]
    indices: list[int] = field(default_factory=list)
    error: BaseException | None = None
    settled: bool = False


@dataclass(frozen=True, slots=True)
class _Head:
    """The log as this process last saw it."""

    checkpoint: bytes = b""
    edge: Edge = field(default_factory=Edge.empty)


class Ledger:
    """One log, open for appending. Usable from any thread; close is not needed."""

    def __init__(self, root: Path, signer: Signer) -> None:
        self._root = root
        self._signer = signer
        self._head = _Head()
        self._turn = threading.Condition()
        self._waiting: list[_Request] = []  # guarded by _turn, like the next
        self._committing = False

    @classmethod
    def create(cls, home: Home, origin: str) -> Self:
        """Make the key pair and an empty log named ``origin``, a schema-less URL by custom.

        An interrupted creation is completed by the next.

        Raises:
            LedgerExists: there is one already.
            LedgerDamaged: there are entries, and their checkpoint is gone.
            LedgerKeyUnusable: ``origin`` has spaces or a plus sign, or an older key is damaged.
            DiskFull, LedgerUnwritable: the files cannot be written.
        """
        with _operator_errors(home.ledger):
            home.secrets.mkdir(mode=0o700, parents=True, exist_ok=True)
            home.ledger.mkdir(parents=True, exist_ok=True)
            with _exclusive(home.ledger):
                if (home.ledger / CHECKPOINT).exists():
                    raise LedgerExists(path=home.ledger)
                _refuse_headless(home.ledger)
                signer = _make_key(home.secrets / KEY, origin)
                publish(home.ledger / VERIFIER, f"{signer.verifier}\n".encode())
                checkpoint = Checkpoint(origin, 0, Edge.empty().root())
                publish(home.ledger / CHECKPOINT, signer.sign(checkpoint.text).encode())
        return cls.open(home)

    @classmethod
    def open(cls, home: Home) -> Self:
        """Open the log of ``home``, dropping what an interrupted append left beyond its checkpoint.

        Raises:
            LedgerMissing: there is none.
            LedgerKeyUnusable: its key is missing, readable by others, or not this log's.
            LedgerDamaged: its checkpoint is gone, or its newest tiles do not build its root.
        """
        with _operator_errors(home.ledger):
            if not (home.ledger / CHECKPOINT).exists():
                _refuse_headless(home.ledger)
                raise LedgerMissing(path=home.ledger)
        ledger = cls(home.ledger, _read_key(home.secrets / KEY))
        with _operator_errors(home.ledger), _exclusive(home.ledger) as lock:
            if lock.torn:
                ledger._recover(lock)
            else:
                ledger._load()
        return ledger

    @property
    def origin(self) -> str:
        """The log's name."""
        return self._signer.verifier.name

    @property
    def verifier(self) -> str:
        """The public key an auditor needs, as a verifier string."""
        return str(self._signer.verifier)

    def checkpoint(self) -> bytes:
        """The signed head as it is on the disk now."""
        return LedgerFiles(self._root).checkpoint()

    def append(self, events: Sequence[Event]) -> list[int]:
        """Record ``events`` and return their indices once they are durable. All of them or none.

        Raises:
            DiskFull: no space; the ledger is as it was.
            LedgerUnwritable: the disk refused; the ledger is as it was.
            LedgerDamaged: the ledger does not fit its checkpoint; nothing was added.
        """
        request = _Request([event.encode() for event in events])
        if not request.entries:
            return []
        with self._turn:
            self._waiting.append(request)
            self._turn.wait_for(lambda: request.settled or not self._committing)
            batch = []
            if not request.settled:  # nobody is at it: commit for all that wait
                batch, self._waiting = self._waiting, []
                self._committing = True
        if batch:
            self._commit(batch)
        if request.error is not None:
            raise request.error
        return request.indices

    def _commit(self, batch: list[_Request]) -> None:
        try:
            first = self._write([entry for request in batch for entry in request.entries])
            for request in batch:
                request.indices = list(range(first, first + len(request.entries)))
                first += len(request.entries)
        except BaseException as error:  # noqa: BLE001 - every waiting thread raises it
            for request in batch:
                request.error = error
        with self._turn:
            for request in batch:
                request.settled = True
            self._committing = False
            self._turn.notify_all()

    def _write(self, entries: list[bytes]) -> int:
        """Make ``entries`` durable under a new checkpoint; the first one's index."""
        with _operator_errors(self._root), _exclusive(self._root) as lock:
            if lock.torn:
                self._recover(lock)
            elif self._head.checkpoint != LedgerFiles(self._root).checkpoint():
                self._load()  # another process appended
            before = self._head.edge
            growth = before.extend(entries)
            with lock.writing():
                self._store(growth)
            return before.size

    def _store(self, growth: Growth) -> None:
        files = [(self._root / tile.path, data) for tile, data in growth.full + growth.partial]
        head = Checkpoint(self.origin, growth.edge.size, growth.edge.root())
        note = self._signer.sign(head.text).encode()
        try:
            write_all(files, self._root)
            publish(self._root / CHECKPOINT, note)
        except OSError:
            self._abandon(files)
            raise
        self._head = _Head(note, growth.edge)
        for tile, _data in growth.full:
            # Older checkpoints find the same hashes at the start of the full tile (tlog-tiles).
            remove_tree(self._root / f"{tile.path}.p")

    def _abandon(self, files: list[tuple[Path, bytes]]) -> None:
        """Give back the space of a failed append, unless its checkpoint got published after all."""
        published = LedgerFiles(self._root).checkpoint() != self._head.checkpoint
        self._head = _Head()  # read everything from the disk next time
        if not published:
            for path, _data in files:
                path.unlink(missing_ok=True)

    def _recover(self, lock: _Lock) -> None:
        self._load()
        with lock.writing():
            remove_tail(self._root, self._head.edge.size)

    def _load(self) -> None:
        """Read the head and check that the newest tiles and entries build it."""
        files = LedgerFiles(self._root)
        note = files.checkpoint()
        try:
            head = verify_checkpoint(note, self._signer.verifier)
            edge = files.edge(head.size)
        except (NoteInvalid, TileUnreadable) as error:
            raise LedgerDamaged(reason=error, path=self._root) from error
        if edge.root() != head.root:
            raise LedgerDamaged(reason="its tiles do not build its checkpoint", path=self._root)
        newest = decode_entries(edge.bundle, edge.size % WIDTH)
        if newest and tuple(leaf_hash(entry) for entry in newest) != edge.rows[0]:
            raise LedgerDamaged(reason="its newest entries are not its leaves", path=self._root)
        self._head = _Head(note, edge)


class _Lock:
    """The held lock file. It says whether the writer before ended well, and in which boot.

    A writer that is killed leaves no good word, and the next one clears the torn tail first. The
    word is not synced; it need not be, as one from before a power cut names another boot.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._well = b"idle " + Path("/proc/sys/kernel/random/boot_id").read_bytes()
        self.torn = os.pread(descriptor, len(self._well), 0) != self._well

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around what changes the log. After an error the tail is for the next one to clear."""
        os.pwrite(self._descriptor, b"busy", 0)
        yield
        os.pwrite(self._descriptor, self._well, 0)


@contextmanager
def _exclusive(root: Path) -> Iterator[_Lock]:
    descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield _Lock(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _operator_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            stat = os.statvfs(root)
            free = f"{stat.f_bavail * stat.f_frsize / 1000:.0f} kB"
            reason = "The ledger is as it was; what could not be recorded was not done."
            raise DiskFull(path=root, needed="1 MB", free=free, reason=reason) from error
        raise LedgerUnwritable(path=root, reason=error.strerror or str(error)) from error


def _refuse_headless(root: Path) -> None:
    """Entries without a checkpoint are a ledger somebody damaged, not one that never was."""
    if (root / "tile").exists():
        raise LedgerDamaged(reason="its checkpoint is gone", path=root)


def _make_key(path: Path, origin: str) -> Signer:
    """The key an interrupted creation left, or a new one, written with mode 0600."""
    try:
        if path.exists():
            signer = _read_key(path)
            if signer.verifier.name == origin:
                return signer
            raise LedgerKeyUnusable(path=path, reason=f"It signs for {signer.verifier.name}.")
        signer = Signer.generate(origin)
    except NoteInvalid as error:
        raise LedgerKeyUnusable(path=path, reason=f"{error}.") from error
    publish(path, f"{signer.export()}\n".encode(), mode=0o600)
    return signer


def _read_key(path: Path) -> Signer:
    try:
        mode = path.stat().st_mode & 0o077
        text = path.read_text("utf-8").strip()
        signer = Signer.parse(text)
    except OSError as error:
        reason = f"It cannot be read: {error.strerror}."
        raise LedgerKeyUnusable(path=path, reason=reason) from error
    except (NoteInvalid, UnicodeDecodeError) as error:
        raise LedgerKeyUnusable(path=path, reason="It is not a signing key.") from error
    if mode:
        reason = f"Other users may read it; type: chmod 600 {path}"
        raise LedgerKeyUnusable(path=path, reason=reason)
    return signer
