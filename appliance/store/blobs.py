"""Content-addressed blobs on disk: ``sha256/ab/abcd…``, verified once on the way in.

Whatever has its final name was hashed while it was written, flushed to the disk and renamed into
place, so *there* means *whole and right*: :meth:`Store.has` is one ``stat``. Blobs are mode 0444,
because a release's files are hard links to them and share their inode.

    store = Store(home.store)
    with store.writer(digest, size) as blob:
        for chunk in chunks:
            blob.write(chunk)
        blob.commit()
    store.link_out(digest, release / "models/m/config.json")

Large blobs are written past the page cache (O_DIRECT) where the file system can: that costs a third
of the processor time, and a bundle of 200 GB does not push everything else out of memory. Where the
store shares XFS or btrfs with the file a blob comes from, its blocks are shared instead of copied
(:meth:`BlobWriter.clone_from`), and what is hashed is what then lies in the store.

A blob being written is a file under ``tmp/`` locked with flock(2); :meth:`Store.clean` removes
those whose writer is gone, so a kill -9 leaves nothing behind for longer than until the next run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import StoreDamaged
from appliance.i18n import _
from appliance.store.space import Files, full_disk, preallocate

if TYPE_CHECKING:
    from types import TracebackType

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CHUNK = 4 << 20
_DIRECT_FROM = 1 << 20  # bytes; smaller blobs gain nothing from O_DIRECT
_CLONE_FROM = 1 << 16  # bytes; below it, one write is cheaper than sharing blocks
_CLONE_UNIT = 4096  # bytes; XFS's and btrfs's usual block, and a bundle's alignment
_FICLONERANGE = 0x4020940D  # linux/fs.h: _IOW(0x94, 13, struct file_clone_range)


class BlobMismatch(ValueError):
    """What was written is not the blob it was announced as. Nothing was kept."""


def hex_of(digest: str) -> str:
    """The 64 hexadecimal digits of ``sha256:<hex>``. Raises ``ValueError`` for anything else."""
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise ValueError(f"{digest!r} is not a sha256 digest")
    return match.group(1)


def sync_folder(folder: Path) -> None:
    """fsync(2) a folder, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Store:
    """Blobs by digest under ``root``. Constructing one touches no disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._unsynced: set[Path] | None = None

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be. Raises ``ValueError`` if ``digest`` is malformed."""
        name = hex_of(digest)
        return self.root / "sha256" / name[:2] / name

    def has(self, digest: str, size: int) -> bool:
        """Whether the whole blob is here: one ``stat``."""
        try:
            status = self.path(digest).stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return status.st_size == size

    def files_of(self, blobs: Iterable[tuple[str, int]], reserve: int = 0) -> Files:
        """What writing these new blobs (digest, bytes) will take here; see ``store.space``."""
        known = list(blobs)
        folders = {hex_of(digest)[:2] for digest, _size in known}
        new = sum(not (self.root / "sha256" / name).is_dir() for name in folders)
        own = (self.root, self.root / "sha256", self._unfinished)
        if known:
            new += sum(not folder.is_dir() for folder in own)
        return Files(self.root, [size for _digest, size in known], new, reserve)

    def writer(self, digest: str, size: int) -> BlobWriter:
        """Begin writing the blob ``digest`` of ``size`` bytes; see :class:`BlobWriter`."""
        return BlobWriter(self, digest, size)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Sync the folders of all blobs committed in the ``with`` block once, at its end.

        Until then a power cut may take back a committed blob (never leave half of one).
        """
        self._unsynced = set()
        try:
            yield
        finally:
            folders, self._unsynced = self._unsynced, None
            for folder in sorted(folders):
                sync_folder(folder)

    def _sync(self, folder: Path) -> None:
        if self._unsynced is None:
            sync_folder(folder)
        else:
            self._unsynced.add(folder)

    def add(self, source: Path) -> tuple[str, int]:
        """Take in a file whose digest is not known yet; return its digest and size in bytes."""
        digest, size = digest_of(source)
        if not self.has(digest, size):
            with source.open("rb") as file, self.writer(digest, size) as blob:
                while chunk := file.read(_CHUNK):
                    blob.write(chunk)
                blob.commit()
        return digest, size

    def put(self, data: bytes) -> str:
        """Take in ``data``; return its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        if not self.has(digest, len(data)):
            with self.writer(digest, len(data)) as blob:
                blob.write(data)
                blob.commit()
        return digest

    def link_out(self, digest: str, target: Path) -> None:
        """Make ``target`` a hard link to the blob. A right link already there is left alone.

        Raises :class:`StoreDamaged` if the blob is missing.
        """
        source = self.path(digest)
        try:
            if target.is_symlink() or target.exists():
                if not target.is_symlink() and target.samefile(source):
                    return
                target.unlink()
            os.link(source, target, follow_symlinks=False)
        except FileNotFoundError as error:
            raise StoreDamaged(blob=digest, store=self.root, reason="it is missing") from error

    def check(self, digest: str) -> None:
        """Hash the blob again. Raises :class:`StoreDamaged` if it is missing or was altered."""
        try:
            actual, _size = digest_of(self.path(digest))
        except FileNotFoundError as error:
            raise StoreDamaged(blob=digest, store=self.root, reason="it is missing") from error
        if not hmac.compare_digest(actual, digest):
            raise StoreDamaged(blob=digest, store=self.root, reason="its content has changed")

    def remove(self, digest: str) -> None:
        """Forget a blob; hard links to it in releases live on."""
        self.path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Every blob here, in order."""
        for file in sorted((self.root / "sha256").glob("??/*")):
            yield f"sha256:{file.name}"

    @property
    def _unfinished(self) -> Path:
        return self.root / "tmp"

    def clean(self) -> int:
        """Remove what writers that are gone left unfinished; return how many files that was."""
        removed = 0
        for leftover in self._unfinished.glob("*"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), leftover.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
                removed += 1
        return removed


class BlobWriter:
    """One blob on its way in: hashed while it is written, and kept only if it is what was said.

    A context manager; leaving it without :meth:`commit` keeps nothing. Used by one thread at a
    time. ``write`` raises :class:`BlobMismatch` as soon as there is more than ``size``.
    """

    def __init__(self, store: Store, digest: str, size: int) -> None:
        self._store = store
        self._digest = digest
        self._size = size
        self._written = 0
        self._hash = hashlib.sha256()
        self._path = store._unfinished / f"{hex_of(digest)[:16]}-{secrets.token_hex(8)}"
        self._fd = -1
        self._direct = False

    def __enter__(self) -> BlobWriter:
        with self._disk_full():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def clone_from(self, source: int, offset: int, proceed: Callable[[int], bool]) -> bool:
        """Share the blob's blocks with the open file ``source``, where it begins at ``offset``.

        Only where both lie on one file system that can (FICLONERANGE, ioctl_ficlonerange(2)), and
        ``offset`` is a multiple of 4096. Then what lies in the *store* is read back and hashed,
        ``proceed`` hears of its bytes and may stop it by saying False, and only :meth:`commit` is
        left to do. False: nothing is here; :meth:`write` it.
        """
        shared = self._size - self._size % _CLONE_UNIT
        if self._written or self._size < _CLONE_FROM or offset % _CLONE_UNIT:
            return False
        try:
            request = struct.pack("=qQQQ", source, offset, shared, 0)
            fcntl.ioctl(self._fd, _FICLONERANGE, request)
            tail = os.pread(source, self._size - shared, offset + shared)
            os.pwrite(self._fd, tail, shared)
            if self._hash_own(proceed):
                return True
        except OSError:
            pass
        # Another file system, no room to share, blocks that cannot be read: the plain way works,
        # or says what is wrong with which member.
        os.ftruncate(self._fd, 0)
        self._hash, self._written = hashlib.sha256(), 0
        return False

    def _hash_own(self, proceed: Callable[[int], bool]) -> bool:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = memoryview(bytearray(_CHUNK))
        while count := os.preadv(self._fd, [buffer], self._written):
            self._hash.update(buffer[:count])
            # Nobody reads it again soon: a bundle larger than memory pushes nothing out of it.
            os.posix_fadvise(self._fd, self._written, count, os.POSIX_FADV_DONTNEED)
            self._written += count
            if not proceed(count):
                return False
        return True

    def _prepare_direct(self) -> None:
        """Reserve the space and leave the page cache, as far as this file system can."""
        preallocate(self._fd, self._size)
        with _where_supported():
            fcntl.fcntl(self._fd, fcntl.F_SETFL, os.O_DIRECT)
            self._direct = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``. Raises :class:`BlobMismatch`, or :class:`DiskFull`.

        Fastest with page-aligned buffers of a multiple of 4096 bytes, all but the last.
        """
        view = memoryview(data)
        if self._written + view.nbytes > self._size:
            raise BlobMismatch(f"{self._digest} is longer than {self._size} bytes")
        with self._disk_full():
            if not self._written and self._size >= _DIRECT_FROM:
                self._prepare_direct()
            self._hash.update(view)
            self._written += view.nbytes
            while view.nbytes:
                view = view[self._write_some(view) :]

    def _write_some(self, view: memoryview) -> int:
        try:
            return os.write(self._fd, view)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
        # Not aligned for O_DIRECT (the last bytes never are): through the page cache from here.
        self._direct = False
        fcntl.fcntl(self._fd, fcntl.F_SETFL, 0)
        return os.write(self._fd, view)

    def _disk_full(self) -> contextlib.AbstractContextManager[None]:
        reason = _("The disk filled up while a blob was being written; nothing of it was kept.")
        return full_disk(self._store.root, self._size, reason)

    def commit(self) -> None:
        """Give the blob its name. Raises :class:`BlobMismatch` if it is not what was announced."""
        actual = "sha256:" + self._hash.hexdigest()
        if self._written != self._size or not hmac.compare_digest(actual, self._digest):
            raise BlobMismatch(f"{self._digest} was announced, {actual} was written")
        with self._disk_full():
            os.fchmod(self._fd, 0o444)
            os.fsync(self._fd)
            target = self._store.path(self._digest)
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                self._store._sync(target.parent.parent)
            self._path.replace(target)
            self._store._sync(target.parent)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._fd)


@contextlib.contextmanager
def _where_supported() -> Iterator[None]:
    """Let go of what this file system cannot do."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
            raise


def digest_of(path: Path) -> tuple[str, int]:
    """``sha256:<hex>`` and size in bytes of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"sha256:{digest}", file.tell()
