"""Small real bundles: real keys, real signatures, real blobs on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.bundle.format import signed_members
from appliance.bundle.writer import BundleContent, write
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest, Platform
from appliance.progress import Silent
from appliance.store.blobs import Store
from appliance.trust import model_signature
from appliance.trust.pin import TrustState
from appliance.trust.repository import Lifetimes, Repository, Threshold
from appliance.trust.verifier import Verifier

SBOM = b'{"bomFormat":"CycloneDX"}'
FILES = {
    "config.json": b"{}",
    "empty": b"",
    "weights/model.safetensors": bytes(range(256)) * 40,
    "block": b"b" * 512,
    "page": b"p" * 4096,
}


@dataclass(frozen=True)
class Supplier:
    """Someone who signs bundles, with a folder to work in."""

    folder: Path
    repository: Repository

    @classmethod
    def at(cls, folder: Path, lifetimes: Lifetimes | None = None) -> Supplier:
        keys = folder / "keys"
        return cls(folder, Repository.create_demo(keys, Threshold(2, 3), lifetimes))

    @property
    def store(self) -> Store:
        return Store(self.folder / "source")

    def verifier(self, now: datetime | None = None) -> Verifier:
        return Verifier(TrustState().pinned_to(self.repository.fingerprint), now)

    def content(
        self,
        files: Mapping[str, bytes] = FILES,
        version: str = "1.0",
        name: str = "sample",
        now: datetime | None = None,
    ) -> BundleContent:
        """A signed bundle of one model ``m`` with these files."""
        manifest = manifest_of(self.store, files, version, name)
        hexes = {file.path: file.hex for file in manifest.artefacts[0].files}
        signatures = {"m": model_signature.sign(hexes, self.repository.model_key(), "m")}
        members = signed_members(manifest, SBOM, signatures)
        metadata = self.repository.sign(name, members, now, artefacts=manifest.artefacts)
        return BundleContent(manifest, SBOM, signatures, metadata)

    def write(self, content: BundleContent, name: str = "b.tar") -> Path:
        path = self.folder / name
        write(path, content, self.store.path, Silent())
        return path


def manifest_of(
    store: Store, files: Mapping[str, bytes], version: str = "1.0", name: str = "sample"
) -> BundleManifest:
    refs = tuple(BlobRef(path=p, digest=store.put(d), size=len(d)) for p, d in files.items())
    model = Artefact(kind="model", name="m", version="1", licence="MIT", files=refs)
    return BundleManifest(
        schema_version=1,
        name=name,
        version=version,
        created="2026-11-01T00:00:00Z",
        platform=Platform.of_this_machine(),
        artefacts=(model,),
    )


def artefacts_of(manifest: bytes) -> tuple[Artefact, ...]:
    """Those that their roles sign: the manifest's, if it is one; a hostile one vouches for none."""
    try:
        return BundleManifest.model_validate_json(manifest).artefacts
    except ValueError:
        return ()
