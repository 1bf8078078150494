"""Write a bundle: the canonical tar of a content, from blobs that lie in a store.

    members = signed_members(manifest, sbom, signatures)
    metadata = repository.sign(manifest.name, members)
    write(path, BundleContent(manifest, sbom, signatures, metadata), store.path, progress)

The same content always gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from appliance.bundle.cargo import Cargo, cargo_of
from appliance.bundle.format import (
    END,
    Place,
    front_order,
    header_of,
    metadata_members,
    padding,
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

    def cargo(self) -> Cargo:
        """Which blobs are written, and as what."""
        return cargo_of(self.manifest, self.statements)


Chunks = Callable[[str], Iterator[bytes]]
"""The bytes of the blob ``sha256:<hex>`` as they are carried. Raises ``FileNotFoundError``."""


def write(
    path: Path, content: BundleContent, locate: Callable[[str], Path], progress: Progress
) -> int:
    """Write the bundle to ``path`` (atomically, replacing what was there); return its bytes.

    ``locate`` maps ``sha256:<hex>`` to the file that holds it (``Store.path``). Each blob is hashed
    while it is copied: :class:`BlobMissing` if one is absent or is not what the manifest says.
    """

    return write_from(path, content, files(locate), progress)


def files(locate: Callable[[str], Path]) -> Chunks:
    """Blobs that are files, at ``locate(digest)``."""

    def read(digest: str) -> Iterator[bytes]:
        with locate(digest).open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    return read


def write_from(path: Path, content: BundleContent, chunks: Chunks, progress: Progress) -> int:
    """As :func:`write`, from ``chunks``; a delta or an encrypted bundle as its statements say."""
    members = content.members()
    for name, data in members.items():
        if len(data) > size_limit(name):
            raise ValueError(f"{name} has {len(data)} bytes, more than a reader takes")
    cargo = content.cargo()
    layout = cargo.layout([(name, len(data)) for name, data in members.items()])
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
            for member in layout.blobs:
                out.write(header_of(member))
                _copy(chunks(cargo.blob_of[member.name].digest), member, out, path, task)
                out.write(bytes(padding(member.size)))
            out.write(END)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return layout.size


def _copy(chunks: Iterator[bytes], member: Place, out: BinaryIO, bundle: Path, task: Task) -> None:
    digest = hashlib.sha256()
    size = 0
    try:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            out.write(chunk)
            task.advance(len(chunk))
    except FileNotFoundError as error:
        source = error.filename
        raise BlobMissing(bundle=bundle, blob=source, reason="The file is missing.") from error
    if size != member.size or digest.hexdigest() != member.hex:
        reason = "Its content is not what its digest says."
        raise BlobMissing(bundle=bundle, blob=member.name, reason=reason)
