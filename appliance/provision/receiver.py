"""Runs on a host, as root, to take in a release. Only Python's own library; started over SSH.

What comes on standard input and what is answered::

    →  {"version": 1, "home": …, "release": …, "run": …, "reserve": bytes,
        "blobs": n, "links": n, "files": n}
    →  n lines "HEX SIZE"           the release's blobs
    →  n lines "HEX PATH"           its files that are hard links to blobs
    →  n lines "HEX SIZE PATH"      its files that are not
    ←  {"blobs": [[index, offset], …], "files": bool}      what is wanted, in this order
    →  the bytes of each from its offset, then those of the files
    ←  {"done": true}               or, at any time, {"error": kind, …}, and it ends

Invariants. A blob gets its final name only when it is whole, flushed, and has the digest that was
announced; what broke off stays as ``store/tmp/<hex>.partial`` and is gone on with at its length. A
release folder gets its name only when all of it is there. Nothing is written outside the folders
``store`` and ``releases`` of the home, and nothing else is ever deleted. Space is judged before the
first byte. Memory does not grow with what is received.

It works only while the host's lock is held by the run that started it
(:mod:`appliance.provision.lock_there`), and ends an older receiver that a broken connection left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

_CHUNK = 1 << 20
_SILENCE_S = 120.0  # the link is dead, or whoever sends
_TAKEOVER_S = 5.0
_MOST_LINE = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}")
_RELEASE = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,200}")
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Refused(Exception):
    """Something is wrong that the sender must hear of: a kind, and fields for its text."""

    def __init__(self, kind: str, **fields: object) -> None:
        super().__init__(kind)
        self.answer = {"error": kind, **fields}


class Source:
    """Standard input as lines, then as bytes; silent for too long, or at its end, it is lost."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = bytearray()

    def line(self) -> str:
        """The next line, without its end."""
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                text = bytes(self._buffer[:end]).decode("utf-8")
                del self._buffer[: end + 1]
                return text
            if len(self._buffer) > _MOST_LINE:
                raise Refused("protocol", reason="a line is too long")
            self._buffer += self._read(_CHUNK)

    def chunk(self, most: int) -> bytes:
        """At least one byte and at most ``most``."""
        if self._buffer:
            data = bytes(self._buffer[:most])
            del self._buffer[:most]
            return data
        return self._read(min(most, _CHUNK))

    def _read(self, most: int) -> bytes:
        ready, _writable, _failed = select.select([self._descriptor], [], [], _SILENCE_S)
        data = os.read(self._descriptor, most) if ready else b""
        if not data:
            raise Refused("cut-off", reason="the sender ended" if ready else "the sender is silent")
        return data


