"""Take a bundle in: judge its signatures, then hash every blob once while writing it to the store.

    verifier = Verifier(load_state(home.trust).pinned_to(fingerprint))
    loaded = load(path, store, verifier, progress)       # or verify(path, verifier, progress)
    save_state(home.trust, loaded.verified.state)        # ``load`` leaves trust to its caller
    release = Releases(home).materialise(loaded.content, store, progress)

Order of events, which is also the order of refusals: form, signatures, manifest, model signatures,
size, the base of a delta, free space, and only then bytes. Blobs go by offset to several threads;
each thread reads into one buffer, hashes it and writes it, so memory does not grow with the bundle.
A medium that is sequential is read forwards by one thread. Whatever stops it, the store holds only
whole blobs, and the next run skips them, at the price of one ``stat`` each.

An encrypted blob is hashed twice on its way: as the age file that was signed, and as what is in it.
"""

from __future__ import annotations

import hashlib
import hmac
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle import provenance
from appliance.bundle.age import AgeFailed, Identities
from appliance.bundle.format import PROVENANCE, Place, upstream_members
from appliance.bundle.lanes import lanes, run
from appliance.bundle.opening import PLAIN, Opening
from appliance.bundle.reader import BundleReader
from appliance.errors import (
    BaseMissing,
    BundleExpired,
    BundleTampered,
    IdentityNeeded,
    IdentityRefused,
    WrongPlatform,
)
from appliance.i18n import _
from appliance.manifests.bundle import BundleManifest, Platform
from appliance.store.blobs import BlobMismatch, BlobWriter, Store
from appliance.store.releases import ReleaseContent
from appliance.store.space import require
from appliance.trust.keys import canonical_public_pem
from appliance.trust.model_signature import (
    ModelSignatureExpired,
    ModelSignatureInvalid,
    verify_upstream,
)
from appliance.trust.model_signature import verify as verify_model
from appliance.trust.verifier import Verified, Verifier

if TYPE_CHECKING:
    from appliance.progress import Progress, Task

BUFFER = 4 << 20  # bytes a thread reads, hashes and writes at a time
RESERVE = 256 << 20  # bytes left free for the release's folders, the registry and logs


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle whose every blob is in the store (after ``load``) or was hashed (after ``verify``).

    ``written`` and ``skipped`` are bytes of blobs that were new and that were already there;
    ``size`` is that of the bundle, joined and, if it was hidden, decrypted.
    """

    content: ReleaseContent
    verified: Verified
    written: int
    skipped: int
    size: int

    @property
    def manifest(self) -> BundleManifest:
        """What the bundle holds."""
        return self.content.manifest


def require_platform(manifest: BundleManifest, actual: Platform) -> None:
    """Raise :class:`WrongPlatform` unless the bundle's runtime runs on ``actual``."""
    if manifest.platform != actual:
        raise WrongPlatform(wanted=manifest.platform, actual=actual)


def judge(bundle: BundleReader, verifier: Verifier) -> tuple[ReleaseContent, Verified]:
    """Everything that can be known without reading a blob: form, signatures, manifest, size."""
    verified = verifier.verify(
        bundle.path, bundle.metadata, bundle.members, lambda: bundle.manifest
    )
    manifest = bundle.manifest
    bundle.check_statements(verified)
    if manifest.name != verified.bundle:
        raise BundleTampered(
            bundle=bundle.path,
            member="bundle.json",
            reason=f"it is called {manifest.name}, and {verified.bundle} was signed",
        )
    keys = _check_model_signatures(bundle, manifest, verified)
    verified = _check_upstream_signatures(bundle, manifest, verified)
    _check_provenance(bundle, manifest, verified)
    bundle.check_size()
    content = ReleaseContent(
        manifest, bundle.sbom, bundle.metadata, bundle.signatures, keys, bundle.others
    )
    return content, verified


def verify(
    path: Path, verifier: Verifier, progress: Progress, opening: Opening = PLAIN
) -> LoadedBundle:
    """Check every byte of a bundle without writing any. Raises as :func:`load` does.

    Of an encrypted bundle and no identity, what is encrypted is checked as it is.
    """
    with BundleReader(path, opening) as bundle:
        content, verified = judge(bundle, verifier)
        identities = _identities(bundle, opening)
        opened = bundle.encryption is None or identities is not None
        total = sum(member.size for member in bundle.layout.blobs)

        def sink(member: Place) -> _HashOnly:
            return _HashOnly(bundle.blob_of[member.name].hex if opened else member.hex)

        with progress.task(_("Verifying"), total, "bytes") as task:
            _Stream(bundle, sink, task, identities).run(bundle.layout.blobs)
        bundle.check_end()
        return LoadedBundle(content, verified, written=0, skipped=total, size=bundle.size)


