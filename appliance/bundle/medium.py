"""What a bundle is read from: one file, or something that answers like one.

A :class:`Medium` gives bytes by offset. :class:`FileMedium` is a file; parts on several disks and
an encrypted file are others. A medium that is ``sequential`` can only be read forwards, or only at
a price: whoever reads blobs from it goes by offset, in one thread.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol

from appliance.errors import FileUnreadable, NotABundle


class ReadFailed(Exception):
    """The medium gave up at ``offset`` (bytes from the bundle's start), or ended there."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"{reason} at byte {offset}")
        self.offset = offset
        self.reason = reason


class EndReached(ReadFailed):
    """There are no more bytes at ``offset``."""


class Medium(Protocol):
    """The bytes of one bundle, by offset."""

    path: Path
    """What it is called in errors."""
    size: int
    """Bytes of the whole bundle."""
    sequential: bool
    statement: bytes | None
    """The signed index it was put together by; None where it is one file."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``. Raises :class:`ReadFailed`, :class:`EndReached`."""

    def expect(self, offset: int, size: int) -> None:
        """Say that ``size`` bytes from ``offset`` will be read next, in order."""

    def close(self) -> None:
        """Let go of it."""


class FileMedium:
    """One regular file. Reads go by offset (pread), so any number of threads may share it."""

    sequential = False
    statement: bytes | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # O_NONBLOCK: a named pipe is refused below instead of waited for here.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise FileUnreadable(path=path, reason=error.strerror or str(error)) from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise NotABundle(bundle=path, reason="It is not a regular file.")
        self.size = status.st_size

    @property
    def descriptor(self) -> int:
        """The open file, for ioctl_ficlonerange(2)."""
        return self._fd

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; see :class:`Medium`."""
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
                if count == 0:
                    raise EndReached(offset + done, "the file ends")
                done += count
        except OSError as error:
            reason = error.strerror or str(error)
            raise ReadFailed(offset + done, reason) from error

    def expect(self, offset: int, size: int) -> None:
        """posix_fadvise(2): the kernel reads ahead."""
        os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_SEQUENTIAL)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