class Receiver:
    """One release on its way into one home."""

    def __init__(self, source: Source) -> None:
        self._source = source
        header = json.loads(source.line())
        if header.get("version") != 1:
            raise Refused("protocol", reason="the sender speaks another version")
        self._home = Path(header["home"])
        self._release = str(header["release"])
        self._run = str(header["run"])
        self._reserve = int(header["reserve"])
        if not self._home.is_absolute() or not _RELEASE.fullmatch(self._release):
            raise Refused("unsafe", path=f"{self._home} {self._release}")
        blobs = [self._fields(2) for _ in range(int(header["blobs"]))]
        self._blobs = [(_digest(name), _size(size)) for name, size in blobs]
        links = [self._fields(2) for _ in range(int(header["links"]))]
        self._links = [(_digest(name), _safe(path)) for name, path in links]
        files = [self._fields(3) for _ in range(int(header["files"]))]
        self._files = [(_digest(name), _size(size), _safe(path)) for name, size, path in files]
        self._unsynced: set[Path] = set()

    def _fields(self, count: int) -> list[str]:
        parts = self._source.line().split(" ", count - 1)
        if len(parts) != count:
            raise Refused("protocol", reason="a line has the wrong form")
        return parts

    # --- places -----------------------------------------------------------------------------------

    @property
    def _store(self) -> Path:
        return self._home / "store"

    @property
    def _releases(self) -> Path:
        return self._home / "releases"

    def _blob(self, name: str) -> Path:
        return self._store / "sha256" / name[:2] / name

    def _partial(self, name: str) -> Path:
        return self._store / "tmp" / f"{name}.partial"

    # --- the whole --------------------------------------------------------------------------------

    def receive(self) -> None:
        """Everything, in order."""
        for folder in (self._home, self._store, self._store / "tmp", self._releases):
            _own_folder(folder)
        self._check_lock()
        with _alone(self._store / "receiving"):
            wanted = self._wanted()
            lay_out = not self._is_laid_out()
            self._check_space(wanted, lay_out=lay_out)
            _answer({"blobs": wanted, "files": lay_out})
            for index, offset in wanted:
                self._take_in(*self._blobs[index], offset)
            for folder in sorted(self._unsynced):
                _sync(folder)
            if lay_out:
                self._lay_out()
        _answer({"done": True})

    def _check_lock(self) -> None:
        try:
            held = json.loads((self._home / "operator-lock").read_bytes())
        except (OSError, ValueError):
            held = {}
        if held.get("run") != self._run:
            raise Refused("not-locked", operator=held.get("operator", ""))

    # --- blobs ------------------------------------------------------------------------------------

    def _wanted(self) -> list[tuple[int, int]]:
        wanted = []
        for index, (name, size) in enumerate(self._blobs):
            if _size_of(self._blob(name)) == size:
                continue
            begun = _size_of(self._partial(name)) or 0
            wanted.append((index, begun if begun <= size else 0))
        return wanted

    def _check_space(self, wanted: list[tuple[int, int]], *, lay_out: bool) -> None:
        """Blocks of everything to be written, new folders included, against what is free."""
        system = os.statvfs(self._home)
        block = system.f_frsize
        needed = files = 0
        for index, offset in wanted:
            needed += _blocks(self._blobs[index][1], block) - _blocks(offset, block)
            files += 1
        new = {self._blobs[index][0][:2] for index, _offset in wanted}
        folders = sum(not (self._store / "sha256" / name).is_dir() for name in new) + 1
        if lay_out:
            needed += sum(_blocks(size, block) for _name, size, _path in self._files)
            folders += len({p.parent for _d, p in self._links} | {p[2].parent for p in self._files})
            files += len(self._files)
        needed += folders * block
        files += folders
        if not wanted and not lay_out:
            return
        free = system.f_bavail * block
        if needed + self._reserve > free:
            raise Refused(
                "disk-full", path=str(self._home), needed=needed + self._reserve, free=free
            )
        if system.f_files and files > system.f_favail:
            raise Refused("no-inodes", path=str(self._home), needed=files, free=system.f_favail)

    def _take_in(self, name: str, size: int, offset: int) -> None:
        partial = self._partial(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(partial, flags, 0o600)
        try:
            os.ftruncate(descriptor, offset)
            digest = hashlib.sha256()
            _hash_begun(descriptor, offset, digest)
            done = offset
            while done < size:
                data = self._source.chunk(size - done)
                digest.update(data)
                _write_all(descriptor, data)
                done += len(data)
            if digest.hexdigest() != name:
                partial.unlink()
                raise Refused("resumed-badly" if offset else "damaged", digest=f"sha256:{name}")
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            if error.errno in _FULL:
                partial.unlink()  # or nothing else on this disk works until somebody looks
            raise
        finally:
            os.close(descriptor)
        target = self._blob(name)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            self._unsynced.add(target.parent.parent)
        partial.replace(target)
        self._unsynced.add(target.parent)

    # --- the release ------------------------------------------------------------------------------

    def _is_laid_out(self) -> bool:
        final = self._releases / self._release
        if not final.is_dir() or final.is_symlink():
            return False
        for name, _bytes, path in self._files:
            if str(path) == "bundle.json":
                there = hashlib.sha256((final / path).read_bytes()).hexdigest()
                if there != name:
                    raise Refused("release-differs", release=self._release)
        return True

    def _lay_out(self) -> None:
        partial = self._releases / f".partial-{self._release}"
        partial.mkdir(exist_ok=True)
        for name, path in self._links:
            self._link(self._blob(name), partial / path)
        for name, size, path in self._files:
            self._write(partial / path, name, size)
        for folder, _folders, _files in os.walk(partial, topdown=False):
            _sync(Path(folder))
        partial.rename(self._releases / self._release)
        _sync(self._releases)

    def _link(self, source: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if target.is_symlink() or target.exists():
                if not target.is_symlink() and target.samefile(source):
                    return
                target.unlink()
            os.link(source, target, follow_symlinks=False)
        except FileNotFoundError as error:
            raise Refused("blob-missing", digest=f"sha256:{source.name}") from error

    def _write(self, target: Path, name: str, size: int) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        digest = hashlib.sha256()
        with target.open("xb") as file:
            while size:
                data = self._source.chunk(size)
                digest.update(data)
                file.write(data)
                size -= len(data)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != name:
            target.unlink()
            raise Refused("damaged", digest=f"sha256:{name}")


# --- judging what was sent ------------------------------------------------------------------------


def _digest(text: str) -> str:
    if not _HEX.fullmatch(text):
        raise Refused("protocol", reason="a digest has the wrong form")
    return text


def _size(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise Refused("protocol", reason="a size is not a number")
    return int(text)


def _safe(text: str) -> Path:
    """A relative path that stays below its folder."""
    parts = text.split("/")
    if not text or "\0" in text or any(part in {"", ".", ".."} for part in parts):
        raise Refused("unsafe", path=text)
    return Path(text)


# --- the disk -------------------------------------------------------------------------------------


def _own_folder(folder: Path) -> None:
    """Make a folder, or see that it belongs to us: whoever owns it decides what is in it."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.parent)
    status = folder.stat()
    if not folder.is_dir() or status.st_uid not in {0, os.geteuid()}:
        raise Refused("unsafe", path=str(folder))


def _size_of(path: Path) -> int | None:
    try:
        return path.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return None


def _blocks(size: int, block: int) -> int:
    return -(-size // block) * block


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_begun(descriptor: int, length: int, digest: Any) -> None:
    """Read what is there already, up to ``length``; leaves the file at its end."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    while length:
        data = os.read(descriptor, min(length, _CHUNK))
        if not data:
            raise Refused("cut-off", reason="a file shrank while it was read")
        digest.update(data)
        length -= len(data)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@contextlib.contextmanager
def _alone(path: Path) -> Any:
    """Be the only receiver of this home; ends one that is left of a broken connection.

    The host's lock is ours, so another one can only be our own, from before.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _take_over(descriptor)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take_over(descriptor: int) -> None:
    number = signal.SIGTERM
    while True:
        until = time.monotonic() + _TAKEOVER_S
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            older = os.pread(descriptor, 20, 0)
            if time.monotonic() > until or not older.isdigit():
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(older), number)
            time.sleep(0.1)
        if number == signal.SIGKILL:
            raise Refused("busy", reason="another receiver does not end")
        number = signal.SIGKILL


def _answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> NoReturn:
    """Receive; the answer tells how it went, and so does the status."""
    os.umask(0o022)
    try:
        Receiver(Source(0)).receive()
    except Refused as refused:
        _answer(refused.answer)
        sys.exit(1)
    except OSError as error:
        kind = "disk-full" if error.errno in _FULL else "os"
        _answer({"error": kind, "path": str(error.filename or ""), "reason": error.strerror})
        sys.exit(1)
    except (ValueError, KeyError, TypeError) as error:
        _answer({"error": "protocol", "reason": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
