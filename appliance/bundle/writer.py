"""Write a bundle: the canonical tar of a content, from blobs that lie in a store.

    members = signed_members(manifest, sbom, signatures)
    metadata = repository.sign(manifest.name, members, artefacts=manifest.artefacts)
    write(path, BundleContent(manifest, sbom, signatures, metadata), store.path, progress)

The same content always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from appliance.bundle.format import (
    END,
    Place,
    front_order,
    header_of,
    metadata_members,
    padding,
    place,
    signed_members,
    size_limit,
)
from appliance.errors import BlobMissing
from appliance.i18n import _
from appliance.manifests.bundle import BundleManifest
from appliance.store.blobs import sync_folder

if TYPE_CHECKING:
    from appliance.progress import Progress, Task

_CHUNK = 4 << 20


@dataclass(frozen=True)
class BundleContent:
    """All of a bundle but its blobs.

    ``signatures`` maps a model's name to its OMS bundle; ``metadata`` is what
    ``trust.repository.Repository.sign`` returned (TUF file name → bytes); ``others`` are further
    members that it signed and ``statements`` those that are signed by themselves, by member name.
    """

    manifest: BundleManifest
    sbom: bytes
    signatures: Mapping[str, bytes] = field(default_factory=dict)
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    others: Mapping[str, bytes] = field(default_factory=dict)
    statements: Mapping[str, bytes] = field(default_factory=dict)

    def members(self) -> dict[str, bytes]:
        """Everything before the blobs, in order: name → bytes."""
        signed = signed_members(self.manifest, self.sbom, self.signatures, self.others)
        members = {**metadata_members(self.metadata), **signed, **self.statements}
        return {name: members[name] for name in sorted(members, key=front_order)}


def write(
    path: Path, content: BundleContent, locate: Callable[[str], Path], progress: Progress
) -> int:
    """Write the bundle to ``path`` (atomically, replacing what was there); return its bytes.

    ``locate`` maps ``sha256:<hex>`` to the file that holds it (``Store.path``). Each blob is hashed
    while it is copied: :class:`BlobMissing` if one is absent or is not what the manifest says.
    """
    members = content.members()
    for name, data in members.items():
        if len(data) > size_limit(name):
            raise ValueError(f"{name} has {len(data)} bytes, more than a reader takes")
    blobs = content.manifest.blobs()
    layout = place([(name, len(data)) for name, data in members.items()], blobs)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with (
            partial.open("wb") as out,
            progress.task(_("Writing the bundle"), layout.size, "bytes") as task,
        ):
            for member in layout.front:
                data = members[member.name]
                out.write(header_of(member) + data + bytes(padding(member.size)))
                task.advance(member.end - member.header)
            for member, blob in zip(layout.blobs, blobs, strict=True):
                out.write(header_of(member))
                _copy(locate(blob.digest), member, out, path, task)
                out.write(bytes(padding(member.size)))
            out.write(END)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return layout.size


def _copy(source: Path, member: Place, out: BinaryIO, bundle: Path, task: Task) -> None:
    expected = member.name.rpartition("/")[2]
    digest = hashlib.sha256()
    size = 0
    try:
        with source.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                out.write(chunk)
                task.advance(len(chunk))
    except FileNotFoundError as error:
        raise BlobMissing(bundle=bundle, blob=source, reason="The file is missing.") from error
    if size != member.size or digest.hexdigest() != expected:
        reason = "Its content is not what its digest says."
        raise BlobMissing(bundle=bundle, blob=source, reason=reason)
