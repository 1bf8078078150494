"""What an append does to the tree, decided without touching a disk.

The *edge* of a log is what the next append needs: the hashes of every partial tile and the entries
of the partial bundle. :meth:`Edge.extend` takes entries and answers with the new edge and the files
that must exist before a checkpoint of the new size may be signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.ledger.merkle import CompactRange, leaf_hash, perfect_root
from appliance.ledger.tiles import (
    HEIGHT,
    WIDTH,
    Tile,
    encode_entries,
    encode_hashes,
    levels,
    width_at,
)


@dataclass(frozen=True, slots=True)
class Edge:
    """The right edge of a log of ``size`` entries.

    ``rows[level]`` holds the hashes of that level's partial tile (0 to 255), ``bundle`` the bytes
    of the partial entry bundle.
    """

    size: int
    rows: tuple[tuple[bytes, ...], ...]
    bundle: bytes

    @classmethod
    def empty(cls) -> Edge:
        """The edge of a log without entries."""
        return cls(0, (), b"")

    def root(self) -> bytes:
        """The root of the tree of ``size`` leaves."""
        compact = CompactRange()
        for level in reversed(range(len(self.rows))):
            for node in self.rows[level]:
                compact.append(node, level * HEIGHT)
        return compact.root()

    def extend(self, entries: Sequence[bytes]) -> Growth:
        """Append ``entries`` and say which files that makes."""
        rows = [list(row) for row in self.rows]
        bundle = bytearray(self.bundle)
        full: list[tuple[Tile, bytes]] = []
        for position, entry in enumerate(entries, start=self.size):
            bundle += encode_entries([entry])
            _push(rows, leaf_hash(entry), position, full)
            if (position + 1) % WIDTH == 0:
                full.append((Tile("entries", position // WIDTH), bytes(bundle)))
                bundle.clear()
        size = self.size + len(entries)
        edge = Edge(size, tuple(tuple(row) for row in rows), bytes(bundle))
        return Growth(edge, tuple(full), tuple(edge.partials(self.size)))

    def partials(self, before: int) -> list[tuple[Tile, bytes]]:
        """The partial tiles of this edge that a log of ``before`` entries did not have."""
        made: list[tuple[Tile, bytes]] = []
        for level in range(levels(self.size)):
            width = width_at(level, self.size)
            nodes = self.size >> (HEIGHT * level)
            if width and nodes != before >> (HEIGHT * level):
                tile = Tile(level, nodes // WIDTH, width)
                made.append((tile, encode_hashes(self.rows[level])))
        if self.bundle and self.size != before:
            tile = Tile("entries", self.size // WIDTH, self.size % WIDTH)
            made.append((tile, self.bundle))
        return made


@dataclass(frozen=True, slots=True)
class Growth:
    """The outcome of an append: the edge after it, and the files it needs, by tile."""

    edge: Edge
    full: tuple[tuple[Tile, bytes], ...]
    partial: tuple[tuple[Tile, bytes], ...]


def _push(
    rows: list[list[bytes]], node: bytes, position: int, full: list[tuple[Tile, bytes]]
) -> None:
    """Add a leaf hash at ``position``; full tiles go to ``full`` and their roots one level up."""
    level = 0
    while True:
        if level == len(rows):
            rows.append([])
        rows[level].append(node)
        if len(rows[level]) < WIDTH:
            return
        full.append((Tile(level, position >> (HEIGHT * (level + 1))), encode_hashes(rows[level])))
        node = perfect_root(rows[level])
        rows[level] = []
        level += 1
