"""Will it fit? Exact bytes per file system, known before the first byte is written.

    require([Files(store.root, sizes, reserve=RESERVE), Files(out.parent, (total,))], reason)

A file takes whole blocks of its file system and one inode, and folders that have to be made take
the same; what several writers put on one file system is summed. :func:`predict` decides and is
pure, :func:`look` reads the machine. What changes after the look is met by :func:`full_disk`: the
same :class:`~appliance.errors.DiskFull`, from whatever said that nothing more fits, or
:class:`~appliance.errors.FileTooLarge`, where there is room and the file is too large all the same.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import DiskFull, FileTooLarge
from appliance.i18n import _

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What a file system answers when nothing more fits: full, or over quota."""


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system: bytes an ordinary process may still write there, its block size in bytes.

    ``inodes`` is how many files may still be made, None where there is no such limit (btrfs).
    """

    device: int
    mount: Path
    free: int
    block: int
    inodes: int | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """Files of these ``sizes`` (bytes) that will be written below ``folder``, beside ``folders``
    new folders; ``reserve`` bytes are to stay free there afterwards."""

    folder: Path
    sizes: Sequence[int]
    folders: int = 0
    reserve: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What is wanted of one file system, in bytes and in files, and what it has."""

    system: FileSystem
    needed: int
    files: int

    @property
    def fits(self) -> bool:
        """Whether all of it can be written there."""
        inodes = self.system.inodes
        return self.needed <= self.system.free and (inodes is None or self.files <= inodes)

    def __str__(self) -> str:
        text = _("{needed} bytes needed in {mount}, {free} bytes free").format(
            needed=self.needed, mount=self.system.mount, free=self.system.free
        )
        if self.system.inodes is None or self.files <= self.system.inodes:
            return text
        more = _("{files} files to make, {inodes} inodes free")
        return f"{text}; {more.format(files=self.files, inodes=self.system.inodes)}"


def on_disk(size: int, block: int) -> int:
    """Bytes a file of ``size`` bytes takes on a disk of ``block``-byte blocks."""
    return -(-size // block) * block


def predict(wanted: Sequence[tuple[Files, FileSystem]]) -> tuple[Room, ...]:
    """What each file system must hold, one entry for each device in the order met. Pure.

    A reserve is kept once per file system, the largest of those asked for, and only where
    something is written at all.
    """
    systems: dict[int, FileSystem] = {}
    needed: dict[int, int] = {}
    files: dict[int, int] = {}
    reserves: dict[int, int] = {}
    for each, system in wanted:
        device, block = system.device, systems.setdefault(system.device, system).block
        size = sum(on_disk(size, block) for size in each.sizes) + each.folders * block
        needed[device] = needed.get(device, 0) + size
        files[device] = files.get(device, 0) + len(each.sizes) + each.folders
        if each.sizes or each.folders:
            reserves[device] = max(reserves.get(device, 0), each.reserve)
    return tuple(
        Room(system, needed[device] + reserves.get(device, 0), files[device])
        for device, system in systems.items()
    )


def look(folder: Path) -> FileSystem:
    """The file system ``folder`` lies on, or would lie on."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    status, device = os.statvfs(existing), existing.stat().st_dev
    mount = existing.resolve()
    while mount != mount.parent and mount.parent.stat().st_dev == device:
        mount = mount.parent
    return FileSystem(
        device,
        mount,
        free=status.f_bavail * status.f_frsize,
        block=status.f_frsize,
        inodes=status.f_favail if status.f_files else None,
    )


def require(wanted: Sequence[Files], reason: str) -> tuple[Room, ...]:
    """Raise :class:`DiskFull` if it does not all fit, naming each file system that is too small."""
    rooms = predict([(each, look(each.folder)) for each in wanted])
    short = [room for room in rooms if not room.fits]
    if short:
        also = "".join(_(" Also: {room}.").format(room=room) for room in short[1:])
        worst = short[0]
        if worst.needed <= worst.system.free:
            also = f" {worst}.{also}"
        raise DiskFull(
            path=worst.system.mount,
            needed=_count(worst.needed),
            free=_count(worst.system.free),
            reason=reason + also,
        )
    return rooms


@contextmanager
def full_disk(folder: Path, needed: int | None, reason: str) -> Iterator[None]:
    """Turn "no space left" (of the kernel or of SQLite) into :class:`DiskFull`, and "file too
    large" into :class:`FileTooLarge`.

    ``needed`` is the bytes that were being written below ``folder``, None where nobody knows.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, OSError) and error.errno == errno.EFBIG:
            size = _("this size") if needed is None else _count(needed)
            raise FileTooLarge(path=folder, size=size) from error
        if not is_full(error):
            raise
        system = look(folder)
        raise DiskFull(
            path=system.mount,
            needed=_("more") if needed is None else _count(needed),
            free=_count(system.free),
            reason=reason,
        ) from error


def preallocate(descriptor: int, size: int) -> bool:
    """fallocate(2): reserve ``size`` bytes for an open file and make it that long.

    False, and nothing happened, where the file system cannot (FAT, most network ones):
    ``os.posix_fallocate`` would write every block of it there. Raises ``OSError`` for a full disk.
    """
    if not size:
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size))
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
        return False
    raise OSError(code, os.strerror(code))


def is_full(error: BaseException) -> bool:
    """Whether ``error`` says that a disk is full or a quota used up."""
    if isinstance(error, OSError):
        return error.errno in FULL
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.Error) and code == sqlite3.SQLITE_FULL


def _count(size: int) -> str:
    return _("{count} bytes").format(count=size)
