"""Open a bundle and read all of it but its blobs: kilobytes of a file of any size.

    with BundleReader(path) as bundle:
        bundle.metadata            # TUF file name → bytes, not yet verified
        bundle.members             # what the targets role signs: member name → bytes
        bundle.manifest            # parsed bundle.json
        bundle.check_size()        # BundleTruncated / BundleTampered from the layout alone

What is read here is *well-formed*, not *trusted*: give ``metadata`` and ``members`` to
``trust.verifier.Verifier`` before believing a word (``bundle.load`` does).
"""

from __future__ import annotations

import os
import stat
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError

from appliance.bundle.format import (
    BLOCK,
    END,
    MANIFEST,
    SBOM,
    Layout,
    Place,
    front_order,
    header_of,
    model_of,
    padding,
    place,
    read_header,
    size_limit,
)
from appliance.errors import (
    BundleTampered,
    BundleTooNew,
    BundleTruncated,
    BundleUnsigned,
    FileUnreadable,
    NotABundle,
)
from appliance.manifests.bundle import SCHEMA_VERSION, BundleManifest

if TYPE_CHECKING:
    from types import TracebackType


class BundleReader:
    """One open bundle. Raises :class:`NotABundle`, :class:`BundleUnsigned`,
    :class:`BundleTruncated`, :class:`BundleTampered` or :class:`FileUnreadable` on opening.

    Reads go by offset (pread), so any number of threads may share one reader.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # O_NONBLOCK: a named pipe is refused below instead of waited for here.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise FileUnreadable(path=path, reason=error.strerror or str(error)) from error
        try:
            status = os.fstat(self._fd)
            if not stat.S_ISREG(status.st_mode):
                raise NotABundle(bundle=path, reason="It is not a regular file.")
            self.size = status.st_size
            self._front, front = self._read_front()
        except BaseException:
            os.close(self._fd)
            raise
        self.metadata = {
            name.removeprefix("metadata/"): data
            for name, data in front.items()
            if name.startswith("metadata/")
        }
        self.members = {n: d for n, d in front.items() if not n.startswith("metadata/")}

    def __enter__(self) -> BundleReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    @property
    def sbom(self) -> bytes:
        """The CycloneDX bill of materials."""
        return self.members[SBOM]

    @property
    def signatures(self) -> dict[str, bytes]:
        """Model name → OMS bundle."""
        models = {model_of(name): data for name, data in self.members.items()}
        return {model: data for model, data in models.items() if model is not None}

    @cached_property
    def manifest(self) -> BundleManifest:
        """What the bundle holds. Raises :class:`BundleTooNew` or :class:`BundleTampered`."""
        data = self.members[MANIFEST]
        try:
            return BundleManifest.parse(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if first["loc"] == ("schema_version",):
                raise BundleTooNew(
                    bundle=self.path, found=first["input"], supported=SCHEMA_VERSION
                ) from error
            where = ".".join(str(part) for part in first["loc"])
            raise self._tampered(MANIFEST, f"{where}: {first['msg']}") from error
        except ValueError as error:
            raise self._tampered(MANIFEST, str(error)) from error

    @cached_property
    def layout(self) -> Layout:
        """Where everything lies, computed from the manifest."""
        return place([(member.name, member.size) for member in self._front], self.manifest.blobs())

    def check_size(self) -> None:
        """Compare the file's size with the layout: truncation costs no reading to find."""
        if self.size < self.layout.size:
            raise self._truncated(self.layout.size)
        if self.size > self.layout.size:
            raise self._tampered("its end", f"{self.size - self.layout.size} bytes too many")

    def check_frame(self, member: Place) -> None:
        """Compare a blob's header and padding with the only bytes they may be."""
        if self.read(member.header, member.data - member.header) != header_of(member):
            raise self._tampered(member.name, "its header is not in its one allowed form")
        self._check_padding(member)

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
        """Fill ``buffer`` from ``offset``. Raises BundleTruncated or FileUnreadable."""
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
                if count == 0:
                    raise self._truncated(offset + len(buffer))
                done += count
        except OSError as error:
            raise FileUnreadable(path=self.path, reason=error.strerror or str(error)) from error

    def advise(self, offset: int, size: int, advice: int) -> None:
        """posix_fadvise(2) on the file."""
        os.posix_fadvise(self._fd, offset, size, advice)

    def tampered(self, member: Place, reason: str) -> BundleTampered:
        """The error that names ``member``."""
        return self._tampered(member.name, reason)

    def _read_front(self) -> tuple[list[Place], dict[str, bytes]]:
        """Members up to the first blob or the end mark."""
        if self.size < BLOCK:
            raise NotABundle(bundle=self.path, reason="It is too short to be one.")
        front: dict[str, bytes] = {}
        places: list[Place] = []
        offset = 0
        while True:
            block = self.read(offset, BLOCK)
            if places and (block[156:157] == b"x" or block == bytes(BLOCK)):
                break
            member = self._front_member(block, offset, places[-1] if places else None)
            front[member.name] = self.read(member.data, member.size)
            self._check_padding(member)
            places.append(member)
            offset = member.end
        self._check_complete(front)
        return places, front

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
        return Place(name, size, offset, offset + BLOCK)

    def _refuse_header(self, before: Place | None, reason: str) -> NoReturn:
        if before is None:
            raise NotABundle(bundle=self.path, reason=f"At its start {reason}.")
        raise self._tampered(f"the header after {before.name}", reason)

    def _check_complete(self, front: dict[str, bytes]) -> None:
        if not any(name.startswith("metadata/") for name in front):
            raise BundleUnsigned(bundle=self.path, reason="It holds no signature metadata at all.")
        for needed in (MANIFEST, SBOM):
            if needed not in front:
                raise self._tampered(needed, "it is missing")

    def _check_padding(self, member: Place) -> None:
        count = padding(member.size)
        if self.read(member.data + member.size, count) != bytes(count):
            raise self._tampered(member.name, "its padding is not zero")

    def _tampered(self, member: str, reason: str) -> BundleTampered:
        return BundleTampered(bundle=self.path, member=member, reason=reason)

    def _truncated(self, expected: int) -> BundleTruncated:
        return BundleTruncated(bundle=self.path, expected=expected, actual=self.size)
