"""The few kernel calls Python does not wrap. Linux on x86_64 and aarch64; standard library only."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18

_SYS_MOUNT_SETATTR = 442  # the same number on every architecture; Linux 5.12
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 0x1, 0x2

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 24, 28
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 22, 38, 47


def mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    """mount(2). Raises :class:`OSError` with the target's name."""
    failed = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if failed:
        _raise(str(target))


def bind(source: str, target: Path) -> None:
    """Make ``source`` and every mount under it visible at ``target``."""
    mount(source, target, "", MS_BIND | MS_REC)


def set_mount_attributes(target: Path, *, add: int = 0, clear: int = 0) -> None:
    """mount_setattr(2) on ``target`` and every mount under it. ENOSYS before Linux 5.12."""
    attributes = struct.pack("=QQQQ", add, clear, 0, 0)
    failed = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.c_char_p(attributes),
        ctypes.c_size_t(len(attributes)),
    )
    if failed:
        _raise(str(target))


def prctl(option: int, second: int, third: int = 0, fourth: int = 0) -> None:
    """prctl(2)."""
    arguments = (ctypes.c_ulong(value) for value in (second, third, fourth, 0))
    if _libc.prctl(option, *arguments):
        _raise(f"prctl {option}")


def clear_capabilities() -> None:
    """capset(2): none effective, permitted or inheritable."""
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    if _libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(bytes(24))):
        _raise("capset")


def install_filter(program: bytes) -> None:
    """Install a seccomp filter of classic BPF instructions, 8 bytes each. It cannot be removed."""
    buffer = ctypes.create_string_buffer(program, len(program))

    class _Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    holder = _Program(len(program) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(holder))  # SECCOMP_MODE_FILTER


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), what)