def load(
    path: Path, store: Store, verifier: Verifier, progress: Progress, opening: Opening = PLAIN
) -> LoadedBundle:
    """Verify a bundle and put its blobs into ``store``, reading each byte once.

    Raises :class:`NotABundle`, :class:`BundleTruncated`, :class:`BundleTampered` (naming the
    member), :class:`BundleUnsigned`, :class:`BundleUntrusted`, :class:`BundleExpired`,
    :class:`BundleRolledBack`, :class:`BundleTooNew`, :class:`BaseMissing`, :class:`DiskFull`,
    :class:`FileUnreadable`, :class:`MediumFailed`, :class:`PartMissing`, :class:`PartRefused`,
    :class:`IdentityNeeded`, :class:`IdentityRefused`.
    """
    with BundleReader(path, opening) as bundle:
        content, verified = judge(bundle, verifier)
        require_base(bundle, store)
        store.clean()
        blob_of = bundle.blob_of
        blobs = bundle.layout.blobs
        missing = [m for m in blobs if not store.has(blob_of[m.name].digest, blob_of[m.name].size)]
        needed = sum(blob_of[member.name].size for member in missing)
        total = sum(blob.size for blob in content.manifest.blobs())
        identities = _identities(bundle, opening)
        if missing and bundle.encryption is not None and identities is None:
            raise IdentityNeeded(bundle=path)
        new = [(blob_of[m.name].digest, blob_of[m.name].size) for m in missing]
        reason = _("The bundle's blobs are new here, and some room must stay for running it.")
        require([store.files_of(new, RESERVE)], reason)
        size = sum(member.size for member in missing)
        with store.batch(), progress.task(_("Verifying and loading"), size, "bytes") as task:

            def sink(member: Place) -> BlobWriter:
                blob = blob_of[member.name]
                return store.writer(blob.digest, blob.size)

            _Stream(bundle, sink, task, identities).run(missing)
        # What is not needed is not read: of parts on several disks, the last may stay in its box.
        if not bundle.sequential or missing[-1:] == list(blobs[-1:]):
            bundle.check_end()
        skipped = total - needed
        return LoadedBundle(content, verified, needed, skipped, bundle.size)


def require_base(bundle: BundleReader, store: Store) -> None:
    """Raise :class:`BaseMissing` unless ``store`` has every blob that a delta leaves out."""
    if bundle.delta is None:
        return
    lacking = [blob for blob in bundle.left_out if not store.has(blob.digest, blob.size)]
    if lacking:
        base = bundle.delta.base
        raise BaseMissing(
            bundle=bundle.path, base=base.release_id, digest=base.digest, count=len(lacking)
        )


def _identities(bundle: BundleReader, opening: Opening) -> Identities | None:
    """Who decrypts the blobs, where they are encrypted one by one."""
    if bundle.encryption is None or opening.identity is None:
        return None
    return Identities(opening.identity)


def _check_model_signatures(
    bundle: BundleReader, manifest: BundleManifest, verified: Verified
) -> dict[str, bytes]:
    """Verify each model's OMS bundle under the key the targets role names; return those keys."""
    models = {artefact.name: artefact for artefact in manifest.of_kind("model")}
    keys: dict[str, bytes] = {}
    for name in sorted(models.keys() | bundle.signatures.keys()):
        member = f"signatures/{name}.oms.json"
        if name not in models or name not in bundle.signatures:
            reason = "models and model signatures do not belong together"
            raise BundleTampered(bundle=bundle.path, member=member, reason=reason)
        files = {file.path: file.hex for file in models[name].files}
        try:
            key = canonical_public_pem(verified.public_keys.get(member, b""))
            signed_name = verify_model(bundle.signatures[name], files, key)
        except (ModelSignatureInvalid, ValueError, RecursionError) as error:
            raise BundleTampered(bundle=bundle.path, member=member, reason=str(error)) from error
        if signed_name != name:
            reason = f"it is for the model {signed_name}"
            raise BundleTampered(bundle=bundle.path, member=member, reason=reason)
        keys[name] = key
    return keys


def _check_provenance(bundle: BundleReader, manifest: BundleManifest, verified: Verified) -> None:
    """Where a bundle says how it was made, that must be signed and be about this bundle."""
    data = bundle.others.get(PROVENANCE)
    if data is None:
        return
    try:
        provenance.check(data, manifest, verified.signers.keys, verified.signers.threshold)
    except provenance.ProvenanceInvalid as error:
        raise BundleTampered(bundle=bundle.path, member=PROVENANCE, reason=str(error)) from error


