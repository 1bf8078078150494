"""Files shared between inside and outside of the seal.

Written whole or not at all. Read and opened with care: whoever runs inside may put a link or a pipe
in a file's place, for a program outside to follow or to wait at.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from pathlib import Path

_LONGEST = 1 << 20


def write_whole(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` atomically and durably; it has ``mode`` from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def open_log(folder: Path, name: str) -> int:
    """A descriptor for appending to ``folder/name``, mode 0600. Raises OSError at a link."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(folder / name, flags, 0o600)


def _open_plain(path: Path) -> int:
    """Open a regular file for reading; a link, a pipe or a device raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in ``path``; empty if it is absent or not one."""
    try:
        with os.fdopen(_open_plain(path), "rb") as file:
            value = json.loads(file.read(_LONGEST))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def tail(path: Path, lines: int) -> str:
    """The last ``lines`` lines of a log, reading at most 64 KiB of it."""
    try:
        with os.fdopen(_open_plain(path), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""
