"""What a desk has already fetched and made, so that a second build does neither again.

    $SOVCTL_CACHE, or $XDG_CACHE_HOME/sovctl, or ~/.cache/sovctl
      wheels/<sha256>/<file name>     as published; the folder's name is the file's digest
  files/<sha256>                  what was fetched from an address or a hub
  partial/<key>                   the beginning of a file whose download was cut off; a week
      made/<digest of inputs>/…       what was made from them (a converted model, a data set)
      digests.sqlite                  path, size, mtime, inode → SHA-256; bundles written

Nothing here is trusted across the air gap: the writer hashes every byte again as it copies it.
Removing the folder is always safe.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import rfc8785

from appliance.errors import PermissionRefused
from appliance.i18n import _
from appliance.store.space import full_disk, is_full

if TYPE_CHECKING:
    from appliance.progress import Task

_CHUNK = 4 << 20
# A file changed twice within one tick of the file system's clock would keep its mtime.
_SETTLED_NS = 50_000_000
_RESUMABLE_S = 7 * 86_400

Inputs = Mapping[str, str | int | Sequence[str]]
"""What decides the content of something made: digests, versions, seeds."""


@dataclass(frozen=True, slots=True)
class Digested:
    """A file and what is in it."""

    location: Path
    hex: str
    size: int


class BuildCache:
    """The cache below ``root``. Several builds may use one at the same time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root / "wheels"
        self.files = root / "files"
        self.partial = root / "partial"
        self._made = root / "made"
        self._scratch = root / "tmp"
        try:
            for folder in (self.wheels, self.files, self.partial, self._made, self._scratch):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_full(error):
                raise
            raise PermissionRefused(
                path=root, action=_("used as build cache"), reason=error.strerror or error
            ) from error
        self._sweep()
        self._lock = threading.Lock()
        self._digests = sqlite3.connect(
            root / "digests.sqlite", timeout=30, check_same_thread=False, isolation_level=None
        )
        self._digests.execute("PRAGMA journal_mode=WAL")
        self._digests.execute(
            "CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, size INTEGER,"
            " mtime_ns INTEGER, inode INTEGER, sha256 TEXT) WITHOUT ROWID"
        )

        self._digests.execute(
            "CREATE TABLE IF NOT EXISTS outputs (path TEXT PRIMARY KEY, state TEXT, identity TEXT)"
            " WITHOUT ROWID"
        )

    @classmethod
    def from_environment(cls) -> BuildCache:
        """The cache the environment names; see the module's first lines."""
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        named = os.environ.get("SOVCTL_CACHE") or f"{base}/sovctl"
        root = Path(named).expanduser().absolute()
        with full_disk(root, None, _("The build cache lies there.")):
            return cls(root)

    def digest(self, path: Path, task: Task) -> Digested:
        """SHA-256 of a file: from the record if size, mtime and inode are as recorded, else read.

        ``task`` advances by the file's bytes either way.
        """
        location = path.absolute()
        stat = location.stat()
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        with self._lock:
            row = self._digests.execute(
                "SELECT sha256 FROM digests WHERE path=? AND size=? AND mtime_ns=? AND inode=?",
                (str(location), *state),
            ).fetchone()
        if row:
            task.advance(stat.st_size)
            return Digested(location, row[0], stat.st_size)
        read_at = time.time_ns()
        hex_digest, size = _sha256(location, task)
        if size == stat.st_size and stat.st_mtime_ns < read_at - _SETTLED_NS:
            with self._lock:
                self._digests.execute(
                    "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)",
                    (str(location), *state, hex_digest),
                )
        return Digested(location, hex_digest, size)

    def remember_output(self, path: Path, identity: str) -> None:
        """Record that ``path``, as it is now, is the output ``identity`` stands for."""
        with self._lock:
            self._digests.execute(
                "INSERT OR REPLACE INTO outputs VALUES (?, ?, ?)",
                (str(path.absolute()), _state(path), identity),
            )

    def is_output(self, path: Path, identity: str) -> bool:
        """Whether ``path`` is untouched (size, mtime, inode) since it was remembered as that."""
        if not path.is_file():
            return False
        with self._lock:
            row = self._digests.execute(
                "SELECT 1 FROM outputs WHERE path=? AND state=? AND identity=?",
                (str(path.absolute()), _state(path), identity),
            ).fetchone()
        return row is not None

    def make(self, what: str, inputs: Inputs, maker: Callable[[Path], None]) -> Path:
        """The folder of what ``maker`` makes from ``inputs``; it runs only if that is not here yet.

        ``maker`` fills an empty folder, which takes its final name when it returns; what an
        interrupted or failed one leaves is removed.
        """
        final = self._place(what, inputs)
        if final.is_dir():
            return final
        with self.scratch() as folder:
            made = folder / "made"
            made.mkdir()
            maker(made)
            for path in made.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            try:
                made.rename(final)
            except OSError:
                if not final.is_dir():  # another build made the same in the meantime
                    raise
        return final

    def forget(self, what: str, inputs: Inputs) -> None:
        """Drop what :meth:`make` keeps for these inputs, so that it is made again."""
        shutil.rmtree(self._place(what, inputs), ignore_errors=True)

    def _place(self, what: str, inputs: Inputs) -> Path:
        key = hashlib.sha256(rfc8785.dumps({"what": what, **inputs})).hexdigest()
        return self._made / f"{what}-{key[:32]}"

    def _sweep(self) -> None:
        """Remove what builds that were killed left behind; one at work holds its folder's lock."""
        with _locked(self._gate, fcntl.LOCK_EX):
            for folder in self._scratch.iterdir():
                with suppress(OSError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(folder, ignore_errors=True)
        for cut_off in self.partial.iterdir():
            with suppress(OSError):
                if cut_off.stat().st_mtime < time.time() - _RESUMABLE_S:
                    cut_off.unlink()

    @property
    def _gate(self) -> Path:
        """What is locked while a scratch folder has no lock of its own yet: the cache's folder."""
        return self.root

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder on the cache's own file system."""
        with ExitStack() as held:
            with _locked(self._gate, fcntl.LOCK_SH):  # nobody sweeps between making and locking
                folder = Path(tempfile.mkdtemp(dir=self._scratch))
                held.callback(shutil.rmtree, folder, ignore_errors=True)
                held.enter_context(_locked(folder, fcntl.LOCK_EX))
            yield folder

    def add_wheel(self, path: Path, hex_digest: str) -> Path:
        """Move a file whose digest is known into the cache; return where it is."""
        final = self.wheels / hex_digest / path.name
        final.parent.mkdir(exist_ok=True)
        path.replace(final)
        return final

    def file(self, hex_digest: str, task: Task) -> Digested | None:
        """The fetched file of this digest, if it is here and still whole. One that is not goes."""
        path = self.files / hex_digest
        try:
            found = self.digest(path, task)
        except FileNotFoundError:
            return None
        if found.hex == hex_digest:
            return found
        path.unlink(missing_ok=True)
        return None

    def add_file(self, path: Path, hex_digest: str) -> Path:
        """Move a synced file whose digest is known into the cache; return where it is."""
        final = self.files / hex_digest
        path.replace(final)
        return final


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """flock(2) a folder. Raises ``BlockingIOError`` where ``how`` does not wait."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def _state(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"


def _sha256(path: Path, task: Task) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            task.advance(len(chunk))
    return digest.hexdigest(), size
