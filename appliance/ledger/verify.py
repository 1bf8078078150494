"""Checking a log from its files alone, with a public key: for an auditor who trusts nobody.

Every entry is decoded and hashed, every tile of every level is compared with what the entries
build, and the root with the signed checkpoint; so one changed byte in any file is found and named.
With an older checkpoint, kept elsewhere, it also shows that nothing before it was changed or lost.

What it cannot show: that the holder of the signing key did not rewrite everything since the last
checkpoint somebody else kept. Keep checkpoints on another machine (``sovctl audit checkpoint``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.ledger.event import Event, EventInvalid
from appliance.ledger.files import CHECKPOINT, VERIFIER, LedgerFiles, TileUnreadable, tile_at
from appliance.ledger.merkle import CompactRange, leaf_hash, perfect_root
from appliance.ledger.note import Checkpoint, NoteInvalid, Verifier, verify_checkpoint
from appliance.ledger.tiles import HEIGHT, WIDTH, Tile, decode_entries
from appliance.progress import Progress

_LEAF_DIFFERS = "the entry does not hash to its leaf"
_MAX_FAULTS = 100  # a rewritten log has one per entry; a hundred say enough


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as signed. ``index`` is the first entry it touches, if one is known."""

    path: str
    reason: str
    index: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome. ``checkpoint`` is None when it is itself not to be trusted."""

    checkpoint: Checkpoint | None
    older: Checkpoint | None
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    @property
    def first_bad(self) -> int | None:
        """The smallest index a fault touches, if one is known."""
        return min((f.index for f in self.faults if f.index is not None), default=None)

    def as_json(self) -> dict[str, object]:
        """The verdict for machines."""
        head, older = self.checkpoint, self.older
        return {
            "ok": self.ok,
            "origin": head.origin if head else None,
            "size": head.size if head else None,
            "root": head.root.hex() if head else None,
            "extends": older.size if older else None,
            "first_bad": self.first_bad,
            "faults": [{"index": f.index, "path": f.path, "reason": f.reason} for f in self.faults],
        }


def verify(
    root: Path, verifier: Verifier, progress: Progress, against: bytes | None = None
) -> Verdict:
    """Check the log under ``root`` with ``verifier``, and that it extends checkpoint ``against``.

    The log may grow meanwhile: what is beyond the checkpoint read first is left alone.
    """
    files = LedgerFiles(root)
    head, fault = _checkpoint(files, verifier)
    older, older_fault = _older(against, verifier)
    faults = [found for found in (fault, older_fault, *_verifier_faults(files, verifier)) if found]
    if head is None:
        return Verdict(None, older, tuple(faults))
    walk = _Walk(files, head, older, faults)
    with progress.task("Checking the ledger", head.size, "items") as task:
        for bundle in range(-(-head.size // WIDTH)):
            task.advance(walk.bundle(bundle))
    walk.finish()
    walk.faults.extend(_leftover_faults(files, head.size))
    return Verdict(head, older, tuple(walk.faults[:_MAX_FAULTS]))


@dataclass(slots=True)
class _Walk:
    """One pass over the entries, left to right, holding one tile of each level in memory."""

    files: LedgerFiles
    head: Checkpoint
    older: Checkpoint | None
    faults: list[Fault]
    tree: CompactRange = field(default_factory=CompactRange)
    rows: list[list[bytes]] = field(default_factory=list)
    lost: bool = False  # some leaf is unknown: roots above it cannot be computed

    def bundle(self, number: int) -> int:
        """Check one entry bundle and its level-0 tile; the number of entries in it."""
        first = number * WIDTH
        bundle, tile = (tile_at(level, number, self.head.size) for level in ("entries", 0))
        entries = self._read_entries(bundle)
        stored = self._read_hashes(tile)
        leaves = stored if entries is None else [leaf_hash(entry) for entry in entries]
        for offset, entry in enumerate(entries or ()):
            try:
                Event.decode(entry)
            except EventInvalid as error:
                self._fault(bundle.path, f"not an event: {error}", first + offset)
        for offset, (built, kept) in enumerate(zip(leaves or (), stored or (), strict=False)):
            if built != kept:
                self._fault(bundle.path, _LEAF_DIFFERS, first + offset)
        self._grow(leaves)
        return bundle.width

    def finish(self) -> None:
        """Check the partial tiles above level 0, and the root."""
        for level in range(1, len(self.rows)):
            if self.rows[level]:
                self._compare(level, self.rows[level])
        if not self.lost:
            self._compare_root()
        self._at_older()
        if self.older and self.older.size > self.head.size:
            reason = f"the older checkpoint has {self.older.size} entries, this one fewer"
            self._fault(CHECKPOINT, reason, self.head.size)

    def _grow(self, leaves: list[bytes] | None) -> None:
        if leaves is None:
            self.lost = True
        if self.lost:
            return
        for leaf in leaves or ():
            self._at_older()
            self.tree.append(leaf)
        if leaves and len(leaves) == WIDTH:
            self._push(1, perfect_root(leaves))

    def _push(self, level: int, node: bytes) -> None:
        while len(self.rows) <= level:
            self.rows.append([])
        row = self.rows[level]
        row.append(node)
        if len(row) == WIDTH:
            self._compare(level, row)
            self.rows[level] = []
            self._push(level + 1, perfect_root(row))

    def _compare(self, level: int, row: list[bytes]) -> None:
        """Compare a recomputed tile, the newest of its level, with the file."""
        nodes = self.tree.size >> (HEIGHT * level)
        tile = tile_at(level, (nodes - 1) // WIDTH, self.head.size)
        stored = self._read_hashes(tile)
        for offset, (built, kept) in enumerate(zip(row, stored or (), strict=False)):
            first, end = ((tile.index * WIDTH + offset + i) << (HEIGHT * level) for i in (0, 1))
            # A bad entry makes every hash above it differ; it has been named already.
            if built != kept and not self._has_fault_in(first, end):
                self._fault(tile.path, "the tile does not match the entries under it", first)

    def _compare_root(self) -> None:
        if self.tree.root() == self.head.root:
            # The entries are those signed; where a leaf differs from one, the tile is bad.
            self.faults = [
                replace(f, path=tile_at(0, f.index // WIDTH, self.head.size).path)
                if f.reason == _LEAF_DIFFERS and f.index is not None
                else f
                for f in self.faults
            ]
        elif not self._has_fault_in(0, self.head.size):
            self._fault(CHECKPOINT, "the entries build another root than it states", None)

    def _has_fault_in(self, first: int, end: int) -> bool:
        return any(f.index is not None and first <= f.index < end for f in self.faults)

    def _at_older(self) -> None:
        """When as many leaves are in as the older checkpoint has, its root must be ours."""
        older = self.older
        if older and not self.lost and older.size == self.tree.size:
            if self.tree.root() != older.root:
                reason = f"entries before {older.size} are not those of the older checkpoint"
                self._fault(CHECKPOINT, reason, None)
            self.older = None  # said once

    def _read_entries(self, tile: Tile) -> list[bytes] | None:
        try:
            return self.files.entries(tile)
        except TileUnreadable as error:
            self._fault(tile.path, error.reason, tile.index * WIDTH)
            return None

    def _read_hashes(self, tile: Tile) -> list[bytes] | None:
        try:
            return self.files.hashes(tile)
        except TileUnreadable as error:
            assert isinstance(tile.level, int)
            self._fault(tile.path, error.reason, tile.index << (HEIGHT * (tile.level + 1)))
            return None

    def _fault(self, path: str, reason: str, index: int | None) -> None:
        if len(self.faults) < _MAX_FAULTS:
            self.faults.append(Fault(path, reason, index))


def _checkpoint(
    files: LedgerFiles, verifier: Verifier
) -> tuple[Checkpoint, None] | tuple[None, Fault]:
    try:
        return verify_checkpoint(files.checkpoint(), verifier), None
    except NoteInvalid as error:
        return None, Fault(CHECKPOINT, str(error))
    except OSError as error:
        return None, Fault(CHECKPOINT, error.strerror or "cannot be read")


def _older(against: bytes | None, verifier: Verifier) -> tuple[Checkpoint | None, Fault | None]:
    if against is None:
        return None, None
    try:
        return verify_checkpoint(against, verifier), None
    except NoteInvalid as error:
        return None, Fault("the older checkpoint", str(error))


def _verifier_faults(files: LedgerFiles, verifier: Verifier) -> Iterator[Fault]:
    """The key the log names for itself must be the one it is checked with."""
    try:
        if (files.root / VERIFIER).read_bytes() != f"{verifier}\n".encode():
            yield Fault(VERIFIER, "it names another key than the log was checked with")
    except OSError as error:
        yield Fault(VERIFIER, error.strerror or "cannot be read")


def _leftover_faults(files: LedgerFiles, size: int) -> Iterator[Fault]:
    """Files under ``tile/`` the walk did not read: narrower partial tiles, and what is no tile."""
    for name in files.paths():
        tile = Tile.parse(name)
        if tile is None:
            yield Fault(name, "it is no file of a log")
        elif tile.within(size) and tile.width < WIDTH and not _is_prefix(files, tile, size):
            index = tile.index << (HEIGHT * (1 + (tile.level if tile.level != "entries" else 0)))
            yield Fault(name, "it differs from the wider tile of the same place", index)


def _is_prefix(files: LedgerFiles, tile: Tile, size: int) -> bool:
    """Whether a partial tile is the beginning of the one that took its place (checked before)."""
    try:
        narrow = (files.root / tile.path).read_bytes()
    except FileNotFoundError:
        return True  # a running appliance removes them once the full tile is there
    except OSError:
        return False
    try:
        wide = tile_at(tile.level, tile.index, size)
        if tile.level == "entries":
            return decode_entries(narrow, tile.width) == files.entries(wide)[: tile.width]
        return narrow == b"".join(files.hashes(wide)[: tile.width])
    except (TileUnreadable, ValueError):
        return False
