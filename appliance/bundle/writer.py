"""Write a bundle: the canonical tar of a content, from blobs that lie in a store.

    members = signed_members(manifest, sbom, signatures)
    metadata = repository.sign(manifest.name, members, artefacts=manifest.artefacts)
    write(path, BundleContent(manifest, sbom, signatures, metadata), store.path, progress)

The same content always gives the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import mmap
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
from appliance.bundle.lanes import lanes, run
from appliance.errors import BlobMissing
from appliance.i18n import _
from appliance.manifests.bundle import BundleManifest
from appliance.store.blobs import sync_folder
from appliance.store.space import Files, full_disk, is_full, preallocate, require

if TYPE_CHECKING:
    from appliance.progress import Progress, Task

_CHUNK = 4 << 20
_SMALL = 1 << 20  # bytes; read whole


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
        """Which blobs are written, and as what."""
        return cargo_of(self.manifest, self.statements)


Chunks = Callable[[str], Iterator[bytes]]
"""The bytes of the blob ``sha256:<hex>`` as they are carried. Raises ``FileNotFoundError``."""


def write(
    path: Path, content: BundleContent, locate: Callable[[str], Path], progress: Progress
) -> int:
    """Write the bundle to ``path`` (atomically, replacing what was there); return its bytes.

    ``locate`` maps ``sha256:<hex>`` to the file that holds it (``Store.path``). Each blob is hashed
    while it is copied: :class:`BlobMissing` if one is absent or is not what the manifest says.
    :class:`DiskFull` if it does not fit, before anything is written; and if the disk fills up
    nevertheless, after what was written is removed.
    """

    return _write(path, content, _pages(locate), progress, "at once")


def files(locate: Callable[[str], Path]) -> Chunks:
    """Blobs that are files, at ``locate(digest)``."""

    def read(digest: str) -> Iterator[bytes]:
        with locate(digest).open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    return read


_Pieces = Callable[[str], Iterator[bytes | memoryview]]
"""As ``Chunks``, each piece good until the next."""


def _pages(locate: Callable[[str], Path]) -> _Pieces:
    """The same in page-aligned pieces, as O_DIRECT wants them; several may be read at a time."""

    def read(digest: str) -> Iterator[bytes | memoryview]:
        with locate(digest).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            if os.fstat(file.fileno()).st_size <= _SMALL:
                yield file.read()
                return
            buffer = memoryview(mmap.mmap(-1, _CHUNK))
            while count := file.readinto(buffer):
                yield buffer[:count]

    return read


def write_from(path: Path, content: BundleContent, chunks: Chunks, progress: Progress) -> int:
    """As :func:`write`, from ``chunks``; a delta or an encrypted bundle as its statements say.

    Blobs are asked for one after the other, in their order; the file grows as they come, so that a
    source may free what was taken from it.
    """
    return _write(path, content, chunks, progress, "as it comes")


def _write(
    path: Path,
    content: BundleContent,
    pieces: _Pieces,
    progress: Progress,
    how: Literal["at once", "as it comes"],
) -> int:
    members = content.members()
    for name, data in members.items():
        if len(data) > size_limit(name):
            raise ValueError(f"{name} has {len(data)} bytes, more than a reader takes")
    cargo = content.cargo()
    layout = cargo.layout([(name, len(data)) for name, data in members.items()])
    _sweep(path)
    if how == "at once":
        reason = _("The bundle is written beside its final name, then renamed.")
        require([Files(path.parent, (layout.size,))], reason)
    partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")
    reason = _("The disk filled up while the bundle was being written; what was written is gone.")
    try:
        with (
            full_disk(path.parent, layout.size, reason),
            _Output(partial, layout.size if how == "at once" else None) as out,
            progress.task(_("Writing the bundle"), layout.size, "bytes") as task,
        ):
            for member in layout.front:
                data = members[member.name]
                out.put(header_of(member) + data + bytes(padding(member.size)), member.header)
                task.advance(member.end - member.header)

            def copy(member: Place, stopped: Callable[[], bool]) -> None:
                source = pieces(cargo.blob_of[member.name].digest)
                _copy(source, member, out, path, task, stopped=stopped)

            # In order and alone where the file grows: what such file systems do best.
            run(
                layout.blobs,
                copy,
                lambda member: member.size if out.preallocated else -member.header,
                lanes() if out.preallocated else 1,
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


class _Output:
    """The file being written, by offset: any number of threads may put bytes at a time.

    Whole pages of data go past the page cache where the file system can, the rest through it.
    """

    def __init__(self, path: Path, reserve: int | None) -> None:
        self._path = path
        self._reserve = reserve

    def __enter__(self) -> _Output:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = self._direct = os.open(self._path, flags, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self.preallocated = self._reserve is not None and preallocate(self._fd, self._reserve)
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

    def put_pages(self, data: bytes | memoryview, offset: int) -> None:
        """The same, past the page cache as far as offset, length and memory are pages."""
        whole = 0 if offset % ALIGNMENT else len(data) - len(data) % ALIGNMENT
        view = memoryview(data)
        self._put(self._direct, view[:whole], offset)
        self._put(self._fd, view[whole:], offset + whole)

    def _put(self, descriptor: int, data: memoryview, offset: int) -> None:
        while data.nbytes:
            try:
                count = os.pwrite(descriptor, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL or descriptor == self._fd:
                    raise
                descriptor, count = self._fd, 0
            data, offset = data[count:], offset + count
            if count % ALIGNMENT:
                descriptor = self._fd

    def sync(self) -> None:
        """Return once all of it is on the disk."""
        os.fsync(self._fd)


def _copy(
    chunks: Iterator[bytes | memoryview],
    member: Place,
    out: _Output,
    bundle: Path,
    task: Task,
    *,
    stopped: Callable[[], bool],
) -> None:
    """Copy and hash one blob, between its header and its padding."""
    out.put(header_of(member), member.header)
    digest = hashlib.sha256()
    done = 0

    def missing(reason: str) -> BlobMissing:
        return BlobMissing(bundle=bundle, blob=f"sha256:{member.hex}", reason=reason)

    try:
        for chunk in chunks:
            if stopped():
                return
            if done + len(chunk) > member.size:
                raise missing(_("It is longer than its digest says."))
            digest.update(chunk)
            out.put_pages(chunk, member.data + done)
            done += len(chunk)
            task.advance(len(chunk))
    except OSError as error:
        if is_full(error):
            raise
        reason = _("At byte {offset}: {reason}.").format(offset=done, reason=error.strerror)
        blob = error.filename or f"sha256:{member.hex}"
        raise BlobMissing(bundle=bundle, blob=blob, reason=reason) from error
    if done != member.size or digest.hexdigest() != member.hex:
        raise missing(_("Its content is not what its digest says."))
    out.put(bytes(padding(member.size)), member.data + member.size)
