"""What is said about one copy of a bundle: which part it is, what it leaves out, how it is hidden.

Each is canonical JSON (RFC 8785) inside a DSSE envelope by the key of the targets role
(``trust.statement``), so that a bundle can be cut, thinned or encrypted without being signed anew.

    PartIndex.parse(payload)            # the set of parts a part belongs to
    DeltaStatement.parse(payload)       # delta.dsse.json
    EncryptionStatement.parse(payload)  # encryption.dsse.json
"""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from appliance.manifests.bundle import Digest, Name, Size, Version, _canonical, _Frozen

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

MAX_PARTS = 10_000


class _Statement(_Frozen):
    TYPE: ClassVar[str]
    """The DSSE payload type it is signed under."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a payload. Raises ``ValueError`` unless it is valid and canonical."""
        statement = cls.model_validate_json(data)
        if statement.canonical() != data:
            raise ValueError("it is not canonical JSON (RFC 8785)")
        return statement

    def canonical(self) -> bytes:
        """The one byte string of this statement (RFC 8785)."""
        return _canonical(self)


class BundleName(_Frozen):
    """Which bundle: name, version and the digest of its manifest."""

    name: Name
    version: Version
    digest: Digest

    @property
    def release_id(self) -> str:
        """As ``BundleManifest.release_id``."""
        return f"{self.name}-{self.version}-{self.digest.removeprefix('sha256:')[:12]}"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class PartIndex(_Statement):
    """A file cut into parts of ``part_size`` bytes; all but the last are exactly that long.

    ``size`` is that of the whole file and ``header_size`` that of every part's header, in bytes.
    ``parts`` are the SHA-256 of each part's bytes after its header. ``bundle`` is null where the
    file is encrypted as a whole and does not say what it is.
    """

    TYPE: ClassVar[str] = "application/vnd.sovctl.parts+json"

    schema_version: Literal[1] = 1
    bundle: BundleName | None
    name: Annotated[str, Field(pattern=r"^[^/\x00-\x1f]{1,255}$")]
    size: Annotated[int, Field(ge=1, le=2**53 - 1)]
    part_size: Annotated[int, Field(ge=1, le=2**53 - 1)]
    header_size: Annotated[int, Field(ge=4096, le=1 << 26, multiple_of=4096)]
    parts: Annotated[tuple[Hex, ...], Field(min_length=1, max_length=MAX_PARTS)]

    @model_validator(mode="after")
    def _adds_up(self) -> PartIndex:
        if self.capacity < 1 or -(-self.size // self.capacity) != len(self.parts):
            raise ValueError("the number of parts does not follow from the sizes")
        return self

    @property
    def capacity(self) -> int:
        """Bytes of the file that every part but the last carries."""
        return self.part_size - self.header_size

    @property
    def set_id(self) -> str:
        """What all parts of one set share: SHA-256 of this index, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def payload(self, number: int) -> int:
        """Bytes of the file that part ``number`` (from 1) carries."""
        return min(self.capacity, self.size - (number - 1) * self.capacity)

    def __str__(self) -> str:
        return str(self.bundle) if self.bundle else self.name


class DeltaStatement(_Statement):
    """The blobs a delta leaves out, because whoever has ``base`` has them."""

    TYPE: ClassVar[str] = "application/vnd.sovctl.delta+json"

    schema_version: Literal[1] = 1
    bundle: Digest
    base: BundleName
    left_out: tuple[Hex, ...]

    @model_validator(mode="after")
    def _sorted(self) -> DeltaStatement:
        if list(self.left_out) != sorted(set(self.left_out)):
            raise ValueError("the digests left out are not sorted, or not each there once")
        return self


class EncryptedBlob(_Frozen):
    """A blob and the age file it is carried as: their SHA-256, and that file's size in bytes."""

    blob: Hex
    cipher: Hex
    size: Size


class EncryptionStatement(_Statement):
    """For every blob the bundle carries, the age file that it is carried as."""

    TYPE: ClassVar[str] = "application/vnd.sovctl.encryption+json"

    schema_version: Literal[1] = 1
    bundle: Digest
    blobs: tuple[EncryptedBlob, ...]

    @model_validator(mode="after")
    def _sorted(self) -> EncryptionStatement:
        plain = [each.blob for each in self.blobs]
        if plain != sorted(set(plain)) or len({e.cipher for e in self.blobs}) != len(plain):
            raise ValueError("the blobs are not sorted, or not each there once")
        return self
