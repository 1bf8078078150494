"""What a bundle adds to an appliance that runs already: laid out beside its releases, not run.

    release_id, names = bring_in(path, home, progress)     # verified, loaded, on the ledger

Every byte is verified on the way into the store, as at an installation; registering an adapter is
the gateway's (``POST /admin/v1/adapters``), since only it signs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import NothingToImport
from appliance.install import lock
from appliance.install.bundle_in import admit
from appliance.install.secrets import record
from appliance.store.blobs import Store
from appliance.store.releases import Releases

if TYPE_CHECKING:
    from appliance.layout import Home
    from appliance.progress import Progress


def bring_in(path: Path, home: Home, progress: Progress) -> tuple[str, tuple[str, ...]]:
    """Verify and load a bundle for its adapters; return its release id and the adapters' names.

    Raises :class:`NothingToImport`, :class:`~appliance.errors.TrustNotPinned`,
    :class:`~appliance.errors.Busy` and what :func:`appliance.bundle.load.load` raises.
    """
    with admit(path, home, None) as bundle, lock.hold(home, f"adapters import {path.name}"):
        manifest = bundle.content.manifest
        names = tuple(artefact.name for artefact in manifest.of_kind("adapter"))
        if not names:
            content = ", ".join(f"{a.kind} {a.name}" for a in manifest.artefacts)
            raise NothingToImport(bundle=path, content=content)
        bundle.load(progress)
        release = Releases(home).materialise(bundle.content, Store(home.store), progress)
        bundle.remember()
        record(home, "bundle.load", {"bundle": manifest.digest, "release": release.id})
        return release.id, names
