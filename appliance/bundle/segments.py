"""A file as pieces that are each known beforehand: by their bytes, or by their SHA-256.

Copying, cutting and joining go by these: a piece that is right already stays, and one that is not
is named. A bundle's pieces are its frames and its blobs; a part's are its header and its payload;
of an encrypted file that cannot be looked into, nothing is known but its bytes at the source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from appliance.bundle.format import END, header_of, padding
from appliance.errors import BundleTampered
from appliance.i18n import _

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.bundle.parts import Part
    from appliance.bundle.reader import BundleReader

RAW = 64 << 20  # bytes of a piece of which nothing is known


@dataclass(frozen=True, slots=True)
class Segment:
    """``size`` bytes at ``offset`` of the member ``name``; ``hex`` is their SHA-256, if known."""

    name: str
    offset: int
    size: int
    hex: str | None

    @property
    def end(self) -> int:
        """Where the next one begins."""
        return self.offset + self.size


def of_bundle(bundle: BundleReader) -> Iterator[Segment]:
    """The pieces of a bundle whose front was read."""
    layout = bundle.layout
    for member in layout.front:
        data = bundle.front[member.name]
        whole = header_of(member) + data + bytes(padding(member.size))
        yield _exact(member.name, member.header, whole)
    for blob in layout.blobs:
        yield _exact(blob.name, blob.header, header_of(blob))
        yield Segment(blob.name, blob.data, blob.size, blob.hex)
        if padding(blob.size):
            yield _exact(blob.name, blob.data + blob.size, bytes(padding(blob.size)))
    yield _exact(_("its end mark"), layout.end, END)


def of_part(part: Part, header: bytes) -> Iterator[Segment]:
    """The two pieces of a part."""
    name = _("part {number}").format(number=part.number)
    yield _exact(name, 0, header)
    digest = part.index.parts[part.number - 1]
    yield Segment(name, len(header), part.index.payload(part.number), digest)


def of_unknown(size: int) -> Iterator[Segment]:
    """The pieces of a file of ``size`` bytes of which nothing is known."""
    for offset in range(0, size, RAW):
        name = _("byte {offset} and on").format(offset=offset)
        yield Segment(name, offset, min(RAW, size - offset), None)


def _exact(name: str, offset: int, data: bytes) -> Segment:
    return Segment(name, offset, len(data), hashlib.sha256(data).hexdigest())


class Check:
    """Compares a stream, from its first byte on, with the segments it must consist of.

    Raises :class:`BundleTampered`, naming the member, at the end of the first that is wrong.
    """

    def __init__(self, path: Path, segments: list[Segment]) -> None:
        self._path = path
        self._segments = segments
        self._at = 0
        self._taken = 0
        self._hash = hashlib.sha256()

    def copy(self) -> Check:
        """The same check at the same place, to come back to."""
        twin = Check(self._path, self._segments)
        twin._at, twin._taken, twin._hash = self._at, self._taken, self._hash.copy()
        return twin

    def feed(self, data: memoryview) -> None:
        """The next bytes."""
        while len(data) or self._done_with_empty():
            segment = self._segments[self._at]
            piece = data[: segment.size - self._taken]
            self._hash.update(piece)
            self._taken += len(piece)
            data = data[len(piece) :]
            if self._taken == segment.size:
                self._judge(segment)

    def _done_with_empty(self) -> bool:
        return self._at < len(self._segments) and self._segments[self._at].size == 0

    def _judge(self, segment: Segment) -> None:
        if segment.hex is not None and self._hash.hexdigest() != segment.hex:
            reason = _("it is not what was signed")
            raise BundleTampered(bundle=self._path, member=segment.name, reason=reason)
        self._at, self._taken, self._hash = self._at + 1, 0, hashlib.sha256()
