"""Recipe → artefacts: what each part stands for, on disk and by digest, and the lock of it.

    desk = desk_for(recipe, recipe_path, lock, cache, progress)
    made = make_all(recipe, desk)                 # fetched, converted, digested; from the cache
    manifest = manifest_of(recipe, made, desk)    # bundle.json
    found = lock(recipe_path, kept, cache, progress)      # bundle.lock

Nothing here signs or writes a bundle. Everything is dated with ``desk.epoch``: the date of
``bundle.lock``, if there is one for this recipe; else ``SOURCE_DATE_EPOCH``, or the date of the
newest requirements lock the recipe names, or now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from appliance.bundle import locking
from appliance.bundle.cache import BuildCache
from appliance.bundle.locking import LockUse
from appliance.bundle.sources import (
    ansible,
    debian,
    gguf,
    huggingface,
    icd10cm,
    paths,
    urls,
    wheelhouse,
)
from appliance.bundle.sources.desk import Desk, Made
from appliance.bundle.sources.pins import read_lock
from appliance.errors import EpochInvalid
from appliance.i18n import _
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest
from appliance.manifests.bundle_lock import BundleLock
from appliance.manifests.document import load
from appliance.manifests.recipe import (
    AnsibleSource,
    ArtefactRecipe,
    DatasetSource,
    DebianSource,
    GgufSource,
    HuggingfaceSource,
    PathSource,
    PypiSource,
    Recipe,
    UrlSource,
)

if TYPE_CHECKING:
    from appliance.progress import Progress

_MAKERS: Mapping[type, Callable[[ArtefactRecipe, Any, Desk], Made]] = {
    PathSource: paths.make,
    UrlSource: urls.make,
    HuggingfaceSource: huggingface.make,
    GgufSource: gguf.make,
    PypiSource: wheelhouse.make,
    DatasetSource: icd10cm.make,
    DebianSource: debian.make,
    AnsibleSource: ansible.make,
}


def lock(
    recipe_path: Path, kept: BundleLock | None, cache: BuildCache, progress: Progress
) -> BundleLock:
    """Resolve, fetch and make everything a recipe names, and say what that was.

    What ``kept`` decided for an artefact whose part of the recipe is unchanged stays decided. If
    nothing changed at all, ``kept`` itself is the answer, with its date. Raises what the sources
    raise.
    """
    recipe = load(Recipe, recipe_path)
    desk = desk_for(recipe, recipe_path, kept, cache, progress)
    if kept is None:  # what an archive said earlier is a decision too
        for part in recipe.artefacts:
            if isinstance(part.source, DebianSource):
                debian.forget(part, part.source, desk)
    found = locking.lock_of(recipe, make_all(recipe, desk), desk.epoch)
    epoch = build_epoch(recipe, recipe_path)
    if found == kept or epoch == desk.epoch:
        return found
    dated = replace(desk, epoch=epoch)  # a source may write the date into what it makes
    return locking.lock_of(recipe, make_all(recipe, dated), epoch)


def make_all(recipe: Recipe, desk: Desk) -> list[Made]:
    """What each part of the recipe stands for, in its order."""
    return [_MAKERS[type(part.source)](part, part.source, desk) for part in recipe.artefacts]


def desk_for(
    recipe: Recipe,
    recipe_path: Path,
    lock: BundleLock | None,
    cache: BuildCache,
    progress: Progress,
) -> Desk:
    """The desk a recipe is made on, which goes by ``lock`` where there is one."""
    return Desk(
        recipe=recipe_path,
        platform=recipe.platform,
        cache=cache,
        epoch=locking.epoch_of(lock) if lock else build_epoch(recipe, recipe_path),
        progress=progress,
        local_builds=recipe.local_builds,
        lock=lock,
    )


def is_as_locked(
    lock: BundleLock, recipe: Recipe, made: Sequence[Made], use: LockUse, desk: Desk
) -> bool:
    """Whether all is as locked. Raises if it is not, and has to be."""
    found = locking.differences(lock, recipe, made)
    if found and use is LockUse.DEMANDED:
        raise found[0].error(desk.recipe)
    for difference in found[:1]:
        text = _("{count} files are not as locked, {file} of {artefact} first.")
        desk.progress.say(
            text.format(
                count=len(found),
                file=difference.path or locking.place(desk.recipe).name,
                artefact=difference.artefact,
            )
        )
    return not found


def manifest_of(recipe: Recipe, made: Sequence[Made], desk: Desk) -> BundleManifest:
    """The manifest of what was made, one for each part of the recipe.

    Raises ``SourceMissing`` if a path in it is not acceptable.
    """
    artefacts = []
    for part, result in zip(recipe.artefacts, made, strict=True):
        files = sorted(
            (file.path, f"sha256:{file.content.hex}", file.content.size) for file in result.files
        )
        try:
            artefacts.append(
                Artefact(
                    kind=part.kind,
                    name=part.name,
                    version=part.version,
                    licence=part.licence,
                    description=part.description,
                    attributes={**result.attributes, **part.attributes},
                    files=tuple(BlobRef(path=p, digest=d, size=s) for p, d, s in files),
                )
            )
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ") + "."
            raise desk.missing(part.name, desk.recipe, reason) from error
    return BundleManifest(
        schema_version=1,
        name=recipe.name,
        version=recipe.version,
        created=datetime.fromtimestamp(desk.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        platform=recipe.platform,
        artefacts=tuple(artefacts),
    )


def build_epoch(recipe: Recipe, recipe_path: Path) -> int:
    """The second everything is dated with where no lock says it; see the module's first lines."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        if not given.isascii() or not given.isdigit() or not 315532800 <= int(given) < 2**32:
            raise EpochInvalid(value=given)
        return int(given)
    sources = [a.source for a in recipe.artefacts if isinstance(a.source, PypiSource)]
    locks = [lock for source in sources for lock in source.locks]
    locks += [recipe.bootstrap.lock] if recipe.bootstrap else []
    dates = [read_lock(recipe_path.parent / lock).locked for lock in locks]
    known = [date.timestamp() for date in dates if date]
    return int(max(known, default=time.time()))
