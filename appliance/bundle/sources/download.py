"""Files from the web into the build cache: streamed, resumed, checked, bounded.

    with Web(desk.cache) as web:
        (content,) = web.fetch_all([Wanted("model.safetensors", url, Sha256(hex))], desk, title)

Every file is pinned by a digest before it is asked for, so nothing a server says is believed: what
arrives is hashed while it is written, and only what has the digest enters ``cache.files``. What was
cut off stays in ``cache.partial``; the next attempt, or the next run, asks for the rest (RFC 9110,
section 14). A resumed file that turns out wrong is fetched once more from its beginning, because
its first half may have been another file's.

Addresses are https, or http on this machine's own loopback; at most five redirects, each held to
the same rule. A token goes to the one origin it was given for, never to where that redirects, and
neither it nor an address's query (where a content network's signatures are) enters a message. The
proxies that the environment names are used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import httpx

from appliance import __version__
from appliance.bundle.cache import BuildCache, Digested
from appliance.errors import DownloadMismatch, SourceRefused, SourceUnreachable
from appliance.i18n import _
from appliance.store.space import Files, full_disk, require

if TYPE_CHECKING:
    from appliance.bundle.sources.desk import Desk
    from appliance.progress import Task

T = TypeVar("T")

_REDIRECTS = 5
_AT_ONCE = 4
_CHUNK = 1 << 20
_ANSWER_CAP = 64 << 20  # bytes of one JSON answer
_SPARE = 64 << 20
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class Patience:
    """``tries`` in a row without a byte, ``most`` in all; the pause doubles from ``first`` to
    ``longest`` seconds. ``silence`` seconds without a byte end an attempt."""

    tries: int = 5
    most: int = 100
    first: float = 1.0
    longest: float = 30.0
    silence: float = 60.0


@dataclass(frozen=True, slots=True)
class Sha256:
    """Content known by its SHA-256."""

    hex: str


@dataclass(frozen=True, slots=True)
class GitBlob:
    """Content known as git knows it: SHA-1 over ``blob <size>``, NUL and the bytes."""

    oid: str
    size: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to fetch. ``name`` is what people call it; ``size`` in bytes if it is known."""

    name: str
    url: str
    content: Sha256 | GitBlob
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token for one origin (``https://host:port``)."""

    origin: str
    value: str

    def __repr__(self) -> str:
        return f"Token({self.origin!r}, …)"


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON answer and the address of the next page of it, if there is one (RFC 8288)."""

    value: Any
    next: str | None


class Web:
    """Fetches into one cache. Used as a context manager; threads may share it."""

    def __init__(
        self, cache: BuildCache, token: Token | None = None, patience: Patience | None = None
    ) -> None:
        self._cache = cache
        self._token = token
        self._patience = patience or Patience()
        self._stopped = threading.Event()
        self._client = httpx.Client(
            headers={"User-Agent": f"sovctl/{__version__}", "Accept-Encoding": "identity"},
            timeout=self._patience.silence,
            follow_redirects=False,
        )

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopped.set()
        self._client.close()

    def fetch_all(self, files: Sequence[Wanted], desk: Desk, title: str) -> list[Digested]:
        """Fetch what the cache lacks, a few files at once; the files' places, in their order.

        Raises :class:`SourceUnreachable`, :class:`SourceRefused`, :class:`DownloadMismatch` or
        :class:`DiskFull`, for the first file that fails. What was fetched before that is kept.
        """
        sizes = [file.size for file in files]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        with (
            desk.progress.task(title, total, "bytes") as task,
            ThreadPoolExecutor(_AT_ONCE) as pool,
        ):
            jobs = [pool.submit(self.fetch, file, task) for file in files]
            try:
                for job in as_completed(jobs):  # the first that fails, not the first in the list
                    job.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            return [job.result() for job in jobs]

    def fetch(self, wanted: Wanted, task: Task) -> Digested:
        """One file, from the cache or fetched into it. Raises as :meth:`fetch_all`."""
        if kept := self._kept(wanted, task):
            return kept
        task.note(wanted.name)
        with _Partial.opened(self._cache, wanted, task) as partial:
            if kept := self._kept(wanted, task):  # another build brought it while we waited
                partial.discard()
                return kept
            for _round in range(2):
                if partial.whole:
                    break
                self._patiently(
                    wanted.name, wanted.url, lambda: self._go_on(wanted, partial), partial
                )
                if not partial.whole and partial.pieces > 1:
                    partial.restart()
            if not partial.whole:
                found = partial.found()
                partial.discard()
                raise _mismatch(wanted, _("It has {got}.").format(got=found))
            return partial.keep(self._cache)

    def read_json(self, url: str, name: str) -> Answer:
        """A JSON answer of at most 64 MiB. Raises :class:`SourceUnreachable` or `SourceRefused`."""

        def ask() -> Answer:
            with self._answer(url, name, {"Accept": "application/json"}) as response:
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > _ANSWER_CAP:
                        raise _refused(url, name, _("Its answer does not end."))
                following = response.links.get("next", {}).get("url")
            try:
                value = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise _refused(url, name, _("Its answer is not JSON.")) from error
            return Answer(value, str(httpx.URL(url).join(following)) if following else None)

        return self._patiently(name, url, ask, None)

    def _kept(self, wanted: Wanted, task: Task) -> Digested | None:
        if isinstance(wanted.content, Sha256):
            return self._cache.file(wanted.content.hex, task)
        return None

    def _patiently(
        self, name: str, url: str, action: Callable[[], T], partial: _Partial | None
    ) -> T:
        """Run ``action`` until it returns; again after what passes, while there is patience."""
        failures = 0
        for _attempt in range(self._patience.most):
            before = partial.size if partial else 0
            try:
                return action()
            except (_Again, httpx.TransportError) as error:
                reason, pause = _plain(error), getattr(error, "pause", 0.0)
            if partial and partial.size > before:
                failures = 0
            failures += 1
            if failures >= self._patience.tries:
                break
            wait = min(self._patience.first * 2 ** (failures - 1), self._patience.longest)
            if self._stopped.wait(max(wait, min(pause, self._patience.longest))):
                break
        host, root = _host(url), self._cache.root
        raise SourceUnreachable(file=name, host=host, reason=reason, cache=root)

    def _go_on(self, wanted: Wanted, partial: _Partial) -> None:
        """Ask for what ``partial`` lacks and append it. Returns at the end of the answer."""
        headers = {"Range": f"bytes={partial.size}-"} if partial.size else {}
        with self._answer(wanted.url, wanted.name, headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                partial.restart()
                raise _Again(_("The server has less of it than we have."))
            if response.status_code != httpx.codes.PARTIAL_CONTENT:
                partial.restart()  # the server sends it from the beginning
            elif _start(response) != partial.size:
                partial.restart()
                raise _Again(_("The server sent another part than the one asked for."))
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise _refused(wanted.url, wanted.name, _("It comes compressed."))
            announced = _length(response)
            end = None if announced is None else partial.size + announced
            if wanted.size is not None and end is not None and end != wanted.size:
                partial.discard()
                reason = _("It has {got} bytes instead of {size}.")
                raise _mismatch(wanted, reason.format(got=end, size=wanted.size))
            reason = _("What is fetched is kept there; SOVCTL_CACHE names another folder.")
            require([Files(self._cache.partial, (announced or 0,), reserve=_SPARE)], reason)
            partial.pieces += 1
            most = wanted.size if wanted.size is not None else end
            for chunk in response.iter_raw():
                if self._stopped.is_set():
                    raise _Again(_("Another file failed first."))
                partial.append(chunk)
                if most is not None and partial.size > most:
                    partial.discard()
                    reason = _("It goes on after its {size} bytes.").format(size=most)
                    raise _mismatch(wanted, reason)
        if wanted.size is not None and partial.size < wanted.size:
            raise _Again(_("The connection was cut off."))

    @contextmanager
    def _answer(self, url: str, name: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The final answer to a GET: 200, 206 or 416. Raises `_Again` or :class:`SourceRefused`."""
        address = httpx.URL(url)
        for _hop in range(_REDIRECTS + 1):
            _check_address(address, url, name)
            sent = {**headers, **self._authorization(address)}
            with self._client.stream("GET", address, headers=sent) as response:
                if response.is_redirect and "Location" in response.headers:
                    try:
                        address = address.join(response.headers["Location"])
                    except httpx.InvalidURL as error:
                        raise _refused(url, name, _("It redirects nowhere.")) from error
                    continue
                if response.status_code in _RETRIED:
                    raise _Again(_status(response), _retry_after(response))
                good = response.status_code in {200, 206} or (
                    response.status_code == 416 and "Range" in headers
                )
                if not good:
                    raise _refused(str(address), name, _status(response))
                yield response
                return
        reason = _("It redirects more than {count} times.").format(count=_REDIRECTS)
        raise _refused(url, name, reason)

    def _authorization(self, address: httpx.URL) -> dict[str, str]:
        if self._token is None or origin_of(str(address)) != self._token.origin:
            return {}
        return {"Authorization": f"Bearer {self._token.value}"}


def origin_of(url: str) -> str:
    """``scheme://host:port`` of an address, the port always written."""
    parsed = httpx.URL(url)
    port = parsed.port or {"https": 443, "http": 80}.get(parsed.scheme, 0)
    return f"{parsed.scheme}://{parsed.host}:{port}"


class _Again(Exception):
    """An attempt failed in a way that may pass. ``pause`` is what the server asked for, seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _Partial:
    """The beginning of a file, its running digests, and the lock that one writer holds on it."""

    def __init__(self, file: BinaryIO, path: Path, wanted: Wanted, task: Task) -> None:
        self._file = file
        self._path = path
        self._wanted = wanted
        self._task = task
        self._reported = 0
        self._discarded = False
        self._begin()
        file.seek(0)
        self.pieces = 1 if os.fstat(file.fileno()).st_size else 0
        while chunk := file.read(_CHUNK):
            self._count(chunk)
        if wanted.size is not None and self.size > wanted.size:
            self.restart()

    @classmethod
    @contextmanager
    def opened(cls, cache: BuildCache, wanted: Wanted, task: Task) -> Iterator[_Partial]:
        """Open or create; waits while another build writes the same file."""
        key = hashlib.sha256(repr((wanted.url.partition("?")[0], wanted.content)).encode())
        path = cache.partial / key.hexdigest()
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            file = os.fdopen(descriptor, "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                current = path.stat().st_ino if path.exists() else None
                if current == os.fstat(file.fileno()).st_ino:
                    yield cls(file, path, wanted, task)
                    return
            finally:
                file.close()

    def _begin(self) -> None:
        self.size = 0
        self.pieces = 0  # answers it is made of
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(usedforsecurity=False)
        if isinstance(self._wanted.content, GitBlob):
            self._git.update(b"blob %d\0" % self._wanted.content.size)

    def _count(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        if isinstance(self._wanted.content, GitBlob):
            self._git.update(chunk)
        self.size += len(chunk)
        if self.size > self._reported:
            self._task.advance(self.size - self._reported)
            self._reported = self.size

    @property
    def whole(self) -> bool:
        """Whether this is the file that is wanted."""
        content = self._wanted.content
        if self._discarded:
            return False
        if isinstance(content, GitBlob):
            return self.size == content.size and self._git.hexdigest() == content.oid
        return self._sha256.hexdigest() == content.hex

    def found(self) -> str:
        """What it is instead, for a message."""
        if isinstance(self._wanted.content, GitBlob):
            return f"git:{self._git.hexdigest()}"
        return f"SHA-256 {self._sha256.hexdigest()}"

    def append(self, chunk: bytes) -> None:
        """Write and digest the next bytes. Raises :class:`DiskFull`."""
        with self._full_disk():
            self._file.write(chunk)
        self._count(chunk)

    def restart(self) -> None:
        """Throw away what is there."""
        self._file.seek(0)
        self._file.truncate()
        self._begin()

    def discard(self) -> None:
        """Remove it: it will never become the file."""
        self._path.unlink(missing_ok=True)
        self._discarded = True

    def keep(self, cache: BuildCache) -> Digested:
        """Put the whole file on disk and into the cache."""
        with self._full_disk():
            self._file.flush()
            os.fsync(self._file.fileno())
        self._path.chmod(0o644)
        hex_digest = self._sha256.hexdigest()
        return Digested(cache.add_file(self._path, hex_digest), hex_digest, self.size)

    def _full_disk(self) -> AbstractContextManager[None]:
        reason = _("The disk filled up while {file} was fetched.").format(file=self._wanted.name)
        return full_disk(self._path.parent, None, reason)


def _check_address(address: httpx.URL, url: str, name: str) -> None:
    plain = address.scheme == "http" and address.host in _LOOPBACK
    if not (address.scheme == "https" or plain) or not address.host or address.userinfo:
        reason = _("It leads to {scheme}://{host}, and only https without a password is taken.")
        raise _refused(url, name, reason.format(scheme=address.scheme, host=address.host))


def _start(response: httpx.Response) -> int | None:
    match = re.match(r"bytes (\d+)-\d+/(?:\d+|\*)$", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _length(response: httpx.Response) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() else None


def _retry_after(response: httpx.Response) -> float:
    with suppress(ValueError):
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    return 0.0


def _status(response: httpx.Response) -> str:
    status = response.status_code
    return _("It answers {status} {words}.").format(status=status, words=response.reason_phrase)


def _host(url: str) -> str:
    parsed = httpx.URL(url)
    return f"{parsed.host}:{parsed.port}" if parsed.port else parsed.host


def _refused(url: str, name: str, reason: str) -> SourceRefused:
    return SourceRefused(file=name, host=_host(url), reason=reason)


def _mismatch(wanted: Wanted, reason: str) -> DownloadMismatch:
    return DownloadMismatch(package=wanted.name, reason=reason)


def _plain(error: Exception) -> str:
    """A sentence for a failed attempt, without addresses: they may hold a proxy's password."""
    if isinstance(error, httpx.TimeoutException):
        return _("No answer came in time.")
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return _("The connection was cut off.")
    words = re.sub(r"\S*://\S*|\S+@\S+", "…", str(error)).rstrip(".")
    return f"{words or type(error).__name__}."
