"""Encrypt a bundle to recipients, and decrypt it again. See :mod:`appliance.bundle.age`.

*Readable*: the front stays in clear, each blob becomes an age file of its own, and a statement
signs the digest of each. Who carries or audits the bundle can check every byte without an identity.

*Hidden*: the whole bundle becomes one ordinary age file.

    sealer = Sealer(("age1…",), repository)
    encrypt_readable(path, content_of(bundle), blobs_of(bundle), sealer, progress)
    encrypt_hidden(Path("b.tar"), Path("b.tar.age"), recipients, progress)

Encryption is not repeatable: age draws a fresh key each time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle import age
from appliance.bundle.copying import CHUNK, Copied, decrypt_whole, whole_file
from appliance.bundle.delta import blobs_of, content_of
from appliance.bundle.format import ENCRYPTION
from appliance.bundle.opening import Opening, open_raw
from appliance.bundle.reader import BundleReader
from appliance.bundle.writer import BundleContent, Chunks, write_from
from appliance.errors import (
    BlobMissing,
    EncryptionFailed,
    IdentityNeeded,
    IdentityRefused,
    NotEncrypted,
)
from appliance.i18n import _
from appliance.manifests.bundle import BlobRef
from appliance.manifests.transport import EncryptedBlob, EncryptionStatement
from appliance.store.blobs import sync_folder
from appliance.store.space import Files, full_disk, require

if TYPE_CHECKING:
    from appliance.progress import Progress, Task
    from appliance.trust.repository import Repository


@dataclass(frozen=True)
class Sealer:
    """To whom (``age1…``) blobs are encrypted, and who signs which age file carries which blob."""

    recipients: tuple[str, ...]
    repository: Repository


def encrypt_readable(
    out: Path, content: BundleContent, chunks: Chunks, sealer: Sealer, progress: Progress
) -> int:
    """Write ``content`` to ``out`` with each blob encrypted; return the file's bytes.

    The age files lie beside ``out`` until they are in it, each removed as it goes in. ``chunks``
    gives the blobs in clear, and is hashed. Raises :class:`RecipientInvalid`, :class:`DiskFull`,
    :class:`BlobMissing`, :class:`EncryptionFailed`.
    """
    age.check_recipients(sealer.recipients)
    carried = tuple(content.cargo().blob_of.values())
    needed = sum(blob.size for blob in carried)
    largest = max((blob.size for blob in carried), default=0)
    with (
        _room(out, [*(blob.size for blob in carried), largest]),
        _staging(out) as folder,
        progress.task(_("Encrypting"), needed, "bytes") as task,
        ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="age") as pool,
    ):

        def one(blob: BlobRef) -> EncryptedBlob:
            clear = _counted(chunks(blob.digest), task)
            return _encrypt_blob(folder / blob.hex, blob, clear, sealer.recipients)

        blobs = tuple(pool.map(one, carried))
        statement = EncryptionStatement(bundle=content.manifest.digest, blobs=blobs)
        envelope = sealer.repository.statement(statement.canonical(), EncryptionStatement.TYPE)
        sealed = replace(content, statements={**content.statements, ENCRYPTION: envelope})
        return write_from(out, sealed, _moving(folder), progress)


def _counted(chunks: Iterator[bytes], task: Task) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        task.advance(len(chunk))


def _encrypt_blob(
    staged: Path, blob: BlobRef, clear: Iterator[bytes], recipients: Sequence[str]
) -> EncryptedBlob:
    inside, outside = hashlib.sha256(), hashlib.sha256()

    def hashed() -> Iterator[bytes]:
        for chunk in clear:
            inside.update(chunk)
            yield chunk

    size = 0
    try:
        with staged.open("xb") as file:
            for piece in _encrypted(blob, hashed(), recipients):
                outside.update(piece)
                size += len(piece)
                file.write(piece)
    except FileNotFoundError as error:
        reason = "The file is missing."
        raise BlobMissing(bundle=staged, blob=error.filename, reason=reason) from error
    except age.AgeFailed as error:
        raise EncryptionFailed(path=staged, reason=str(error)) from error
    if not hmac.compare_digest(inside.hexdigest(), blob.hex):
        reason = "Its content is not what its digest says."
        raise BlobMissing(bundle=staged, blob=blob.digest, reason=reason)
    return EncryptedBlob(blob=blob.hex, cipher=outside.hexdigest(), size=size)


def _encrypted(blob: BlobRef, clear: Iterator[bytes], recipients: Sequence[str]) -> Iterator[bytes]:
    if blob.size >= age.IN_PROCESS:
        return age.encrypt(clear, recipients)
    return iter([age.encrypt_small(b"".join(clear), recipients)])


def _moving(folder: Path) -> Chunks:
    """The staged age files, each removed once it was read."""

    def read(digest: str) -> Iterator[bytes]:
        path = folder / digest.removeprefix("sha256:")
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                yield chunk
        path.unlink()

    return read


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    folder = out.absolute().with_name(f".{out.name}.age")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def encrypt_hidden(path: Path, out: Path, recipients: Sequence[str], progress: Progress) -> int:
    """Encrypt the bundle at ``path`` as a whole, checking it on the way; return the bytes written.

    Raises as :func:`encrypt_readable`, and ``BundleTampered`` for a bundle that is damaged.
    """
    age.check_recipients(recipients)
    with whole_file(path) as source:
        if source.segments and source.segments[0].hex is None:
            raise NotEncrypted(bundle=path, state=_("encrypted already"))
        size = source.medium.size
        check = source.check()
        partial = out.absolute().with_name(f".{out.name}.partial")
        with (
            _room(out, [size + size // 1000]),
            progress.task(_("Encrypting"), size, "bytes") as task,
        ):

            def plain() -> Iterator[memoryview]:
                buffer = memoryview(bytearray(CHUNK))
                for offset in range(0, size, CHUNK):
                    piece = buffer[: min(CHUNK, size - offset)]
                    source.medium.expect(offset, len(piece))
                    source.read_into(piece, offset, path.name)
                    check.feed(piece)
                    yield piece
                    task.advance(len(piece))

            try:
                with partial.open("wb") as file:
                    for piece in age.encrypt(plain(), recipients):
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                written = partial.stat().st_size
                partial.replace(out)
                sync_folder(out.absolute().parent)
            except age.AgeFailed as error:
                raise EncryptionFailed(path=path, reason=str(error)) from error
            finally:
                partial.unlink(missing_ok=True)
        return written


def encrypt(path: Path, out: Path, sealer: Sealer, progress: Progress) -> int:
    """Encrypt the blobs of the bundle at ``path``; its front stays readable."""
    age.check_recipients(sealer.recipients)
    with _raw_is_clear(path), BundleReader(path) as bundle:
        if bundle.encryption is not None:
            raise NotEncrypted(bundle=path, state=_("encrypted already"))
        bundle.check_size()
        return encrypt_readable(out, content_of(bundle), blobs_of(bundle), sealer, progress)


def seal_hidden(
    out: Path, content: BundleContent, chunks: Chunks, recipients: Sequence[str], progress: Progress
) -> int:
    """Write a bundle that is built as one age file; return its bytes."""
    age.check_recipients(recipients)
    with _staging(out) as folder:
        write_from(folder / out.name, content, chunks, progress)
        return encrypt_hidden(folder / out.name, out, recipients, progress)


@contextmanager
def _raw_is_clear(path: Path) -> Iterator[None]:
    medium = open_raw(path)
    try:
        if age.is_age(medium):
            raise NotEncrypted(bundle=path, state=_("encrypted already"))
    finally:
        medium.close()
    yield


def decrypt(path: Path, out: Path, progress: Progress, opening: Opening) -> Copied:
    """Write the bundle at ``path`` in clear, checking every byte.

    Raises :class:`NotEncrypted`, :class:`IdentityNeeded`, :class:`IdentityRefused`, and what
    opening and copying raise.
    """
    raw = open_raw(path, opening)
    try:
        hidden = age.is_age(raw)
    finally:
        raw.close()
    if hidden:
        return decrypt_whole(path, out, progress, opening)
    with BundleReader(path, opening) as bundle:
        if bundle.encryption is None:
            raise NotEncrypted(bundle=path, state=_("in clear already"))
        if opening.identity is None:
            raise IdentityNeeded(bundle=path)
        bundle.check_size()
        identities = age.Identities(opening.identity)
        with _room(out, [sum(blob.size for blob in bundle.cargo.blob_of.values())]):
            size = write_from(out, content_of(bundle), _decrypted(bundle, identities), progress)
        return Copied(out, size, 0, size)


def _decrypted(bundle: BundleReader, identities: age.Identities) -> Chunks:
    """The blobs of an encrypted bundle in clear."""
    cipher = blobs_of(bundle)
    places = {bundle.blob_of[place.name].digest: place for place in bundle.layout.blobs}

    def read(digest: str) -> Iterator[bytes]:
        place = places[digest]

        def signed() -> Iterator[bytes]:
            seen = hashlib.sha256()
            for chunk in cipher(digest):
                seen.update(chunk)
                yield chunk
            if seen.hexdigest() != place.hex:
                raise bundle.tampered(place, "its digest is not the signed one")

        try:
            yield from identities.decrypt(signed(), place.size)
        except age.AgeFailed as error:
            if error.wrong_identity:
                raise IdentityRefused(bundle=bundle.path, path=identities.path) from error
            raise bundle.tampered(place, "it cannot be decrypted") from error

    return read


@contextmanager
def _room(out: Path, sizes: Sequence[int]) -> Iterator[None]:
    """Raise :class:`DiskFull` if files of ``sizes`` do not fit beside ``out``, or no longer fit."""
    folder = out.absolute().parent
    require(
        [Files(folder, sizes)],
        _("What is encrypted or decrypted is written beside its final name, then renamed."),
    )
    reason = _("The disk filled up meanwhile; what was written is gone.")
    with full_disk(folder, sum(sizes), reason):
        yield
