"""Reading a log's files: any folder in tlog-tiles layout, a copy on a disk as well as the original.

Nothing here trusts what it reads; the callers compare it with a signed checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from appliance.ledger.edge import Edge
from appliance.ledger.merkle import perfect_root
from appliance.ledger.note import Verifier
from appliance.ledger.tiles import (
    HEIGHT,
    WIDTH,
    Tile,
    decode_entries,
    decode_hashes,
    levels,
    width_at,
)

CHECKPOINT = "checkpoint"
VERIFIER = "verifier.txt"


class TileUnreadable(Exception):
    """A tile is missing, of the wrong length, or cannot be read."""

    def __init__(self, tile: Tile, reason: str) -> None:
        super().__init__(f"{tile.path}: {reason}")
        self.tile = tile
        self.reason = reason


class LedgerFiles:
    """The files of one log under ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Proofs read neighbouring hashes of the same few tiles again and again.
        self._hashes = lru_cache(maxsize=64)(self._read_hashes)

    def checkpoint(self) -> bytes:
        """The signed note of the head.

        Raises:
            OSError: it cannot be read.
        """
        return (self.root / CHECKPOINT).read_bytes()

    def verifier(self) -> Verifier:
        """The public key the log names for itself: a convenience, not a reason to trust it.

        Raises:
            OSError: it cannot be read.
            NoteInvalid: it is no verifier string.
        """
        text = (self.root / VERIFIER).read_bytes().decode("utf-8", errors="replace")
        return Verifier.parse(text.removesuffix("\n"))

    def hashes(self, tile: Tile) -> list[bytes]:
        """A tile's hashes.

        Raises:
            TileUnreadable: it is missing or malformed.
        """
        return self._hashes(tile)

    def entries(self, tile: Tile) -> list[bytes]:
        """An entry bundle's entries.

        Raises:
            TileUnreadable: it is missing or malformed.
        """
        try:
            whole = self._bytes(tile)
            if whole is not None:
                return decode_entries(whole, tile.width)
            return decode_entries(self._full(tile), WIDTH)[: tile.width]
        except (OSError, ValueError) as error:
            raise TileUnreadable(tile, _reason(error)) from error

    def entry(self, index: int, size: int) -> bytes:
        """One entry of the log of ``size`` entries.

        Raises:
            TileUnreadable: its bundle is missing or malformed.
        """
        return self.entries(tile_at("entries", index // WIDTH, size))[index % WIDTH]

    def walk(self, start: int, size: int) -> Iterator[tuple[int, bytes]]:
        """The entries from ``start`` on, with their indices, one bundle in memory at a time.

        Raises:
            TileUnreadable: a bundle is missing or malformed.
        """
        for bundle in range(start // WIDTH, -(-size // WIDTH)):
            first = bundle * WIDTH
            entries = self.entries(tile_at("entries", bundle, size))
            for offset in range(max(0, start - first), len(entries)):
                yield first + offset, entries[offset]

    def node(self, height: int, index: int, size: int) -> bytes:
        """The root of a perfect subtree of the log of ``size`` entries.

        Raises:
            TileUnreadable: the tile that holds it is missing or malformed.
        """
        level, within = divmod(height, HEIGHT)
        number, first = divmod(index << within, WIDTH)
        hashes = self.hashes(tile_at(level, number, size))
        return perfect_root(hashes[first : first + (1 << within)])

    def paths(self) -> list[str]:
        """Every file under ``tile/``, relative to the log; what vanishes meanwhile is not."""
        found = [
            (Path(folder) / name).relative_to(self.root).as_posix()
            for folder, _folders, names in os.walk(self.root / "tile")
            for name in names
        ]
        return sorted(found)

    def edge(self, size: int) -> Edge:
        """The right edge of the log of ``size`` entries, as the next append needs it.

        Raises:
            TileUnreadable: one of its tiles is missing or malformed.
        """
        rows: list[tuple[bytes, ...]] = []
        for level in range(levels(size)):
            width = width_at(level, size)
            tile = Tile(level, size >> (HEIGHT * (level + 1)), width)
            rows.append(tuple(self._read_hashes(tile)) if width else ())
        bundle = b""
        if size % WIDTH:
            tile = Tile("entries", size // WIDTH, size % WIDTH)
            try:
                bundle = (self.root / tile.path).read_bytes()
                decode_entries(bundle, tile.width)
            except (OSError, ValueError) as error:
                raise TileUnreadable(tile, _reason(error)) from error
        return Edge(size, tuple(rows), bundle)

    def _read_hashes(self, tile: Tile) -> list[bytes]:
        try:
            whole = self._bytes(tile)
            if whole is not None:
                return decode_hashes(whole, tile.width)
            return decode_hashes(self._full(tile), WIDTH)[: tile.width]
        except (OSError, ValueError) as error:
            raise TileUnreadable(tile, _reason(error)) from error

    def _bytes(self, tile: Tile) -> bytes | None:
        """The tile's file, or None for a partial tile that is gone: a full one may hold it."""
        try:
            return (self.root / tile.path).read_bytes()
        except FileNotFoundError:
            if tile.width == WIDTH:
                raise
            return None

    def _full(self, tile: Tile) -> bytes:
        return (self.root / Tile(tile.level, tile.index).path).read_bytes()


def tile_at(level: int | str, index: int, size: int) -> Tile:
    """The tile of that index in a log of ``size`` entries, with the width it has there."""
    if level == "entries":
        return Tile("entries", index, min(WIDTH, size - index * WIDTH))
    assert isinstance(level, int)
    nodes = size >> (HEIGHT * level)
    return Tile(level, index, min(WIDTH, nodes - index * WIDTH))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or "cannot be read").lower()
    return str(error)
