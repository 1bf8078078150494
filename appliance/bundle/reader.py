"""Open a bundle and read all of it but its blobs: kilobytes of a file of any size.

    with BundleReader(path) as bundle:
        bundle.metadata            # TUF file name → bytes, not yet verified
        bundle.front               # every member before the blobs: name → bytes
        bundle.members             # what the targets role signs: member name → bytes
        bundle.statements          # what is signed about this copy alone: member name → bytes
        bundle.manifest            # parsed bundle.json
        bundle.check_size()        # BundleTruncated / BundleTampered from the layout alone

What is read here is *well-formed*, not *trusted*: give ``metadata`` and ``members`` to
``trust.verifier.Verifier`` before believing a word (``bundle.load`` does).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError

from appliance.bundle.cargo import Cargo, CargoInvalid, cargo_of
from appliance.bundle.format import (
    BLOCK,
    DELTA,
    ENCRYPTION,
    END,
    MANIFEST,
    MAX_FRONT_BYTES,
    MAX_FRONT_MEMBERS,
    SBOM,
    STATEMENTS,
    Layout,
    Place,
    front_order,
    header_of,
    model_of,
    padding,
    read_header,
    size_limit,
)
from appliance.bundle.medium import EndReached, FileMedium, ReadFailed
from appliance.bundle.opening import Opening, open_medium
from appliance.errors import (
    BundleTampered,
    BundleTooNew,
    BundleTruncated,
    BundleUnsigned,
    MediumFailed,
    NotABundle,
)
from appliance.manifests.bundle import SCHEMA_VERSION, BlobRef, BundleManifest
from appliance.manifests.transport import DeltaStatement, EncryptionStatement, PartIndex
from appliance.trust import statement as dsse

if TYPE_CHECKING:
    from appliance.trust.verifier import Verified


class BundleReader:
    """One open bundle. Raises :class:`NotABundle`, :class:`BundleUnsigned`,
    :class:`BundleTruncated`, :class:`BundleTampered`, :class:`FileUnreadable` or
    :class:`MediumFailed` on opening.

    Reads go by offset (pread), so any number of threads may share one reader.
    """

    def __init__(self, path: Path, opening: Opening | None = None) -> None:
        self.path = path
        self.medium = open_medium(path, opening or Opening())
        self.size = self.medium.size
        self._front: list[Place] = []
        self._complete = False
        try:
            self.front = self._read_front()
            self._complete = True
        except BaseException:
            self.medium.close()
            raise
        self.metadata = {
            name.removeprefix("metadata/"): data
            for name, data in self.front.items()
            if name.startswith("metadata/")
        }
        self.statements = {n: d for n, d in self.front.items() if n in STATEMENTS}
        self.members = {
            name: data
            for name, data in self.front.items()
            if not name.startswith("metadata/") and name not in STATEMENTS
        }

    def __enter__(self) -> BundleReader:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.medium.close()

    @property
    def sequential(self) -> bool:
        """Whether it is to be read forwards, by one thread; see :mod:`appliance.bundle.medium`."""
        return self.medium.sequential

    @property
    def descriptor(self) -> int | None:
        """The open file, where the bundle's bytes are those of one file."""
        return self.medium.descriptor if isinstance(self.medium, FileMedium) else None

    @property
    def sbom(self) -> bytes:
        """The CycloneDX bill of materials."""
        return self.members[SBOM]

    @property
    def signatures(self) -> dict[str, bytes]:
        """Model name → OMS bundle."""
        models = {model_of(name): data for name, data in self.members.items()}
        return {model: data for model, data in models.items() if model is not None}

    @property
    def others(self) -> dict[str, bytes]:
        """Signed members that are neither the manifest, the SBOM nor a model's signature."""
        known = {MANIFEST, SBOM, *(f"signatures/{model}.oms.json" for model in self.signatures)}
        return {name: data for name, data in self.members.items() if name not in known}

    @cached_property
    def manifest(self) -> BundleManifest:
        """What the bundle holds. Raises :class:`BundleTooNew` or :class:`BundleTampered`."""
        data = self.members[MANIFEST]
        try:
            return BundleManifest.parse(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            version = first["input"]
            if first["loc"] == ("schema_version",) and isinstance(version, int):
                raise BundleTooNew(
                    bundle=self.path, found=version, supported=SCHEMA_VERSION
                ) from error
            where = ".".join(str(part) for part in first["loc"])
            raise self._tampered(MANIFEST, f"{where}: {first['msg']}") from error
        except ValueError as error:
            raise self._tampered(MANIFEST, str(error)) from error

    @cached_property
    def cargo(self) -> Cargo:
        """Which blobs are in this file, and as what. Raises :class:`BundleTampered`."""
        try:
            return cargo_of(self.manifest, self.statements)
        except CargoInvalid as error:
            raise self._tampered(error.member, str(error)) from error

    @property
    def delta(self) -> DeltaStatement | None:
        """What a delta leaves out; None for a full bundle."""
        return self.cargo.delta

    @property
    def encryption(self) -> EncryptionStatement | None:
        """Which age file carries each blob; None for a bundle whose blobs are in clear."""
        return self.cargo.encryption

    @property
    def left_out(self) -> tuple[BlobRef, ...]:
        """The blobs that are not in this file because the delta's base has them."""
        return self.cargo.left_out

    @property
    def blob_of(self) -> Mapping[str, BlobRef]:
        """A blob's member name → the blob (in clear) that it carries, in the tar's order."""
        return self.cargo.blob_of

    @cached_property
    def layout(self) -> Layout:
        """Where everything lies, computed from the manifest and the statements."""
        return self.cargo.layout([(member.name, member.size) for member in self._front])

    def check_statements(self, verified: Verified) -> None:
        """Verify what is said about this copy: delta, encryption, the index of its parts.

        Raises :class:`BundleTampered`, which names the statement.
        """
        types = {DELTA: DeltaStatement.TYPE, ENCRYPTION: EncryptionStatement.TYPE}
        signed = [(name, data, types[name]) for name, data in self.statements.items()]
        if self.medium.statement is not None:
            signed.append(("the index of its parts", self.medium.statement, PartIndex.TYPE))
        for name, data, kind in signed:
            try:
                verified.statement(data, kind)
            except dsse.StatementInvalid as error:
                raise self._tampered(name, str(error)) from error
        self._check_index()

    def _check_index(self) -> None:
        """The index of the parts, if there are any, is about this bundle."""
        if self.medium.statement is None:
            return
        index = PartIndex.parse(dsse.payload(self.medium.statement, PartIndex.TYPE))
        if index.bundle is not None and index.bundle.digest != self.manifest.digest:
            raise self._tampered("the index of its parts", "it is about another bundle")

    def check_size(self) -> None:
        """Compare the file's size with the layout: truncation costs no reading to find."""
        if self.size < self.layout.size:
            raise self._truncated(self.layout.size)
        if self.size > self.layout.size:
            raise self._tampered("its end", f"{self.size - self.layout.size} bytes too many")

    def check_header(self, member: Place) -> None:
        """Compare a blob's header with the only bytes it may be."""
        if self.read(member.header, member.data - member.header) != header_of(member):
            raise self._tampered(member.name, "its header is not in its one allowed form")

    def check_padding(self, member: Place) -> None:
        """Compare the bytes after a member with the only ones they may be: zeros."""
        count = padding(member.size)
        if self.read(member.data + member.size, count) != bytes(count):
            raise self._tampered(member.name, "its padding is not zero")

    def check_end(self) -> None:
        """Compare the end-of-archive mark with the only bytes it may be."""
        if self.read(self.layout.end, len(END)) != END:
            raise self._tampered("its end", "the end mark is not in its one allowed form")

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes at ``offset``. Raises :class:`BundleTruncated`."""
        parts = bytearray(size)
        self.read_into(memoryview(parts), offset)
        return bytes(parts)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``. Raises BundleTruncated or MediumFailed."""
        try:
            self.medium.read_into(buffer, offset)
        except EndReached as end:
            raise self._truncated(offset + len(buffer)) from end
        except ReadFailed as failure:
            raise MediumFailed(
                bundle=self.path,
                member=self._member_at(failure.offset),
                offset=failure.offset,
                reason=failure.reason,
            ) from failure

    def expect(self, offset: int, size: int) -> None:
        """Say that ``size`` bytes from ``offset`` will be read next, in order."""
        self.medium.expect(offset, size)

    def _member_at(self, offset: int) -> str:
        """The member that a byte belongs to, as far as it is known yet."""
        if not self._complete:
            before = self._front[-1].name if self._front else None
            return f"the member after {before}" if before else "its beginning"
        layout = self.layout
        members = (*layout.front, *layout.blobs)
        return next((m.name for m in members if m.header <= offset < m.end), "its end mark")

    def tampered(self, member: Place, reason: str) -> BundleTampered:
        """The error that names ``member``."""
        return self._tampered(member.name, reason)

    def _read_front(self) -> dict[str, bytes]:
        """Members up to the first blob or the end mark."""
        if self.size < BLOCK:
            self.read(0, self.size)  # an encrypted one that was cut off says that instead
            raise NotABundle(bundle=self.path, reason="It is too short to be one.")
        front: dict[str, bytes] = {}
        places = self._front
        offset = 0
        while True:
            block = self.read(offset, BLOCK)
            if places and (block[156:157] == b"x" or block == bytes(BLOCK)):
                break
            member = self._front_member(block, offset, places[-1] if places else None)
            front[member.name] = self.read(member.data, member.size)
            self.check_padding(member)
            places.append(member)
            offset = member.end
        self._check_complete(front)
        return front

    def _front_member(self, block: bytes, offset: int, before: Place | None) -> Place:
        try:
            name, size = read_header(block)
            order = front_order(name)
        except ValueError as error:
            self._refuse_header(before, str(error))
        if before is not None and order <= front_order(before.name):
            raise self._tampered(name, "members are not in their one allowed order")
        if size > size_limit(name):
            raise self._tampered(name, f"{size} bytes are more than it may have")
        if offset + size > MAX_FRONT_BYTES or len(self._front) >= MAX_FRONT_MEMBERS:
            raise self._tampered(name, "the members up to it are more than there may be")
        return Place(name, size, offset, offset + BLOCK)

    def _refuse_header(self, before: Place | None, reason: str) -> NoReturn:
        if before is None and self.medium.statement is None:
            raise NotABundle(bundle=self.path, reason=f"At its start {reason}.")
        where = f"the header after {before.name}" if before else "the first header"
        raise self._tampered(where, reason)

    def _check_complete(self, front: dict[str, bytes]) -> None:
        if not any(name.startswith("metadata/") for name in front):
            raise BundleUnsigned(bundle=self.path, reason="It holds no signature metadata at all.")
        for needed in (MANIFEST, SBOM):
            if needed not in front:
                raise self._tampered(needed, "it is missing")

    def _tampered(self, member: str, reason: str) -> BundleTampered:
        return BundleTampered(bundle=self.path, member=member, reason=reason)

    def _truncated(self, expected: int) -> BundleTruncated:
        return BundleTruncated(bundle=self.path, expected=expected, actual=self.size)
