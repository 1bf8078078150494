"""``bundle.lock`` beside a recipe: read, compared with what was made, written.

lock = for_build(recipe, path, LockUse.DEMANDED, progress)    # BundleLockMissing, …Stale
found = differences(lock, recipe, made)                       # pure
write(lock_of(recipe, made, epoch), place(path))
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle.sources.desk import Made
from appliance.errors import (
    ApplianceError,
    BundleLockDiffers,
    BundleLockInvalid,
    BundleLockMissing,
    BundleLockStale,
    FileUnreadable,
)
from appliance.i18n import _
from appliance.manifests.bundle_lock import (
    FILE_NAME,
    MAX_BYTES,
    BundleLock,
    LockedArtefact,
    LockedFile,
)
from appliance.manifests.recipe import ArtefactRecipe, Recipe
from appliance.store.blobs import sync_folder

if TYPE_CHECKING:
    from appliance.progress import Progress


class LockUse(Enum):
    """What a build does with the lock beside its recipe."""

    IF_IT_FITS = "if-it-fits"  # taken if it is for this recipe; what differs is said
    DEMANDED = "demanded"  # the build is what the lock says, or there is none


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as locked. ``path`` is empty where an input of the artefact differs."""

    artefact: str
    path: str
    reason: str

    def error(self, recipe_path: Path) -> ApplianceError:
        """The refusal of a build that has to be as locked."""
        lock = place(recipe_path)
        if not self.path:
            return BundleLockStale(lock=lock, recipe=recipe_path, reason=self.reason)
        return BundleLockDiffers(
            file=self.path,
            artefact=self.artefact,
            lock=lock,
            recipe=recipe_path,
            reason=self.reason,
        )


def place(recipe_path: Path) -> Path:
    """Where the lock of a recipe is: ``bundle.lock`` in its folder.

    A recipe called otherwise than ``bundle.yaml`` has a lock called after it, so that two recipes
    of one folder do not share one.
    """
    if recipe_path.stem == Path(FILE_NAME).stem:
        return recipe_path.with_name(FILE_NAME)
    return recipe_path.with_suffix(".bundle.lock")


def read(recipe_path: Path) -> BundleLock | None:
    """The lock beside a recipe; None if there is none. Raises :class:`BundleLockInvalid`."""
    path = place(recipe_path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileUnreadable(path=path, reason=error.strerror or error) from error
    try:
        return BundleLock.parse(data)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split("\n  For further")[0].split())[:300]
        raise BundleLockInvalid(lock=path, reason=f"{reason.rstrip('.')}.") from error


def for_build(
    recipe: Recipe, recipe_path: Path, use: LockUse, progress: Progress
) -> BundleLock | None:
    """The lock a build takes, or None if it may do without.

    Raises :class:`BundleLockInvalid`, and where a lock is demanded :class:`BundleLockMissing` or
    :class:`BundleLockStale`.
    """
    path, lock = place(recipe_path), read(recipe_path)
    if lock is None:
        if use is LockUse.DEMANDED:
            reason = _("A lock pins every file of every source.")
            raise BundleLockMissing(lock=path, recipe=recipe_path, reason=reason)
        return None
    if lock.recipe == recipe.digest:
        return lock
    reason = changed(lock, recipe)
    if use is LockUse.DEMANDED:
        raise BundleLockStale(lock=path, recipe=recipe_path, reason=reason)
    progress.say(
        _("{lock} is not used: {reason} Renew it: sovctl bundle lock {recipe}").format(
            lock=path, reason=reason, recipe=recipe_path
        )
    )
    return None


def epoch_of(lock: BundleLock) -> int:
    """The second (UTC, since 1970) that everything built from ``lock`` is dated with."""
    return int(datetime.fromisoformat(lock.created).timestamp())


def lock_of(recipe: Recipe, made: Sequence[Made], epoch: int) -> BundleLock:
    """The lock of what was made, one for each part of the recipe."""
    artefacts = (
        LockedArtefact(
            kind=part.kind,
            name=part.name,
            recipe=part.digest,
            inputs=dict(result.inputs),
            files=tuple(_files(part, result)),
        )
        for part, result in zip(recipe.artefacts, made, strict=True)
    )
    return BundleLock(
        schema_version=1,
        recipe=recipe.digest,
        created=datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        artefacts=tuple(sorted(artefacts, key=lambda a: (a.kind, a.name))),
    )


def changed(lock: BundleLock, recipe: Recipe) -> str:
    """A sentence on what a recipe has otherwise than the one that was locked."""
    for part in recipe.artefacts:
        before = lock.find(part.kind, part.name)
        if before is None:
            return _("'{artefact}' is new.").format(artefact=part.name)
        if before.recipe != part.digest:
            return _("'{artefact}' was changed since.").format(artefact=part.name)
    now = {(part.kind, part.name) for part in recipe.artefacts}
    for gone in lock.artefacts:
        if (gone.kind, gone.name) not in now:
            return _("'{artefact}' is not there any more.").format(artefact=gone.name)
    return _("Something outside its artefacts was changed since.")


def differences(lock: BundleLock, recipe: Recipe, made: Sequence[Made]) -> tuple[Difference, ...]:
    """What was made otherwise than locked, in the recipe's order. Empty: it is as locked. Pure."""
    pairs = zip(recipe.artefacts, made, strict=True)
    return tuple(found for part, result in pairs for found in _differing(lock, part, result))


def write(lock: BundleLock, path: Path) -> None:
    """Replace the file atomically."""
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(lock.render())
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)


def _files(part: ArtefactRecipe, made: Made) -> list[LockedFile]:
    return [
        LockedFile(
            path=file.path,
            sha256=file.content.hex,
            size=file.content.size,
            origin=file.origin or f"made:{part.source.type}",
        )
        for file in sorted(made.files, key=lambda file: file.path)
        if file.path not in made.unpinned
    ]


def _differing(lock: BundleLock, part: ArtefactRecipe, made: Made) -> Iterator[Difference]:
    locked = lock.find(part.kind, part.name)
    if locked is None:
        yield Difference(part.name, "", _("'{artefact}' is new.").format(artefact=part.name))
        return
    for key in sorted(locked.inputs.keys() | made.inputs.keys()):
        before, now = locked.inputs.get(key, ""), made.inputs.get(key, "")
        if before != now:
            reason = _("'{key}' of '{artefact}' is '{now}', and '{before}' was locked.")
            yield Difference(
                part.name, "", reason.format(key=key, artefact=part.name, now=now, before=before)
            )
    pinned = {file.path: file for file in locked.files}
    for file in _files(part, made):
        before_file = pinned.pop(file.path, None)
        if before_file is None:
            yield Difference(part.name, file.path, _("It is not in the lock."))
        elif (before_file.sha256, before_file.size) != (file.sha256, file.size):
            reason = _(
                "It has {size} bytes and SHA-256 {now}; {locked} bytes and {before} were locked."
            )
            yield Difference(
                part.name,
                file.path,
                reason.format(
                    size=file.size,
                    now=file.sha256,
                    locked=before_file.size,
                    before=before_file.sha256,
                ),
            )
    for path in pinned:
        yield Difference(part.name, path, _("It is in the lock and was not made."))
