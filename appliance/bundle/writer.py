"""Write a bundle: the canonical tar of a content, from blobs that lie in a store.

    members = signed_members(manifest, sbom, signatures)
    metadata = repository.sign(manifest.name, members, artefacts=manifest.artefacts)
    write(path, BundleContent(manifest, sbom, signatures, metadata), store.path, progress)

The same content always gives the same bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle.cargo import Cargo, cargo_of
from appliance.bundle.format import (
    ALIGNMENT,
    END,
    Place,
    front_order,
    header_of,
    metadata_members,
    padding,
    signed_members,
    size_limit,
)
from appliance.bundle.lanes import BUFFER, Lane, lanes, run
from appliance.errors import BlobMissing
from appliance.i18n import _
from appliance.manifests.bundle import BundleManifest
from appliance.store.blobs import sync_folder
from appliance.store.space import Files, full_disk, preallocate, require

if TYPE_CHECKING:
    from appliance.progress import Progress, Task


@dataclass(frozen=True)
class BundleContent:
    """All of a bundle but its blobs.

    ``signatures`` maps a model's name to its OMS bundle; ``metadata`` is what
    ``trust.repository.Repository.sign`` returned (TUF file name → bytes); ``others`` are further
    members that it signed and ``statements`` those that are signed by themselves, by member name.
    """

    manifest: BundleManifest
    sbom: bytes
    signatures: Mapping[str, bytes] = field(default_factory=dict)
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    others: Mapping[str, bytes] = field(default_factory=dict)
    statements: Mapping[str, bytes] = field(default_factory=dict)

    def members(self) -> dict[str, bytes]:
        """Everything before the blobs, in order: name → bytes."""
        signed = signed_members(self.manifest, self.sbom, self.signatures, self.others)
        members = {**metadata_members(self.metadata), **signed, **self.statements}
        return {name: members[name] for name in sorted(members, key=front_order)}

    def cargo(self) -> Cargo:
        """Which blobs this copy carries, and as what."""
        return cargo_of(self.manifest, self.statements)


Chunks = Callable[[str], Iterator[bytes]]
"""``sha256:<hex>`` of a blob in clear → the bytes that are to be written for it."""


def files(locate: Callable[[str], Path]) -> Chunks:
    """Blobs that are files, at ``locate(digest)``."""

    def read(digest: str) -> Iterator[bytes]:
        with locate(digest).open("rb", buffering=0) as file:
            while chunk := file.read(BUFFER):
                yield chunk

    return read


def write(
    path: Path, content: BundleContent, locate: Callable[[str], Path], progress: Progress
) -> int:
    """Write the bundle to ``path`` (atomically, replacing what was there); return its bytes.

    ``locate`` maps ``sha256:<hex>`` to the file that holds it (``Store.path``). Each blob is hashed
    while it is copied: :class:`BlobMissing` if one is absent or is not what the manifest says.
    :class:`DiskFull` if it does not fit, before anything is written; and if the disk fills up
    nevertheless, after what was written is removed.
    """

    def job(member: Place, digest: str) -> _Job:
        source = locate(digest)
        return _Job(member, path, source, lambda lane: _file_pieces(source, path, lane))

    return _write(path, content, job, progress, lanes())


def write_from(path: Path, content: BundleContent, chunks: Chunks, progress: Progress) -> int:
    """As :func:`write`, one blob after the other in the tar's order, from ``chunks``."""

    def job(member: Place, digest: str) -> _Job:
        return _Job(member, path, digest, lambda _lane: chunks(digest))

    return _write(path, content, job, progress, 1)


def _write(
    path: Path,
    content: BundleContent,
    job_of: Callable[[Place, str], _Job],
    progress: Progress,
    at_once: int,
) -> int:
    members = content.members()
    for name, data in members.items():
        if len(data) > size_limit(name):
            raise ValueError(f"{name} has {len(data)} bytes, more than a reader takes")
    cargo = content.cargo()
    layout = cargo.layout([(name, len(data)) for name, data in members.items()])
    _sweep(path)
    require(
        [Files(path.parent, (layout.size,))],
        _("The bundle is written beside its final name, then renamed."),
    )
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")
    reason = _("The disk filled up while the bundle was being written; what was written is gone.")
    try:
        with (
            full_disk(path.parent, layout.size, reason),
            _Output(partial, layout.size) as out,
            progress.task(_("Writing the bundle"), layout.size, "bytes") as task,
        ):
            for member in layout.front:
                data = members[member.name]
                out.put(header_of(member) + data + bytes(padding(member.size)), member.header)
                task.advance(member.end - member.header)
            jobs = [job_of(m, cargo.blob_of[m.name].digest) for m in layout.blobs]
            # In order and alone where the output grows: what such file systems do best.
            parallel = at_once > 1 and out.preallocated
            run(
                jobs,
                lambda job, lane: _copy(job, out, lane, task),
                lambda job: job.member.size if parallel else -job.member.header,
                at_once if parallel else 1,
            )
            out.put(END, layout.end)
            out.sync()
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return layout.size


