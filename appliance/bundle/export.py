"""One model or adapter out of an installation, as a signed bundle for another site.

    exported = Exported(artefact, files, platform, created)
    made = export(exported, Path("out.tar"), repository, progress)

Its files are read where they lie (the store's blobs, an adapter's folder), hashed while they are
written, and signed with the exporting site's keys, which the other site must trust.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle import sbom
from appliance.bundle.build import Built
from appliance.bundle.format import signed_members
from appliance.bundle.writer import BundleContent, write
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest, Platform
from appliance.store.blobs import digest_of
from appliance.trust import model_signature

if TYPE_CHECKING:
    from appliance.progress import Progress
    from appliance.trust.repository import Repository


@dataclass(frozen=True)
class Exported:
    """What goes out: ``files`` maps ``sha256:<hex>`` to the file that holds it."""

    artefact: Artefact
    files: Mapping[str, Path]
    platform: Platform
    created: str


def export(exported: Exported, out: Path, repository: Repository, progress: Progress) -> Built:
    """Sign and write the bundle of one artefact to ``out``.

    Raises ``BlobMissing`` if a file is not what the manifest says, and what the keys raise.
    """
    artefact = exported.artefact
    manifest = BundleManifest(
        schema_version=1,
        name=artefact.name,
        version=artefact.version,
        created=exported.created,
        platform=exported.platform,
        artefacts=(artefact,),
    )
    bill = sbom.bill_of(manifest, exported.files)
    signatures = {}
    if artefact.kind == "model":
        files = {file.path: file.hex for file in artefact.files}
        signatures[artefact.name] = model_signature.sign(
            files, repository.model_key(), artefact.name
        )
    members = signed_members(manifest, bill, signatures)
    metadata = repository.sign(manifest.name, members)
    content = BundleContent(manifest, bill, signatures, metadata)
    size = write(out, content, exported.files.__getitem__, progress)
    return Built(out, manifest, size, 0.0)


def files_of(folder: Path) -> tuple[tuple[BlobRef, ...], dict[str, Path]]:
    """The plain files of a folder, as an artefact's files and by digest."""
    refs = []
    where = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        digest, size = digest_of(path)
        refs.append(BlobRef(path=path.relative_to(folder).as_posix(), digest=digest, size=size))
        where[digest] = path
    return tuple(refs), where
