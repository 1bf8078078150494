"""Copy a bundle, or join its parts into one file, so that it can be cut off anywhere and go on.

    copied = copy(Path("b.tar"), Path("/media/usb/b.tar"), progress)
    copied = join(Path("b.tar.part0001"), Path("b.tar"), progress, opening)

What is written lies under ``.NAME.partial`` beside the target until it is whole, was flushed, and
was *read back* from the medium and found right. What is there already, from an earlier run or from
a ``cp`` that was cut, is kept piece by piece where its SHA-256 is the signed one; only what is
wrong or missing is read from the source.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle import segments
from appliance.bundle.age import is_age
from appliance.bundle.medium import EndReached, FileMedium, Medium, ReadFailed
from appliance.bundle.opening import PLAIN, Opening, open_raw
from appliance.bundle.parts import is_part, part_header, read_part
from appliance.bundle.reader import BundleReader
from appliance.bundle.segments import Check, Segment
from appliance.errors import (
    BundleTampered,
    BundleTruncated,
    CopyDamaged,
    MediumFailed,
    PermissionRefused,
    TargetTaken,
)
from appliance.i18n import _
from appliance.store.blobs import sync_folder
from appliance.store.space import Files, full_disk, require

if TYPE_CHECKING:
    from appliance.progress import Progress, Task

CHUNK = 4 << 20


@dataclass(frozen=True)
class Copied:
    """A whole copy at ``path``: ``kept`` bytes were there and right, ``written`` were not."""

    path: Path
    size: int
    kept: int
    written: int


@dataclass(frozen=True)
class Source:
    """Where a copy comes from: bytes by offset, and the pieces they must consist of."""

    path: Path
    medium: Medium
    segments: list[Segment]

    def read_into(self, buffer: memoryview, offset: int, member: str) -> None:
        """Fill ``buffer``. Raises :class:`BundleTruncated`, :class:`MediumFailed`."""
        try:
            self.medium.read_into(buffer, offset)
        except EndReached as end:
            raise BundleTruncated(
                bundle=self.path, expected=self.medium.size, actual=end.offset
            ) from end
        except ReadFailed as failed:
            raise MediumFailed(
                bundle=self.path, member=member, offset=failed.offset, reason=failed.reason
            ) from failed

    def check(self) -> Check:
        """A check of the whole stream."""
        return Check(self.path, self.segments)


@contextmanager
def whole_file(path: Path, opening: Opening = PLAIN) -> Iterator[Source]:
    """The bundle at ``path``, joined if it is a part; an age file as it is. Checks its size."""
    with _closing(open_raw(path, opening)) as medium:
        if is_age(medium):
            yield Source(path, medium, list(segments.of_unknown(medium.size)))
            return
    with BundleReader(path, opening) as bundle:
        bundle.check_size()
        yield Source(path, bundle.medium, list(segments.of_bundle(bundle)))


@contextmanager
def _one_part(path: Path) -> Iterator[Source]:
    """A part as it is."""
    part = read_part(path)
    header = part_header(part.number, part.statement, part.index.header_size)
    with _closing(FileMedium(path)) as medium:
        yield Source(path, medium, list(segments.of_part(part, header)))


@contextmanager
def _closing(medium: Medium) -> Iterator[Medium]:
    try:
        yield medium
    finally:
        medium.close()


def copy(source: Path, target: Path, progress: Progress) -> Copied:
    """Copy a bundle, a part or an encrypted bundle, going on where an earlier copy stopped.

    ``target`` may be a folder. Raises what opening a bundle raises, :class:`TargetTaken`,
    :class:`DiskFull`, :class:`CopyDamaged`, :class:`MediumFailed`.
    """
    with _one_part(source) if is_part(source) else whole_file(source) as opened:
        return _carry(opened, target / source.name if target.is_dir() else target, progress)


def join(part: Path, target: Path, progress: Progress, opening: Opening = PLAIN) -> Copied:
    """Write the file that parts were cut from. Raises as :func:`copy`, and ``PartMissing``."""
    with whole_file(part, opening) as source:
        return _carry(source, target, progress)


def decrypt_whole(path: Path, target: Path, progress: Progress, opening: Opening) -> Copied:
    """Write the bundle inside an age file, in clear."""
    with BundleReader(path, opening) as bundle:
        bundle.check_size()
        source = Source(path, bundle.medium, list(segments.of_bundle(bundle)))
        return _carry(source, target, progress)


def _carry(source: Source, target: Path, progress: Progress) -> Copied:
    size = source.medium.size
    target = target.absolute()
    partial = target.with_name(f".{target.name}.partial")
    _adopt(source, target, partial)
    with _writing(partial, size) as fd, progress.task(_("Copying"), size, "bytes") as task:
        lacking = max(0, size - os.fstat(fd).st_size)
        require([Files(partial.parent, (lacking,))], _("What is not there yet would not fit."))
        fresh = [(s, digest) for s in source.segments if (digest := _bring(source, fd, s, task))]
        os.ftruncate(fd, size)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    written = sum(segment.size for segment, _digest in fresh)
    with _writing(partial, size) as fd, progress.task(_("Reading it back"), written, "bytes") as t:
        for segment, digest in fresh:
            if _digest_at(fd, segment, t) != digest:
                raise CopyDamaged(path=partial, member=segment.name)
    partial.rename(target)
    sync_folder(target.parent)
    return Copied(target, size, size - written, written)


def _bring(source: Source, fd: int, segment: Segment, task: Task) -> str | None:
    """Make one piece right in the copy. Returns its digest if it was written, None if it was there.

    Raises :class:`BundleTampered` if the source itself is not what was signed.
    """
    there = os.fstat(fd).st_size >= segment.end
    present = _digest_at(fd, segment, None) if there else None
    if present is not None and present == segment.hex:
        task.advance(segment.size)
        return None
    source.medium.expect(segment.offset, segment.size)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK, segment.size) or 1))
    done = 0
    while done < segment.size:
        piece = buffer[: min(CHUNK, segment.size - done)]
        source.read_into(piece, segment.offset + done, segment.name)
        digest.update(piece)
        _write_at(fd, piece, segment.offset + done)
        done += len(piece)
        task.advance(len(piece))
    found = digest.hexdigest()
    if segment.hex is not None and found != segment.hex:
        raise BundleTampered(
            bundle=source.path, member=segment.name, reason=_("its digest is not the signed one")
        )
    return None if found == present else found


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def _digest_at(fd: int, segment: Segment, task: Task | None) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK, segment.size) or 1))
    done = 0
    while done < segment.size:
        count = os.preadv(fd, [buffer[: segment.size - done]], segment.offset + done)
        if count == 0:
            break
        digest.update(buffer[:count])
        done += count
        if task is not None:
            task.advance(count)
    return digest.hexdigest()


def _adopt(source: Source, target: Path, partial: Path) -> None:
    """Take what lies under the final name for a copy that was cut, if it begins like the source.

    Raises :class:`TargetTaken` for anything else, and for what is a whole file of its own.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_file() or target.is_symlink():
        raise TargetTaken(path=target, reason=_("It is not a regular file."))
    with suppress(OSError):
        if target.samefile(source.path):
            raise TargetTaken(path=target, reason=_("It is the source itself."))
    size = target.stat().st_size
    start = min(size, source.segments[0].size, CHUNK)
    expected = bytearray(start)
    source.read_into(memoryview(expected), 0, source.segments[0].name)
    with target.open("rb") as file:
        begins = file.read(start) == expected
    if size > source.medium.size or not begins:
        raise TargetTaken(path=target, reason=_("It is another file, not a part of this copy."))
    target.rename(partial)


@contextmanager
def _writing(partial: Path, size: int) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(partial, flags, 0o644)
    except OSError as error:
        raise PermissionRefused(
            path=partial.parent, action=_("written to"), reason=f"{error.strerror}."
        ) from error
    reason = _("The disk filled up meanwhile; what was copied stays, to go on from.")
    try:
        with full_disk(partial.parent, size, reason):
            yield fd
    except OSError as error:
        if error.errno == errno.EIO:
            raise CopyDamaged(path=partial, member=error.strerror) from error
        raise
    finally:
        os.close(fd)
