"""The bundle's bytes: pure functions from content to the one tar that encodes it.

A bundle is a POSIX tar (ustar headers, pax where needed) that any ``tar`` can list, but with one
encoding only. Nothing here touches a disk. ``docs/formats.md`` is the prose of this module.

    layout = place(front_sizes, blobs)     # where everything lies, from names and sizes alone
    header_of(layout.blobs[0])             # the exact bytes before that blob's data

Since all headers follow from the names, sizes and digests, a reader never *interprets* a header of
a blob: it computes the one it expects and compares bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from appliance.manifests.bundle import BlobRef, BundleManifest

BLOCK = 512  # bytes; the unit of a tar
ALIGNMENT = 4096  # bytes; every blob's data starts at a multiple of it
END = bytes(2 * BLOCK)  # the end-of-archive mark; nothing follows it

MANIFEST = "bundle.json"
SBOM = "sbom.cdx.json"
PROVENANCE = "provenance.dsse.json"
REVOCATIONS = "revocations.json"
DELTA = "delta.dsse.json"
ENCRYPTION = "encryption.dsse.json"
STATEMENTS = frozenset({DELTA, ENCRYPTION})
"""Members about this copy alone: signed by themselves (``trust.statement``), not TUF targets."""

PLAIN = "blobs/sha256/"
"""Before the SHA-256 of a blob."""
AGE = "blobs/age/"
"""Before the SHA-256 of the age file that a blob is carried as."""

_SINGLES = (MANIFEST, SBOM, PROVENANCE, REVOCATIONS, DELTA, ENCRYPTION)
_METADATA = re.compile(
    r"metadata/(?:([1-9][0-9]{0,3})\.root|(timestamp)|(snapshot)|(targets)"
    r"|(adapters)|(datasets)|(models)|(platform))\.json"
)
_SIGNATURE = re.compile(r"signatures/([A-Za-z0-9][A-Za-z0-9._-]{0,72})\.oms\.json")
_UPSTREAM = re.compile(r"upstream/([A-Za-z0-9][A-Za-z0-9._-]{0,72})\.oms\.json")

LIMITS = {"metadata": 1 << 20, "single": 1 << 26, "signature": 1 << 24, "upstream": 1 << 24}
"""The most bytes a member before the blobs may have, by what it is; what is read into memory."""

MAX_FRONT_BYTES = 1 << 28
MAX_FRONT_MEMBERS = 10_000
"""What all members before the blobs may have together: they are read before they are believed."""

_USTAR_MAX = 8**11 - 1  # bytes a ustar size field can say; above it pax says it


@dataclass(frozen=True, slots=True)
class Place:
    """Where one member lies: offsets and sizes in bytes from the start of the file."""

    name: str
    size: int
    header: int
    data: int

    @property
    def hex(self) -> str:
        """Of a blob: the SHA-256 of the ``size`` bytes here, which its name says."""
        return self.name.rpartition("/")[2]

    @property
    def encrypted(self) -> bool:
        """Whether the bytes here are an age file."""
        return self.name.startswith(AGE)

    @property
    def end(self) -> int:
        """Where the next member's header begins."""
        return self.data + self.size + padding(self.size)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where every member lies; ``size`` is that of the whole file in bytes."""

    front: tuple[Place, ...]
    blobs: tuple[Place, ...]
    end: int

    @property
    def size(self) -> int:
        """Bytes of the whole file, with its end mark."""
        return self.end + len(END)


def padding(size: int) -> int:
    """Zero bytes between ``size`` bytes of data and the next header."""
    return -size % BLOCK


def signed_members(
    manifest: BundleManifest,
    sbom: bytes,
    signatures: Mapping[str, bytes],
    others: Mapping[str, bytes] = MappingProxyType({}),
) -> dict[str, bytes]:
    """The members that TUF's targets sign, in their order: name → bytes.

    ``signatures`` maps a model's name to its OMS bundle; ``others`` are further members by name
    (``PROVENANCE``, ``REVOCATIONS``, ``upstream/…``).
    """
    members = {MANIFEST: manifest.canonical(), SBOM: sbom, **others}
    for model, signature in signatures.items():
        members[f"signatures/{model}.oms.json"] = signature
    return {name: members[name] for name in sorted(members, key=front_order)}


def metadata_members(metadata: Mapping[str, bytes]) -> dict[str, bytes]:
    """TUF metadata by file name (``1.root.json``) → members by name, in their order."""
    names = sorted((f"metadata/{name}" for name in metadata), key=front_order)
    return {name: metadata[name.removeprefix("metadata/")] for name in names}


def front_order(name: str) -> tuple[int, int, str]:
    """The sort key of a member before the blobs. Raises ``ValueError`` if none has that name."""
    if match := _METADATA.fullmatch(name):
        kind = next(i for i in range(1, 9) if match.group(i))
        return (0, int(match.group(1)) if kind == 1 else 10_000 + kind, "")
    if name in _SINGLES:
        return (1, _SINGLES.index(name), "")
    if _SIGNATURE.fullmatch(name):
        return (2, 0, name)
    if _UPSTREAM.fullmatch(name):
        return (3, 0, name)
    raise ValueError(f"no member before the blobs is called {name!r}")


def size_limit(name: str) -> int:
    """The most bytes the member ``name`` may have."""
    return list(LIMITS.values())[front_order(name)[0]]


def model_of(name: str) -> str | None:
    """The model a member ``signatures/<model>.oms.json`` is for; None for any other member."""
    match = _SIGNATURE.fullmatch(name)
    return match.group(1) if match else None


def place(front: Sequence[tuple[str, int]], blobs: Sequence[BlobRef]) -> Layout:
    """Lay out members ``(name, size)`` and then ``blobs``, which are sorted by digest."""
    return place_named(front, [(f"{PLAIN}{blob.hex}", blob.size) for blob in blobs])


def place_named(front: Sequence[tuple[str, int]], blobs: Sequence[tuple[str, int]]) -> Layout:
    """Lay out members and then blobs, all ``(name, size)``; blobs are sorted by name."""
    offset = 0
    front_places = []
    for name, size in front:
        front_places.append(Place(name, size, offset, offset + BLOCK))
        offset = front_places[-1].end
    blob_places = []
    for name, size in blobs:
        data = offset + 2 * BLOCK + _pax_size(offset)
        blob_places.append(Place(name, size, offset, data))
        offset = blob_places[-1].end
    return Layout(tuple(front_places), tuple(blob_places), offset)


def header_of(member: Place) -> bytes:
    """The exact bytes from ``member.header`` to ``member.data``."""
    if member.data - member.header == BLOCK:
        return ustar_header(member.name, member.size, b"0")
    body = _pax_body(member.size, member.data - member.header - 2 * BLOCK)
    name = "pax/" + member.name.rpartition("/")[2]
    size = member.size if member.size <= _USTAR_MAX else 0
    return ustar_header(name, len(body), b"x") + body + ustar_header(member.name, size, b"0")


def _pax_size(offset: int) -> int:
    """Bytes of pax records that bring the data after a header at ``offset`` onto the alignment."""
    return (-(offset + 2 * BLOCK) % ALIGNMENT) or ALIGNMENT


def _pax_body(size: int, length: int) -> bytes:
    """Exactly ``length`` bytes of pax records: the size where ustar cannot say it, then filler."""
    records = b""
    if size > _USTAR_MAX:
        text = f" size={size}\n"
        total = len(text) + 2  # all sizes that need it have 10 to 16 digits: two digits of length
        records = f"{total}{text}".encode("ascii")
    rest = length - len(records)
    filler = rest - len(f"{rest} comment=\n")
    return records + f"{rest} comment={'.' * filler}\n".encode("ascii")


def ustar_header(name: str, size: int, kind: bytes) -> bytes:
    """One 512-byte POSIX.1-1988 header: mode 0444, no owner, no time. ``kind`` is its typeflag.

    Raises ``ValueError`` if ``name`` has more than 100 bytes or ``size`` more than 11 octal digits.
    """
    encoded = name.encode("ascii")
    if len(encoded) > 100 or not 0 <= size <= _USTAR_MAX:
        raise ValueError(f"{name!r} of {size} bytes has no ustar header")
    fields = (
        encoded.ljust(100, b"\0"),
        b"0000444\0",  # mode
        b"0000000\0",  # uid
        b"0000000\0",  # gid
        f"{size:011o}\0".encode("ascii"),
        b"00000000000\0",  # mtime
        b" " * 8,  # checksum, counted as spaces
        kind,
        bytes(100),  # linkname
        b"ustar\0" + b"00",
        bytes(32 + 32),  # uname, gname
        b"0000000\0" * 2,  # devmajor, devminor
        bytes(155 + 12),  # prefix, and the rest of the block
    )
    block = b"".join(fields)
    checksum = f"{sum(block):06o}\0 ".encode("ascii")
    return block[:148] + checksum + block[156:]


def read_header(block: bytes) -> tuple[str, int]:
    """Name and size of a member before the blobs. Raises ``ValueError`` unless it is canonical."""
    if len(block) != BLOCK or block[257:263] != b"ustar\0":
        raise ValueError("there is no tar header")
    try:
        name = block[:100].rstrip(b"\0").decode("ascii")
        size = int(block[124:135].decode("ascii"), 8)
        canonical = ustar_header(name, size, b"0")
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError("the tar header is malformed") from error
    if canonical != block:
        raise ValueError("the tar header is not in its one allowed form")
    return name, size
