"""Take a bundle in: judge its signatures, then hash every blob once while writing it to the store.

    verifier = Verifier(load_state(home.trust).pinned_to(fingerprint))
    loaded = load(path, store, verifier, progress)       # or verify(path, verifier, progress)
    save_state(home.trust, loaded.verified.state)        # ``load`` leaves trust to its caller
    release = Releases(home).materialise(loaded.content, store, progress)

Order of events, which is also the order of refusals: form, signatures, manifest, model signatures,
size, free space, and only then bytes. Blobs go by offset to several threads; each thread reads into
one buffer, hashes it and writes it, so memory does not grow with the bundle. Whatever stops it, the
store holds only whole blobs, and the next run skips them.
"""

from __future__ import annotations

import hashlib
import hmac
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle.format import Place
from appliance.bundle.reader import BundleReader
from appliance.errors import BundleTampered, WrongPlatform
from appliance.i18n import _
from appliance.manifests.bundle import BundleManifest, Platform
from appliance.store.blobs import BlobMismatch, BlobWriter, Store
from appliance.store.releases import ReleaseContent
from appliance.store.space import require
from appliance.trust.keys import canonical_public_pem
from appliance.trust.model_signature import ModelSignatureInvalid
from appliance.trust.model_signature import verify as verify_model
from appliance.trust.verifier import Verified, Verifier

if TYPE_CHECKING:
    from appliance.progress import Progress, Task

BUFFER = 4 << 20  # bytes a thread reads, hashes and writes at a time
MAX_THREADS = 16
RESERVE = 256 << 20  # bytes left free for the release's folders, the registry and logs


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle whose every blob is in the store (after ``load``) or was hashed (after ``verify``).

    ``written`` and ``skipped`` are bytes of blobs that were new and that were already there.
    """

    content: ReleaseContent
    verified: Verified
    written: int
    skipped: int

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
    verified = verifier.verify(bundle.path, bundle.metadata, bundle.members)
    manifest = bundle.manifest
    if manifest.name != verified.bundle:
        raise BundleTampered(
            bundle=bundle.path,
            member="bundle.json",
            reason=f"it is called {manifest.name}, and {verified.bundle} was signed",
        )
    keys = _check_model_signatures(bundle, manifest, verified)
    bundle.check_size()
    bundle.check_end()
    content = ReleaseContent(
        manifest, bundle.sbom, bundle.metadata, bundle.signatures, keys, bundle.others
    )
    return content, verified


def verify(path: Path, verifier: Verifier, progress: Progress) -> LoadedBundle:
    """Check every byte of a bundle without writing any. Raises as :func:`load` does."""
    with BundleReader(path) as bundle:
        content, verified = judge(bundle, verifier)
        total = sum(member.size for member in bundle.layout.blobs)
        with progress.task(_("Verifying"), total, "bytes") as task:
            _Stream(bundle, _HashOnly, task).run(bundle.layout.blobs)
        return LoadedBundle(content, verified, written=0, skipped=total)


def load(path: Path, store: Store, verifier: Verifier, progress: Progress) -> LoadedBundle:
    """Verify a bundle and put its blobs into ``store``, reading each byte once.

    Raises :class:`NotABundle`, :class:`BundleTruncated`, :class:`BundleTampered` (naming the
    member), :class:`BundleUnsigned`, :class:`BundleUntrusted`, :class:`BundleExpired`,
    :class:`BundleRolledBack`, :class:`BundleTooNew`, :class:`DiskFull`, :class:`FileUnreadable`.
    """
    with BundleReader(path) as bundle:
        content, verified = judge(bundle, verifier)
        store.clean()
        missing: list[Place] = []
        present: list[Place] = []
        for member in bundle.layout.blobs:
            here = store.has(_digest(member), member.size)
            (present if here else missing).append(member)
        needed = sum(member.size for member in missing)
        total = sum(member.size for member in bundle.layout.blobs)
        new = [(_digest(member), member.size) for member in missing]
        reason = _("The bundle's blobs are new here, and some room must stay for running it.")
        require([store.files_of(new, RESERVE)], reason)
        for member in present:
            bundle.check_frame(member)
        with store.batch(), progress.task(_("Verifying and loading"), needed, "bytes") as task:
            _Stream(bundle, lambda m: store.writer(_digest(m), m.size), task).run(missing)
        return LoadedBundle(content, verified, written=needed, skipped=total - needed)


def _digest(member: Place) -> str:
    return "sha256:" + member.name.rpartition("/")[2]


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


class _HashOnly:
    """A sink that hashes a blob and keeps nothing; the other sink is ``BlobWriter``."""

    def __init__(self, member: Place) -> None:
        self._expected = member.name.rpartition("/")[2]
        self._hash = hashlib.sha256()

    def __enter__(self) -> _HashOnly:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, data: memoryview) -> None:
        self._hash.update(data)

    def commit(self) -> None:
        if not hmac.compare_digest(self._hash.hexdigest(), self._expected):
            raise BlobMismatch(self._expected)


_OpenSink = Callable[[Place], BlobWriter] | Callable[[Place], _HashOnly]


class _Stream:
    """Sends members' bytes to sinks, several members at a time, the largest first."""

    def __init__(self, bundle: BundleReader, open_sink: _OpenSink, task: Task) -> None:
        self._bundle = bundle
        self._open_sink = open_sink
        self._task = task
        self._stop = threading.Event()
        self._local = threading.local()

    def run(self, members: Sequence[Place]) -> None:
        """Do all of ``members``. The first failure stops the rest at their next buffer."""
        cores = len(os.sched_getaffinity(0))
        threads = max(1, min(MAX_THREADS, 2 * cores, len(members)))
        largest_first = sorted(members, key=lambda m: -m.size)
        with ThreadPoolExecutor(threads, thread_name_prefix="blob") as pool:
            jobs = [pool.submit(self._take, member) for member in largest_first]
            try:
                wait(jobs, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
        for job in jobs:
            job.result()

    def _take(self, member: Place) -> None:
        if self._stop.is_set():
            return
        try:
            self._bundle.check_frame(member)
            with self._open_sink(member) as sink:
                self._copy(member, sink)
        except BaseException:
            self._stop.set()
            raise

    def _copy(self, member: Place, sink: BlobWriter | _HashOnly) -> None:
        buffer = self._buffer()
        self._bundle.expect(member.data, member.size)
        done = member.size if self._clone(member, sink) else 0
        while done < member.size:
            if self._stop.is_set():
                return
            part = buffer[: min(BUFFER, member.size - done)]
            self._bundle.read_into(part, member.data + done)
            sink.write(part)
            done += len(part)
            self._task.advance(len(part))
        try:
            sink.commit()
        except BlobMismatch as error:
            raise self._bundle.tampered(member, "its digest is not the signed one") from error

    def _clone(self, member: Place, sink: BlobWriter | _HashOnly) -> bool:
        """Whether the store could share the bundle's own blocks; see ``BlobWriter.clone_from``."""
        source = self._bundle.descriptor
        if source is None or not isinstance(sink, BlobWriter):
            return False

        def proceed(count: int) -> bool:
            self._task.advance(count)
            return not self._stop.is_set()

        return sink.clone_from(source, member.data, proceed)

    def _buffer(self) -> memoryview:
        """This thread's page-aligned buffer."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(mmap.mmap(-1, BUFFER))
        buffer: memoryview = self._local.buffer
        return buffer
