"""Delta bundles: all of a bundle but the blobs that an older one has.

    content = leave_out(content, base, repository)       # then ``writer.write`` as ever
    made = delta(Path("2.0.tar"), base, Path("2.0-from-1.0.tar"), repository, progress)

The manifest, the SBOM and the TUF metadata are the full bundle's, so both make the same release. A
statement of its own, signed by the targets role, names the base and lists what is left out; loading
wants all of that in the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle.format import DELTA, ENCRYPTION
from appliance.bundle.opening import PLAIN, Opening
from appliance.bundle.reader import BundleReader
from appliance.bundle.writer import BundleContent, Chunks, write_from
from appliance.errors import DeltaBaseIsTarget, FileUnreadable, NotABundle, NotEncrypted
from appliance.i18n import _
from appliance.manifests.bundle import BundleManifest
from appliance.manifests.transport import BundleName, DeltaStatement

if TYPE_CHECKING:
    from appliance.progress import Progress
    from appliance.trust.repository import Repository


_CHUNK = 4 << 20


@dataclass(frozen=True)
class DeltaMade:
    """A delta that was written: ``size`` bytes, without ``left_out`` blobs of ``saved`` bytes."""

    path: Path
    manifest: BundleManifest
    base: BundleName
    size: int
    left_out: int
    saved: int


def name_of(manifest: BundleManifest) -> BundleName:
    """What others call a bundle by."""
    return BundleName(name=manifest.name, version=manifest.version, digest=manifest.digest)


def read_base(path: Path, opening: Opening = PLAIN) -> BundleManifest:
    """The manifest of a base: a bundle, or just its ``bundle.json``. Reads no blob.

    It need not be trusted: what is left out because of it is wanted by digest where it is loaded.
    """
    try:
        with path.open("rb") as file:
            text = file.read(1) == b"{"
            data = b"{" + file.read(1 << 26) if text else b""
    except OSError as error:
        raise FileUnreadable(path=path, reason=error.strerror or str(error)) from error
    if not text:
        with BundleReader(path, opening) as bundle:
            return bundle.manifest
    try:
        return BundleManifest.parse(data)
    except ValueError as error:
        reason = _("It is not a bundle.json: {reason}.").format(reason=str(error).splitlines()[0])
        raise NotABundle(bundle=path, reason=reason) from error


def plan_delta(manifest: BundleManifest, base: BundleManifest) -> DeltaStatement:
    """What a delta from ``base`` leaves out. Pure; raises :class:`DeltaBaseIsTarget`."""
    if manifest.digest == base.digest:
        raise DeltaBaseIsTarget(base=base.release_id)
    there = {blob.digest for blob in base.blobs()}
    left_out = tuple(blob.hex for blob in manifest.blobs() if blob.digest in there)
    return DeltaStatement(bundle=manifest.digest, base=name_of(base), left_out=left_out)


def leave_out(
    content: BundleContent, base: BundleManifest, repository: Repository
) -> BundleContent:
    """``content`` as a delta from ``base``."""
    statement = plan_delta(content.manifest, base)
    envelope = repository.statement(statement.canonical(), DeltaStatement.TYPE)
    return replace(content, statements={**content.statements, DELTA: envelope})


def delta(
    full: Path,
    base: BundleManifest,
    out: Path,
    repository: Repository,
    progress: Progress,
) -> DeltaMade:
    """Write the delta from ``base`` to the bundle at ``full``, which is a full one in clear."""
    with BundleReader(full) as bundle:
        if bundle.encryption is not None:
            raise NotEncrypted(bundle=full, state=_("encrypted"))
        if bundle.delta is not None:
            raise NotABundle(bundle=full, reason=_("It is a delta itself; name the full bundle."))
        bundle.check_size()
        content = leave_out(content_of(bundle), base, repository)
        size = write_from(out, content, blobs_of(bundle), progress)
        left = set(plan_delta(bundle.manifest, base).left_out)
        saved = sum(blob.size for blob in bundle.manifest.blobs() if blob.hex in left)
        return DeltaMade(out, bundle.manifest, name_of(base), size, len(left), saved)


def content_of(bundle: BundleReader) -> BundleContent:
    """All of an open bundle but its blobs, as it is in clear."""
    statements = {n: data for n, data in bundle.statements.items() if n != ENCRYPTION}
    return BundleContent(
        bundle.manifest, bundle.sbom, bundle.signatures, bundle.metadata, bundle.others, statements
    )


def blobs_of(bundle: BundleReader) -> Chunks:
    """The blobs of an open bundle, by digest, as they lie in it."""
    places = {bundle.blob_of[place.name].digest: place for place in bundle.layout.blobs}

    def read(digest: str) -> Iterator[bytes]:
        place = places[digest]
        bundle.expect(place.data, place.size)
        for offset in range(0, place.size, _CHUNK):
            yield bundle.read(place.data + offset, min(_CHUNK, place.size - offset))

    return read