def _sweep(path: Path) -> None:
    """Remove what writers of ``path`` that were killed left behind; one at work holds a lock."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with contextlib.suppress(FileNotFoundError, BlockingIOError), leftover.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


@dataclass(frozen=True)
class _Job:
    """One member to write into ``bundle``, from ``pieces``; ``source`` names them in errors.

    A piece that is a memoryview begins at a page boundary (a lane's buffer does).
    """

    member: Place
    bundle: Path
    source: object
    pieces: Callable[[Lane], Iterator[bytes | memoryview]]

    def missing(self, reason: str) -> BlobMissing:
        """The error that names the source and says why."""
        return BlobMissing(bundle=self.bundle, blob=self.source, reason=reason)


class _Output:
    """The file being written, by offset: any number of threads may put bytes at a time.

    Whole pages of data go past the page cache where the file system can, the rest through it.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size

    def __enter__(self) -> _Output:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = self._direct = os.open(self._path, flags, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self.preallocated = preallocate(self._fd, self._size)
            if self.preallocated:
                with contextlib.suppress(OSError):
                    self._direct = os.open(self._path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in {self._fd, self._direct}:
            os.close(descriptor)

    def put(self, data: bytes | memoryview, offset: int) -> None:
        """Write ``data`` at ``offset``."""
        self._put(self._fd, memoryview(data), offset)

    def put_aligned(self, data: memoryview, offset: int) -> None:
        """Write page-aligned ``data`` at ``offset``, a multiple of the alignment."""
        whole = len(data) - len(data) % ALIGNMENT
        self._put(self._direct, data[:whole], offset)
        self._put(self._fd, data[whole:], offset + whole)

    def _put(self, descriptor: int, data: memoryview, offset: int) -> None:
        while data.nbytes:
            count = os.pwrite(descriptor, data, offset)
            data, offset = data[count:], offset + count
            if count % ALIGNMENT:
                descriptor = self._fd

    def sync(self) -> None:
        """Return once all of it is on the disk."""
        os.fsync(self._fd)


def _copy(job: _Job, out: _Output, lane: Lane, task: Task) -> None:
    """Copy and hash one member, between its header and its padding."""
    member = job.member
    out.put(header_of(member), member.header)
    digest = hashlib.sha256()
    done = 0
    try:
        for piece in job.pieces(lane):
            if lane.stopped:
                return
            if done + len(piece) > member.size:
                raise job.missing(_("It is longer than its digest says."))
            digest.update(piece)
            if isinstance(piece, memoryview) and done % ALIGNMENT == 0:
                out.put_aligned(piece, member.data + done)
            else:
                out.put(piece, member.data + done)
            done += len(piece)
            task.advance(len(piece))
    except FileNotFoundError as error:
        raise job.missing(_("The file {path} is missing.").format(path=error.filename)) from error
    if done != member.size or digest.hexdigest() != member.hex:
        raise job.missing(_("Its content is not what its digest says."))
    out.put(bytes(padding(member.size)), member.data + member.size)


def _file_pieces(source: Path, bundle: Path, lane: Lane) -> Iterator[memoryview]:
    """A file in pieces; what goes wrong with it is said about *it*, with the offset."""
    offset = 0
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BlobMissing(bundle=bundle, blob=source, reason=f"{error.strerror}.") from error
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := os.preadv(descriptor, [lane.buffer], offset):
            yield lane.buffer[:count]
            offset += count
    except OSError as error:
        reason = _("At byte {offset}: {reason}.").format(offset=offset, reason=error.strerror)
        raise BlobMissing(bundle=bundle, blob=source, reason=reason) from error
    finally:
        os.close(descriptor)