def _check_upstream_signatures(
    bundle: BundleReader, manifest: BundleManifest, verified: Verified
) -> Verified:
    """Verify publishers' own signatures, by whom the targets role says they must be.

    In an emergency one whose certificate ended passes as well, and is listed in ``expired``.
    """
    models = {artefact.name: artefact for artefact in manifest.of_kind("model")}
    expired = dict(verified.expired)
    for member in sorted(verified.publishers.keys() | upstream_members(bundle.members)):
        name = member.removeprefix("upstream/").removesuffix(".oms.json")
        if name not in models or member not in verified.publishers or member not in bundle.members:
            reason = "models and their publishers' signatures do not belong together"
            raise BundleTampered(bundle=bundle.path, member=member, reason=reason)
        files = {file.path: file.hex for file in models[name].files}
        publisher, data = verified.publishers[member], bundle.members[member]
        try:
            try:
                verify_upstream(data, files, publisher, verified.at)
            except ModelSignatureExpired as ended:
                if verified.emergency is None or ended.until > verified.at:
                    raise
                verify_upstream(data, files, publisher, ended.until)
                expired[member] = ended.until
        except ModelSignatureExpired as error:
            raise BundleExpired(bundle=bundle.path, reason=f"{member}: {error}.") from error
        except ModelSignatureInvalid as error:
            raise BundleTampered(bundle=bundle.path, member=member, reason=str(error)) from error
    return replace(verified, expired=expired)


class _HashOnly:
    """A sink that hashes a blob and keeps nothing; the other sink is ``BlobWriter``."""

    def __init__(self, expected: str) -> None:
        self._expected = expected
        self._hash = hashlib.sha256()

    def __enter__(self) -> _HashOnly:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)

    def commit(self) -> None:
        if not hmac.compare_digest(self._hash.hexdigest(), self._expected):
            raise BlobMismatch(self._expected)


_OpenSink = Callable[[Place], BlobWriter] | Callable[[Place], _HashOnly]


class _Stream:
    """Sends members' bytes to sinks, several members at a time, the largest first.

    With ``identities``, members that are age files are decrypted on the way.
    """

    def __init__(
        self,
        bundle: BundleReader,
        open_sink: _OpenSink,
        task: Task,
        identities: Identities | None = None,
    ) -> None:
        self._bundle = bundle
        self._open_sink = open_sink
        self._task = task
        self._identities = identities
        self._stopped: Callable[[], bool] = lambda: False
        self._local = threading.local()

    def run(self, members: Sequence[Place]) -> None:
        """Do all of ``members``. The first failure stops the rest at their next buffer."""
        if self._bundle.sequential:
            for member in sorted(members, key=lambda m: m.header):
                self._take(member)
            return

        def take(member: Place, stopped: Callable[[], bool]) -> None:
            self._stopped = stopped  # the same for every lane of this run
            self._take(member)

        run(members, take, key=lambda m: m.size, count=max(1, min(lanes(), len(members))))

    def _take(self, member: Place) -> None:
        self._bundle.check_header(member)
        with self._open_sink(member) as sink:
            self._copy(member, sink)

    def _copy(self, member: Place, sink: BlobWriter | _HashOnly) -> None:
        try:
            if not self._clone(member, sink):
                for piece in self._content(member):
                    sink.write(piece)
            if self._stopped():
                return
            self._bundle.check_padding(member)
            sink.commit()
        except BlobMismatch as error:
            raise self._bundle.tampered(member, "its digest is not the signed one") from error
        except AgeFailed as error:
            if self._stopped():
                return  # it was cut short because another failed
            if error.wrong_identity:
                assert self._identities is not None
                path = self._identities.path
                raise IdentityRefused(bundle=self._bundle.path, path=path) from error
            raise self._bundle.tampered(member, "it cannot be decrypted") from error

    def _content(self, member: Place) -> Iterator[bytes | memoryview]:
        """The bytes of the blob that ``member`` carries, in clear."""
        if self._identities is None:
            return self._pieces(member)
        return self._identities.decrypt(self._as_signed(member, self._pieces(member)), member.size)

    def _pieces(self, member: Place) -> Iterator[memoryview]:
        """The bytes of ``member``, each piece good until the next; fewer once it is to stop."""
        buffer = self._buffer()
        self._bundle.expect(member.data, member.size)
        done = 0
        while done < member.size and not self._stopped():
            part = buffer[: min(BUFFER, member.size - done)]
            self._bundle.read_into(part, member.data + done)
            yield part
            done += len(part)
            self._task.advance(len(part))

    def _as_signed(self, member: Place, pieces: Iterator[memoryview]) -> Iterator[memoryview]:
        """Pass on an age file, and refuse it at its end if it is not the one that was signed."""
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            yield piece
        if self._stopped():
            return
        if not hmac.compare_digest(digest.hexdigest(), member.hex):
            raise self._bundle.tampered(member, "its digest is not the signed one")

    def _clone(self, member: Place, sink: BlobWriter | _HashOnly) -> bool:
        """Whether the store could share the bundle's own blocks; see ``BlobWriter.clone_from``."""
        source = self._bundle.descriptor
        if source is None or self._identities is not None or not isinstance(sink, BlobWriter):
            return False

        def proceed(count: int) -> bool:
            self._task.advance(count)
            return not self._stopped()

        return sink.clone_from(source, member.data, proceed)

    def _buffer(self) -> memoryview:
        """This thread's page-aligned buffer."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(mmap.mmap(-1, BUFFER))
        buffer: memoryview = self._local.buffer
        return buffer
