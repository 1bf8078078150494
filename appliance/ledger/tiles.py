"""Names and encodings of C2SP tlog-tiles: https://c2sp.org/tlog-tiles. Pure.

A tile holds up to 256 consecutive hashes of one level; level L's hashes are roots of full tiles of
level L-1. An entry bundle holds the entries of one level-0 tile, each with its length before it
(big-endian uint16). The rightmost tiles are partial and have their width in their names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from appliance.ledger.merkle import HASH_BYTES

WIDTH = 256  # hashes in a full tile
HEIGHT = 8  # levels of the tree a tile spans

Level = int | Literal["entries"]

_PATH = re.compile(
    r"tile/(?P<level>entries|[0-9]{1,2})/(?P<index>(x[0-9]{3}/){0,6}[0-9]{3})"
    r"(\.p/(?P<width>[0-9]{1,3}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile: its level, its index in the level, and how many hashes or entries it holds."""

    level: Level
    index: int
    width: int = WIDTH

    @property
    def path(self) -> str:
        """Its path in the log: ``tile/<L>/<N>[.p/<W>]``.

        >>> Tile(0, 1234067).path
        'tile/0/x001/x234/067'
        """
        suffix = "" if self.width == WIDTH else f".p/{self.width}"
        return f"tile/{self.level}/{index_path(self.index)}{suffix}"

    @classmethod
    def parse(cls, path: str) -> Tile | None:
        """The tile of a path, or None if the path is not a tile's one name."""
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        level = match["level"]
        digits = match["index"].replace("x", "").replace("/", "")
        tile = cls(
            "entries" if level == "entries" else int(level),
            int(digits),
            WIDTH if match["width"] is None else int(match["width"]),
        )
        return tile if tile.path == path else None

    def within(self, size: int) -> bool:
        """Whether a log of ``size`` entries has all of this tile."""
        height = 0 if self.level == "entries" else HEIGHT * self.level
        return self.index * WIDTH + self.width <= size >> height


def index_path(index: int) -> str:
    """A tile's index as path elements of three digits, all but the last after an ``x``."""
    parts = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        parts.append(f"x{index % 1000:03d}")
    return "/".join(reversed(parts))


def width_at(level: int, size: int) -> int:
    """The width of the partial tile of ``level`` in a tree of ``size``; 0 when there is none."""
    return (size >> (HEIGHT * level)) % WIDTH


def levels(size: int) -> int:
    """How many levels of tiles a tree of ``size`` leaves has (0 for an empty one)."""
    count = 0
    while size:
        count += 1
        size >>= HEIGHT
    return count


def tiles_of(size: int, level: Level) -> Iterator[Tile]:
    """The tiles of one level of a tree of ``size``, left to right, the partial one last."""
    here = 0 if level == "entries" else level
    nodes = size >> (HEIGHT * here)
    for index in range(nodes // WIDTH):
        yield Tile(level, index)
    if nodes % WIDTH:
        yield Tile(level, nodes // WIDTH, nodes % WIDTH)


def encode_hashes(hashes: Sequence[bytes]) -> bytes:
    """A tile's bytes."""
    return b"".join(hashes)


def decode_hashes(data: bytes, width: int) -> list[bytes]:
    """A tile's hashes.

    Raises:
        ValueError: it is not ``width`` hashes long.
    """
    if len(data) != width * HASH_BYTES:
        raise ValueError(f"{len(data)} bytes instead of {width * HASH_BYTES}")
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def encode_entries(entries: Iterable[bytes]) -> bytes:
    """An entry bundle's bytes (or a part of one). Each entry is at most 65,535 bytes long."""
    return b"".join(struct.pack(">H", len(entry)) + entry for entry in entries)


def decode_entries(data: bytes, width: int) -> list[bytes]:
    """An entry bundle's entries.

    Raises:
        ValueError: it does not hold exactly ``width`` of them.
    """
    entries: list[bytes] = []
    at = 0
    while at < len(data):
        end = at + 2
        if end <= len(data):
            end += int.from_bytes(data[at : at + 2])
        if end > len(data):
            raise ValueError(f"entry {len(entries)} of the bundle is cut short")
        entries.append(data[at + 2 : end])
        at = end
    if len(entries) != width:
        raise ValueError(f"{len(entries)} entries instead of {width}")
    return entries
