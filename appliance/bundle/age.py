"""Encryption to recipients: the age format (age-encryption.org/v1), by pyrage.

pyrage holds the interpreter's lock while it works. So what is large goes through *filters*:
processes that read one stream and write another, one for each large blob at work, and all cores
share the load. What is small is decrypted here. An identity's text reaches a filter through a pipe,
never through argv or the environment.

What a filter yields is authenticated in pieces of 64 KiB by age, and by the bundle's own digests
before anything is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pyrage

from appliance.bundle.medium import EndReached, Medium, ReadFailed
from appliance.errors import (
    BundleTampered,
    BundleTruncated,
    FileUnreadable,
    IdentityNeeded,
    IdentityRefused,
    IdentityUnusable,
    RecipientInvalid,
)
from appliance.i18n import _

MAGIC = b"age-encryption.org/v1\n"
IN_PROCESS = 1 << 20  # bytes; below this a filter's start costs more than it gains

_PIECE = 1 << 20  # bytes read from a filter at a time, and from a medium into it
_CHUNK, _TAG, _NONCE = 64 << 10, 16, 16  # of age's payload: plaintext a chunk, its tag, the nonce
_MAX_HEADER = 1 << 20
_PATIENCE = 5.0  # seconds for a feeder to notice; one that waits for a disk never does

Pieces = Generator[bytes, None, None]

_FILTER = """
import os, sys
mode, secret = sys.argv[1], int(sys.argv[2])
with os.fdopen(secret) as file:
    keys = file.read().split()
import pyrage
source, sink = os.fdopen(0, "rb", 1 << 20), os.fdopen(1, "wb", 1 << 20)
try:
    if mode == "decrypt":
        pyrage.decrypt_io(source, sink, [pyrage.x25519.Identity.from_str(k) for k in keys])
    else:
        pyrage.encrypt_io(source, sink, [pyrage.x25519.Recipient.from_str(k) for k in keys])
    sink.flush()
except BaseException as error:
    os.write(2, str(error).encode())
    os._exit(1)
"""


class AgeFailed(Exception):
    """age refused: no identity fits (``wrong_identity``), or the ciphertext is not authentic."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.wrong_identity = "No matching keys" in reason


class Identities:
    """The private keys in an age identity file. Never printed, never on argv."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="ascii")
        except OSError as error:
            raise FileUnreadable(path=path, reason=error.strerror or str(error)) from error
        except UnicodeDecodeError as error:
            raise IdentityUnusable(path=path, reason=_("It is not a text file.")) from error
        lines = [line.strip() for line in text.splitlines()]
        self.keys = tuple(line for line in lines if line and not line.startswith("#"))
        try:
            self._parsed = [pyrage.x25519.Identity.from_str(key) for key in self.keys]
        except pyrage.IdentityError as error:
            reason = _("A line in it is not one that this sovctl can read.")
            raise IdentityUnusable(path=path, reason=reason) from error
        if not self.keys:
            raise IdentityUnusable(path=path, reason=_("It has no such line."))

    def decrypt(self, pieces: Iterable[bytes | memoryview], size: int) -> Pieces:
        """Decrypt an age file of ``size`` bytes that comes in ``pieces``.

        Raises :class:`AgeFailed`, and whatever ``pieces`` raises.
        """
        if size >= IN_PROCESS:
            yield from _filtered("decrypt", self.keys, pieces)
            return
        data = b"".join(bytes(piece) for piece in pieces)  # a piece is good until the next
        try:
            yield pyrage.decrypt(data, self._parsed)
        except pyrage.DecryptError as error:
            raise AgeFailed(str(error)) from error


def check_recipients(recipients: Sequence[str]) -> None:
    """Raise :class:`RecipientInvalid` unless each is an X25519 recipient (``age1…``)."""
    for recipient in recipients:
        try:
            pyrage.x25519.Recipient.from_str(recipient)
        except pyrage.RecipientError as error:
            raise RecipientInvalid(recipient=recipient) from error


def encrypt_small(data: bytes, recipients: Sequence[str]) -> bytes:
    """Encrypt a few bytes, here."""
    parsed = [pyrage.x25519.Recipient.from_str(recipient) for recipient in recipients]
    return bytes(pyrage.encrypt(data, parsed))


def encrypt(pieces: Iterable[bytes | memoryview], recipients: Sequence[str]) -> Pieces:
    """Encrypt a stream of any length. Raises :class:`AgeFailed`, and what ``pieces`` raises."""
    yield from _filtered("encrypt", recipients, pieces)


def _filtered(mode: str, keys: Sequence[str], pieces: Iterable[bytes | memoryview]) -> Pieces:
    """Run ``pieces`` through a process of its own; see the module's first lines."""
    secret, write_secret = os.pipe()
    os.write(write_secret, "\n".join(keys).encode())
    os.close(write_secret)
    with tempfile.TemporaryFile() as complaint:
        try:
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", _FILTER, mode, str(secret)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaint,
                pass_fds=[secret],
                env={"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "LC_ALL": "C.UTF-8"},
            )
        finally:
            os.close(secret)
        feeder = _Feeder(process, pieces)
        try:
            assert process.stdout is not None
            while data := process.stdout.read(_PIECE):
                yield data
            feeder.join()
            failed = process.wait() != 0
            if feeder.error is not None:
                raise feeder.error
            if failed:
                complaint.seek(0)
                raise AgeFailed(complaint.read(2000).decode(errors="replace"))
        finally:
            feeder.stop.set()
            process.kill()
            process.wait()
            feeder.join(_PATIENCE)
            if process.stdout is not None:
                process.stdout.close()


