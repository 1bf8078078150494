"""Release folders: one per installed bundle version, and the two links that say which one runs.

    releases = Releases(home)
    release = releases.materialise(loaded.content, store, progress)
    releases.activate(release.id)          # current → it, previous → the one before
    releases.current()                     # Release | None

A release is made under a hidden name and renamed when it is whole, so a folder with its final name
is complete; making it again, or after a kill -9, goes on where it stopped. Models, data sets and
wheels are hard links to blobs of the store, so a release costs almost no space.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import ReleaseDamaged, ReleaseInUse, ReleaseUnknown
from appliance.i18n import _
from appliance.manifests.bundle import BundleManifest, check_path
from appliance.store.blobs import Store, sync_folder

if TYPE_CHECKING:
    from appliance.layout import Home
    from appliance.progress import Progress, Task

_PARTIAL = ".partial-"
_DOOMED = ".removing-"


@dataclass(frozen=True)
class ReleaseContent:
    """All of a verified bundle that is not a blob.

    ``metadata`` maps file names (``1.root.json``, ``timestamp.json`` …) to bytes; ``signatures``
    maps model names to their OMS bundle, ``signature_keys`` to the PEM public key it verifies with.
    ``others`` maps the names of further signed members to their bytes.
    """

    manifest: BundleManifest
    sbom: bytes
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    signatures: Mapping[str, bytes] = field(default_factory=dict)
    signature_keys: Mapping[str, bytes] = field(default_factory=dict)
    others: Mapping[str, bytes] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """Relative path → bytes of everything written rather than linked."""
        return {
            "bundle.json": self.manifest.canonical(),
            "sbom.cdx.json": self.sbom,
            **{f"metadata/{name}": data for name, data in self.metadata.items()},
            **{f"signatures/{name}.oms.json": data for name, data in self.signatures.items()},
            **{f"signatures/{name}.pub": data for name, data in self.signature_keys.items()},
            **self.others,
        }


@dataclass(frozen=True)
class Release:
    """One complete release folder."""

    id: str
    folder: Path

    def manifest(self) -> BundleManifest:
        """What it holds. Raises :class:`ReleaseDamaged` if the folder is not what it was."""
        try:
            manifest = BundleManifest.parse((self.folder / "bundle.json").read_bytes())
        except (OSError, ValueError) as error:
            raise ReleaseDamaged(release=self.id, reason="bundle.json cannot be read") from error
        if manifest.release_id != self.id:
            raise ReleaseDamaged(release=self.id, reason="bundle.json was exchanged")
        return manifest

    def model(self, name: str) -> Path:
        """The folder of a model's files."""
        return self.folder / "models" / name

    def dataset(self, name: str) -> Path:
        """The folder of a data set's files."""
        return self.folder / "datasets" / name

    @property
    def wheelhouse(self) -> Path:
        """``*.whl`` and ``requirements.lock``."""
        return self.folder / "wheelhouse"

    @property
    def venv(self) -> Path:
        """The release's own virtual environment (made by install, not here)."""
        return self.folder / "venv"


class Releases:
    """The releases of one installation."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def find(self, release_id: str) -> Release | None:
        """The complete release of that id, if there is one."""
        folder = self._home.releases / release_id
        known = "/" not in release_id and not release_id.startswith(".") and folder.is_dir()
        return Release(release_id, folder) if known and release_id else None

    def get(self, release_id: str) -> Release:
        """The release of that id. Raises :class:`ReleaseUnknown`."""
        release = self.find(release_id)
        if release is None:
            raise ReleaseUnknown(release=release_id, home=self._home.root)
        return release

    def list(self) -> tuple[Release, ...]:
        """Every complete release, by id."""
        if not self._home.releases.is_dir():
            return ()
        names = sorted(f.name for f in self._home.releases.iterdir() if f.is_dir())
        return tuple(Release(n, self._home.releases / n) for n in names if not n.startswith("."))

    def current(self) -> Release | None:
        """The release in use."""
        return self._linked(self._home.current)

    def previous(self) -> Release | None:
        """The release before it."""
        return self._linked(self._home.previous)

    def _linked(self, link: Path) -> Release | None:
        return self.find(link.readlink().name) if link.is_symlink() else None

    def materialise(self, content: ReleaseContent, store: Store, progress: Progress) -> Release:
        """Make the release folder of a loaded bundle; idempotent, and resumes after a kill.

        Every blob of ``content.manifest`` must be in ``store`` (:class:`StoreDamaged` if not).
        """
        release_id = content.manifest.release_id
        complete = self.find(release_id)
        if complete is not None:
            complete.manifest()
            return complete
        partial = self._home.releases / f"{_PARTIAL}{release_id}"
        partial.mkdir(parents=True, exist_ok=True)
        count = sum(len(a.files) for a in content.manifest.artefacts)
        with progress.task(_("Laying out the release"), count, "items") as task:
            _link_files(content.manifest, store, partial, task)
        for path, data in content.files().items():
            _write_file(partial / check_path(path), data)
        for folder, _folders, _files in os.walk(partial, topdown=False):
            sync_folder(Path(folder))
        final = self._home.releases / release_id
        partial.rename(final)
        sync_folder(self._home.releases)
        return Release(release_id, final)

    def activate(self, release_id: str) -> Release:
        """Make a release the current one, atomically; the one before becomes ``previous``.

        Each link is replaced by rename(2): a reader sees the old release or the new one. A kill
        between the two leaves ``current`` as it was, and activating again completes it.
        """
        release = self.get(release_id)
        before = self.current()
        if before is not None and before.id == release.id:
            return release
        if before is not None:
            self._point(self._home.previous, before)
        self._point(self._home.current, release)
        return release

    def _point(self, link: Path, release: Release) -> None:
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(release.folder.relative_to(self._home.root))
        fresh.replace(link)
        sync_folder(link.parent)

    def deactivate(self) -> None:
        """No release is current or previous any more (uninstall)."""
        for link in (self._home.current, self._home.previous):
            link.unlink(missing_ok=True)

    def remove(self, release_id: str) -> None:
        """Delete a release folder. Raises :class:`ReleaseInUse` for the current one.

        The folder is renamed first, so half a release is never taken for a whole one.
        """
        release = self.get(release_id)
        current, previous = self.current(), self.previous()
        if current is not None and current.id == release_id:
            raise ReleaseInUse(release=release_id)
        if previous is not None and previous.id == release_id:
            self._home.previous.unlink()
        doomed = self._home.releases / f"{_DOOMED}{release_id}"
        shutil.rmtree(doomed, ignore_errors=True)
        release.folder.rename(doomed)
        sync_folder(self._home.releases)
        shutil.rmtree(doomed)

    def clean(self) -> None:
        """Finish removals a kill interrupted, and drop releases that were never completed."""
        if self._home.releases.is_dir():
            for pattern in (f"{_PARTIAL}*", f"{_DOOMED}*"):
                for leftover in self._home.releases.glob(pattern):
                    shutil.rmtree(leftover)


def _link_files(manifest: BundleManifest, store: Store, folder: Path, task: Task) -> None:
    for artefact in manifest.artefacts:
        base = folder / artefact.folder
        for file in artefact.files:
            target = base / check_path(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            store.link_out(file.digest, target)
            task.advance(1)


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
