"""What the current release brings, entered into the registry when the gateway starts.

Digests come from the release's signed manifest, so nothing is hashed here but what is copied: a
model's digest is that of its files' digests, the same as
:func:`appliance.tuning.files.tree_digest` of the folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

from appliance.errors import ApplianceError, NameTaken
from appliance.layout import Home
from appliance.ledger.event import Event
from appliance.manifests.bundle import Artefact, BundleManifest
from appliance.progress import Silent
from appliance.registry import Model, Registry
from appliance.store.releases import Release
from appliance.tuning import adapters
from appliance.tuning.datasets import import_dataset
from appliance.tuning.files import tree_digest

_LOG = logging.getLogger(__name__)
ACTOR = "system:gateway"


def enter(home: Home, registry: Registry) -> list[Event]:
    """Make the registry hold the current release's models, data sets and adapters.

    Returns what is new, for the ledger. What cannot be entered is logged and left out: the
    appliance serves without it.
    """
    manifest = _manifest(home.current)
    if manifest is None:
        return []
    models = [
        Model(artefact.name, content_digest(artefact), manifest.release_id)
        for artefact in manifest.of_kind("model")
    ]
    if registry.models.list() != models:
        registry.models.replace(manifest.release_id, models)
    known = {dataset.name: dataset.digest for dataset in registry.datasets.list()}
    events = []
    for artefact in manifest.of_kind("dataset"):
        if known.get(artefact.name) != content_digest(artefact):
            events += _import(home, registry, artefact.name)
    return events + _adapters(home, registry, manifest)


def content_digest(artefact: Artefact) -> str:
    """``sha256:<hex>`` over an artefact's paths and digests."""
    return tree_digest({file.path: file.digest for file in artefact.files})


def _import(home: Home, registry: Registry, name: str) -> list[Event]:
    source = home.current / "datasets" / name
    try:
        dataset = import_dataset(home, registry, source, name, ACTOR, Silent())
    except NameTaken:
        _LOG.warning("data set %s of the release is not entered: the name is taken", name)
        return []
    except ApplianceError as error:
        _LOG.warning("data set %s of the release is not entered: %s", name, error)
        return []
    return [Event(ACTOR, "dataset.import", {"dataset": name, "digest": dataset.digest})]


def _adapters(home: Home, registry: Registry, manifest: BundleManifest) -> list[Event]:
    """Register the adapters the release brings and this site does not know yet."""
    release = Release(manifest.release_id, home.releases / manifest.release_id)
    known = {adapter.name for adapter in registry.adapters.list()}
    events = []
    for artefact in manifest.of_kind("adapter"):
        if artefact.name in known:
            continue
        try:
            record = adapters.bring(home, registry, release, artefact)
        except ApplianceError as error:
            _LOG.warning("adapter %s of the release is not entered: %s", artefact.name, error)
            continue
        subject = {"adapter": record.name, "digest": record.digest, "release": release.id}
        events.append(Event(ACTOR, "adapter.register", subject))
    return events


def _manifest(release: Path) -> BundleManifest | None:
    try:
        return BundleManifest.parse((release / "bundle.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        _LOG.error("the current release's bundle.json is not readable: %s", error)
        return None