class _Feeder(threading.Thread):
    """Writes pieces into a filter, because it may fill its output before it took its input."""

    def __init__(
        self, process: subprocess.Popen[bytes], pieces: Iterable[bytes | memoryview]
    ) -> None:
        super().__init__(name="age-feeder", daemon=True)
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self._process = process
        self._pieces = pieces
        self.start()

    def run(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            for piece in self._pieces:
                if self.stop.is_set():
                    break
                pipe.write(piece)
        except BrokenPipeError:
            pass  # the filter gave up, and says why
        except BaseException as error:  # noqa: BLE001 - handed to the thread that reads
            self.error = error
            # Ending the input here would look like a truncated file.
            self._process.kill()
        finally:
            with suppress(BrokenPipeError):
                pipe.close()


# --- a whole bundle as one age file -------------------------------------------------------------


def is_age(medium: Medium) -> bool:
    """Whether the file begins like an age file."""
    if medium.size < len(MAGIC):
        return False
    start = bytearray(len(MAGIC))
    try:
        medium.read_into(memoryview(start), 0)
    except ReadFailed:
        return False
    return start == MAGIC


class AgeMedium:
    """A bundle that is one age file, decrypted while it is read.

    Forwards only: going back by more than one piece starts from the beginning again. The size of
    what is inside follows from the size outside, so truncation is seen before anything is read.
    """

    sequential = True

    def __init__(self, raw: Medium, identity: Path | None) -> None:
        if identity is None:
            raise IdentityNeeded(bundle=raw.path)
        self.path = raw.path
        self.statement = raw.statement
        self._raw = raw
        self._identities = Identities(identity)
        self.size = _plain_size(raw)
        self._pieces: Pieces | None = None
        self._piece = b""
        self._start = 0  # where ``_piece`` lies in the bundle

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; see :class:`~appliance.bundle.medium.Medium`."""
        if offset + len(buffer) > self.size:
            raise EndReached(self.size, "the encrypted file ends")
        done = 0
        while done < len(buffer):
            piece = self._piece_at(offset + done)
            inside = offset + done - self._start
            count = min(len(buffer) - done, len(piece) - inside)
            buffer[done : done + count] = piece[inside : inside + count]
            done += count
        if offset + done == self.size:
            self._finish()

    def expect(self, offset: int, size: int) -> None:
        """Nothing to say: it reads ahead by itself."""

    def close(self) -> None:
        """End the filter and let go of the file."""
        self._restart()
        self._raw.close()

    def _piece_at(self, offset: int) -> bytes:
        if offset < self._start:
            self._restart()
        while offset >= self._start + len(self._piece):
            if self._pieces is None:
                self._pieces = self._identities.decrypt(self._cipher(), self._raw.size)
            self._start += len(self._piece)
            self._piece = self._next() or b""
            if not self._piece:
                raise EndReached(self._start, "the encrypted file ends")
        return self._piece

    def _next(self) -> bytes | None:
        assert self._pieces is not None
        try:
            return next(self._pieces, None)
        except AgeFailed as error:
            if error.wrong_identity:
                raise IdentityRefused(bundle=self.path, path=self._identities.path) from error
            reason = "what is encrypted there is not authentic"
            member = f"its bytes from {self._start + len(self._piece)} on"
            raise BundleTampered(bundle=self.path, member=member, reason=reason) from error

    def _finish(self) -> None:
        """Have the last chunk's tag checked: it says that this is the end."""
        if self._start + len(self._piece) == self.size and self._pieces is not None:
            extra = self._next()
            if extra:
                raise BundleTampered(bundle=self.path, member="its end", reason="it goes on")

    def _restart(self) -> None:
        if self._pieces is not None:
            self._pieces.close()
        self._pieces, self._piece, self._start = None, b"", 0

    def _cipher(self) -> Iterator[bytes]:
        offset = 0
        while offset < self._raw.size:
            piece = bytearray(min(_PIECE, self._raw.size - offset))
            self._raw.expect(offset, len(piece))
            self._raw.read_into(memoryview(piece), offset)
            yield bytes(piece)
            offset += len(piece)


def _plain_size(raw: Medium) -> int:
    """Bytes inside an age file, from its size and the length of its header (age, section 2.3)."""
    start = b""
    while (mac := start.find(b"\n--- ")) < 0 or (end := start.find(b"\n", mac + 1)) < 0:
        more = bytearray(min(4096, raw.size - len(start), _MAX_HEADER - len(start)))
        if not more:
            raise BundleTampered(bundle=raw.path, member="its age header", reason="it does not end")
        raw.read_into(memoryview(more), len(start))
        start += more
    payload = raw.size - end - 1 - _NONCE
    least = end + 1 + _NONCE + _TAG + 1  # no bundle is empty
    if raw.size < least:
        raise BundleTruncated(bundle=raw.path, expected=least, actual=raw.size)
    chunks = -(-payload // (_CHUNK + _TAG))
    return payload - chunks * _TAG
