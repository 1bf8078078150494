"""What of this installation can go to another site: a model of the release, a verified adapter.

exported = outgoing_model(home, "smollm2")
bundle.export.export(exported, out, repository, progress)
"""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING

from appliance.bundle.export import Exported, files_of
from appliance.errors import ExportUnknown, NotInstalled, RecordMissing
from appliance.i18n import _
from appliance.manifests.bundle import Artefact
from appliance.registry.store import Registry
from appliance.store.blobs import Store
from appliance.store.releases import Release, Releases
from appliance.tuning import adapters

if TYPE_CHECKING:
    from appliance.layout import Home


def outgoing_model(home: Home, name: str) -> Exported:
    """A model of the current release, from the store's blobs.

    Raises :class:`NotInstalled`, :class:`ExportUnknown`, ``ReleaseDamaged``.
    """
    manifest = _current(home).manifest()
    found = next((a for a in manifest.of_kind("model") if a.name == name), None)
    if found is None:
        reason = _("The current release is {release}.").format(release=manifest.release_id)
        raise ExportUnknown(kind="model", name=name, reason=reason)
    store = Store(home.store)
    files = {file.digest: store.path(file.digest) for file in found.files}
    return Exported(found, files, manifest.platform, manifest.created)


def outgoing_adapter(home: Home, name: str, licence: str | None) -> Exported:
    """A registered adapter, checked against its signature, with its card. ``licence`` is SPDX.

    Raises :class:`NotInstalled`, :class:`ExportUnknown`, ``AdapterRefused``, ``ReleaseDamaged``.
    """
    manifest = _current(home).manifest()
    registry = Registry.open(home)
    try:
        record = registry.adapters.get(name)
        folder = adapters.verify(home, registry, name, record.base_digest, adapters.Purpose.PREVIEW)
    except RecordMissing as error:
        raise ExportUnknown(kind="adapter", name=name, reason=error.sentences()[1]) from error
    finally:
        registry.close()
    base = next((a for a in manifest.of_kind("model") if a.name == record.base), None)
    if licence is None and base is None:
        reason = _(
            "Its base model is not in this release, so its licence must be given: --licence."
        )
        raise ExportUnknown(kind="adapter", name=name, reason=reason)
    files, where = files_of(folder)
    artefact = Artefact(
        kind="adapter",
        name=name,
        version=record.digest.removeprefix("sha256:")[:12],
        licence=licence or (base.licence if base else ""),
        files=files,
        attributes={
            "base_model": record.base,
            "base_digest": record.base_digest,
            "adapter_digest": record.digest,
        },
    )
    created = record.created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Exported(artefact, where, manifest.platform, created)


def _current(home: Home) -> Release:
    release = Releases(home).current()
    if release is None:
        raise NotInstalled(home=home.root)
    return release
