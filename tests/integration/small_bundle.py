"""A signed bundle of a few kilobytes with everything a real one has: a wheelhouse, a data set."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.bundle.format import REVOCATIONS
from appliance.bundle.writer import BundleContent, write
from appliance.manifests.bundle import Artefact, ArtefactKind, BlobRef, BundleManifest, Platform
from appliance.progress import Silent
from appliance.store.blobs import Store
from appliance.trust.repository import Repository, Threshold

_SBOM = b'{"bomFormat":"CycloneDX","specVersion":"1.6","version":1}'


@dataclass(frozen=True)
class Supplier:
    """Keys, and a place to build in."""

    folder: Path
    repository: Repository

    @classmethod
    def at(cls, folder: Path) -> Supplier:
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, Repository.create_demo(folder / "keys", Threshold(2, 3)))

    @property
    def fingerprint(self) -> str:
        return self.repository.fingerprint.hex

    def bundle(
        self,
        name: str,
        version: str = "1.0",
        platform: Platform | None = None,
        payload: int = 100_000,
        wheels: int = 3,
        signed: datetime | None = None,
    ) -> Path:
        """Write ``<name>.tar``; ``payload`` is its data set's size in bytes, ``signed`` the moment
        of its signatures (None: now)."""
        store = Store(self.folder / "store")
        files = []
        lock = ""
        for number in range(wheels):
            wheel_name, data = tiny_wheel(f"tiny{number}", version)
            files.append(_file(store, wheel_name, data))
            lock += f"tiny{number}=={version} --hash=sha256:{hashlib.sha256(data).hexdigest()}\n"
        files.append(_file(store, "requirements.lock", lock.encode()))
        rows = _file(store, "train.jsonl", version.encode() + bytes(payload))
        artefacts = (
            Artefact(
                kind="wheelhouse", name="runtime", version="1", licence="MIT", files=tuple(files)
            ),
            Artefact(kind="dataset", name="rows", version="1", licence="MIT", files=(rows,)),
        )
        return self._write(name, "small", version, artefacts, platform, signed)

    def addition(self, name: str, kind: ArtefactKind, folder: Path) -> Path:
        """Write ``<name>.tar`` with one artefact ``name``, the files of ``folder``; no runtime."""
        store = Store(self.folder / "store")
        files = tuple(_file(store, p.name, p.read_bytes()) for p in sorted(folder.iterdir()))
        artefact = Artefact(kind=kind, name=name, version="1", licence="MIT", files=files)
        return self._write(name, f"addition-{name}", "1", (artefact,))

    def _write(
        self,
        file: str,
        name: str,
        version: str,
        artefacts: tuple[Artefact, ...],
        platform: Platform | None = None,
        signed: datetime | None = None,
    ) -> Path:
        store = Store(self.folder / "store")
        manifest = BundleManifest(
            schema_version=1,
            name=name,
            version=version,
            created="2026-11-01T00:00:00Z",
            platform=platform or Platform.of_this_machine(),
            artefacts=artefacts,
        )
        others = {REVOCATIONS: self.repository.revocations()}
        unsigned = BundleContent(manifest, _SBOM, others=others)
        members = {n: d for n, d in unsigned.members().items() if not n.startswith("metadata/")}
        metadata = self.repository.sign(name, members, signed, artefacts=manifest.artefacts)
        content = BundleContent(manifest, _SBOM, metadata=metadata, others=others)
        path = self.folder / f"{file}.tar"
        write(path, content, store.path, Silent())
        return path


def _file(store: Store, path: str, data: bytes) -> BlobRef:
    return BlobRef(path=path, digest=store.put(data), size=len(data))


def tiny_wheel(name: str, version: str) -> tuple[str, bytes]:
    """File name and bytes of a pure-Python wheel with one module (PEP 427)."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record += f"{path},sha256={digest.decode()},{len(text)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return f"{name}-{version}-py3-none-any.whl", buffer.getvalue()
