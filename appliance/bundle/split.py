"""Cut a bundle into parts of an exact size, each of which says by signature where it belongs.

    made = split(Path("b.tar"), 4 * 10**9, Path("/media/usb"), repository, progress)

The source is read once, and checked against its own digests on the way; the headers, which name all
parts' digests, are filled in at the end. Until then a part is ``.NAME.partNNNN.partial``, and
``.NAME.split.json`` remembers the digests of those that are whole. After a kill the same command
reads those again and keeps them if they are right. Parts of another set are never mixed in or
overwritten: they are refused by name.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from appliance.bundle.copying import CHUNK, Source, whole_file
from appliance.bundle.parts import is_part, part_header, read_part
from appliance.bundle.reader import BundleReader
from appliance.errors import (
    BundleTampered,
    FileUnreadable,
    PartRefused,
    PartSizeInvalid,
    PermissionRefused,
    TargetTaken,
)
from appliance.i18n import _
from appliance.manifests.bundle import _Frozen
from appliance.manifests.transport import MAX_PARTS, BundleName, Hex, PartIndex
from appliance.store.blobs import sync_folder
from appliance.store.space import Files, full_disk, require

if TYPE_CHECKING:
    from appliance.bundle.segments import Check
    from appliance.progress import Progress, Task
    from appliance.trust.repository import Repository

_ZEROS = "0" * 64


@dataclass(frozen=True)
class SplitSet:
    """The parts that were made. ``kept`` were there already and right."""

    index: PartIndex
    paths: tuple[Path, ...]
    kept: int


class _Journal(_Frozen):
    """``.NAME.split.json``: of what, how, and the digests of the parts that are whole."""

    schema_version: Literal[1] = 1
    source: Hex
    size: int
    part_size: int
    header_size: int
    parts: dict[str, Hex] = Field(default_factory=dict)


def split(
    path: Path, part_size: int, folder: Path, repository: Repository, progress: Progress
) -> SplitSet:
    """Cut the bundle at ``path`` into parts of ``part_size`` bytes, the last excepted.

    Raises :class:`PartSizeInvalid`, :class:`TargetTaken`, :class:`DiskFull`,
    :class:`BundleTampered` for a source that is not what was signed, and what opening it and the
    keys raises.
    """
    with whole_file(path) as source:
        blank = plan_parts(_name_of(source), path.name, source.medium.size, part_size, repository)
        return _Cutter(source, blank, folder, repository, progress).run()


def plan_parts(
    bundle: BundleName | None, name: str, size: int, part_size: int, repository: Repository
) -> PartIndex:
    """The index with digests of zero: how many parts, and how long their headers must be.

    Raises :class:`PartSizeInvalid`.
    """
    count = 1
    while True:
        header = _header_size(bundle, name, count, repository)
        if part_size - header < 4096:
            reason = _("A part's header alone takes {header} bytes.").format(header=header)
            raise PartSizeInvalid(size=size, part_size=part_size, reason=reason)
        needed = -(-size // (part_size - header))
        if needed > MAX_PARTS:
            reason = _("That would be more than {most} parts.").format(most=MAX_PARTS)
            raise PartSizeInvalid(size=size, part_size=part_size, reason=reason)
        if needed <= count:
            return PartIndex(
                bundle=bundle, name=name, size=size, part_size=part_size, header_size=header,
                parts=(_ZEROS,) * needed,
            )  # fmt: skip
        count = needed


def _header_size(bundle: BundleName | None, name: str, count: int, repository: Repository) -> int:
    """Enough for an index of ``count`` parts: its length does not depend on the digests."""
    most = 2**53 - 1
    trial = PartIndex.model_construct(
        schema_version=1, bundle=bundle, name=name, size=most, part_size=most,
        header_size=1 << 26, parts=(_ZEROS,) * count,
    )  # fmt: skip
    statement = repository.statement(trial.canonical(), PartIndex.TYPE)
    return -(-(len(part_header(1, statement, 1 << 26).rstrip(b"\0")) + 1) // 4096) * 4096


def _name_of(source: Source) -> BundleName | None:
    if source.segments and source.segments[0].hex is None:
        return None
    with BundleReader(source.path) as bundle:
        manifest = bundle.manifest
        return BundleName(name=manifest.name, version=manifest.version, digest=manifest.digest)


class _Cutter:
    def __init__(
        self,
        source: Source,
        blank: PartIndex,
        folder: Path,
        repository: Repository,
        progress: Progress,
    ) -> None:
        self._source = source
        self._blank = blank
        self._folder = folder
        self._repository = repository
        self._progress = progress
        self._journal_path = folder / f".{blank.name}.split.json"

    def run(self) -> SplitSet:
        if not self._folder.is_dir():
            reason = _("The parts would go there; it is no folder.")
            raise FileUnreadable(path=self._folder, reason=reason)
        self._refuse_strangers()
        journal = self._journal()
        digests: list[str] = []
        kept = 0
        check = self._source.check()
        with (
            self._disk_errors(),
            self._progress.task(_("Splitting"), self._blank.size, "bytes") as task,
        ):
            self._require_space()
            for number in range(1, len(self._blank.parts) + 1):
                before = check.copy()
                known = journal.parts.get(str(number))
                found = self._keep(number, known, check, task) if known else None
                if found is None:
                    check = before
                    found = self._cut(number, check, task)
                    journal = self._remember(journal, number, found)
                else:
                    kept += 1
                digests.append(found)
            index = self._blank.model_copy(update={"parts": tuple(digests)})
            self._finish(index)
        paths = tuple(self._final(number) for number in range(1, len(digests) + 1))
        return SplitSet(index, paths, kept)

    # what is there

    def _final(self, number: int) -> Path:
        return self._folder / f"{self._blank.name}.part{number:04d}"

    def _partial(self, number: int) -> Path:
        return self._folder / f".{self._final(number).name}.partial"

    def _refuse_strangers(self) -> None:
        """No part of another set, and nothing else, under a name of ours."""
        for path in sorted(self._folder.glob(f"{_escaped(self._blank.name)}.part*")):
            ours = False
            if is_part(path):
                try:
                    part = read_part(path)
                except PartRefused:
                    continue  # a part that was cut short or damaged: judged by its digest below
                ours = self._same_cut(part.index) and path == self._final(part.number)
            if not ours:
                reason = _("It is not a part of this set, and could later pass for one.")
                raise TargetTaken(path=path, reason=reason)

    def _same_cut(self, index: PartIndex) -> bool:
        return index.model_copy(update={"parts": self._blank.parts}) == self._blank

    def _identity(self) -> str:
        """What tells this source from another: its first piece holds its signatures, or its nonce.

        One front has one valid bundle; no two encrypted files begin alike.
        """
        size = min(self._source.segments[0].end, self._source.medium.size, CHUNK)
        start = bytearray(size)
        self._source.read_into(memoryview(start), 0, self._blank.name)
        pieces = "".join(s.hex or "" for s in self._source.segments if s.hex)
        return hashlib.sha256(bytes(start) + pieces.encode()).hexdigest()

    def _journal(self) -> _Journal:
        """What an earlier run left: its journal, or the index of the parts it completed."""
        fresh = _Journal(
            source=self._identity(),
            size=self._blank.size,
            part_size=self._blank.part_size,
            header_size=self._blank.header_size,
        )
        try:
            left = _Journal.model_validate_json(self._journal_path.read_bytes())
            if left.model_copy(update={"parts": {}}) == fresh:
                return left
        except (OSError, ValidationError):
            pass
        for number in range(1, len(self._blank.parts) + 1):
            try:
                index = read_part(self._final(number)).index
            except (FileUnreadable, PartRefused):
                continue
            digests = {str(n): digest for n, digest in enumerate(index.parts, start=1)}
            return fresh.model_copy(update={"parts": digests})
        return fresh

    def _remember(self, journal: _Journal, number: int, digest: str) -> _Journal:
        journal = journal.model_copy(update={"parts": {**journal.parts, str(number): digest}})
        staged = self._journal_path.with_name(f"{self._journal_path.name}.new")
        with staged.open("w", encoding="ascii") as file:
            json.dump(journal.model_dump(), file)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self._journal_path)
        return journal

    def _keep(self, number: int, digest: str, check: Check, task: Task) -> str | None:
        """The digest of a part that is there and right; None if it must be cut."""
        for path in (self._partial(number), self._final(number)):
            whole = self._blank.header_size + self._blank.payload(number)
            if not path.is_file() or path.is_symlink() or path.stat().st_size != whole:
                continue
            hasher = hashlib.sha256()
            with path.open("rb", buffering=0) as file:
                file.seek(self._blank.header_size)
                buffer = bytearray(CHUNK)
                while count := file.readinto(buffer):
                    hasher.update(memoryview(buffer)[:count])
            if hasher.hexdigest() != digest:
                continue
            with path.open("rb", buffering=0) as file:  # from the page cache, as a rule
                file.seek(self._blank.header_size)
                while count := file.readinto(buffer):
                    check.feed(memoryview(buffer)[:count])
                    task.advance(count)
            return digest
        return None

    # what is made

    def _cut(self, number: int, check: Check, task: Task) -> str:
        """Write one part, its header left zero; return the digest of its payload."""
        offset = (number - 1) * self._blank.capacity
        size = self._blank.payload(number)
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(CHUNK, size)))
        self._final(number).unlink(missing_ok=True)  # damaged, or it would have been kept
        with self._partial(number).open("wb", buffering=0) as out:
            out.seek(self._blank.header_size)
            done = 0
            while done < size:
                piece = buffer[: min(CHUNK, size - done)]
                self._source.medium.expect(offset + done, len(piece))
                self._source.read_into(piece, offset + done, self._blank.name)
                digest.update(piece)
                check.feed(piece)
                written = 0
                while written < len(piece):
                    written += out.write(piece[written:])
                done += len(piece)
                task.advance(len(piece))
            os.fsync(out.fileno())
        return digest.hexdigest()

    def _finish(self, index: PartIndex) -> None:
        """Fill in the headers, give the parts their names, forget the journal."""
        statement = self._repository.statement(index.canonical(), PartIndex.TYPE)
        for number in range(1, len(index.parts) + 1):
            partial = self._partial(number)
            if not partial.exists():
                partial = self._final(number)  # named before a kill; the same index, so it stays
                if read_part(partial).statement == statement:
                    continue
            with partial.open("r+b", buffering=0) as file:
                file.write(part_header(number, statement, index.header_size))
                os.fsync(file.fileno())
            partial.rename(self._final(number))
        sync_folder(self._folder)
        self._journal_path.unlink(missing_ok=True)

    def _require_space(self) -> None:
        name = _escaped(self._blank.name)
        files = (*self._folder.glob(f".{name}.part*"), *self._folder.glob(f"{name}.part*"))
        there = sum(file.stat().st_size for file in files)
        needed = self._blank.size + len(self._blank.parts) * self._blank.header_size - there
        reason = _("The parts that are not there yet would not fit.")
        require([Files(self._folder, (max(0, needed),))], reason)

    def _clear(self) -> None:
        """Leave nothing of parts that must not be made."""
        for partial in self._folder.glob(f".{_escaped(self._blank.name)}.part*.partial"):
            partial.unlink()
        self._journal_path.unlink(missing_ok=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        reason = _("The disk filled up meanwhile; the parts that are whole stay, to go on from.")
        try:
            with full_disk(self._folder, self._blank.size, reason):
                yield
        except BundleTampered:
            self._clear()
            raise
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
                raise PermissionRefused(
                    path=self._folder, action=_("written to"), reason=f"{error.strerror}."
                ) from error
            raise


def _escaped(name: str) -> str:
    """``name`` as a glob pattern that matches only itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
