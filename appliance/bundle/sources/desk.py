"""What every source works with and what it gives back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle.cache import BuildCache, Digested
from appliance.errors import BuildStepFailed, SourceMissing
from appliance.i18n import _
from appliance.manifests.bundle import Platform
from appliance.manifests.bundle_lock import BundleLock, LockedArtefact
from appliance.manifests.recipe import ArtefactRecipe, LocalBuild

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from appliance.progress import Progress, Task


@dataclass(frozen=True)
class Desk:
    """The connected machine a bundle is built on.

    ``epoch`` is the second (UTC, since 1970) that everything made here is dated with, so that what
    is made depends on the inputs only. ``lock`` is what a source takes its open decisions from.
    ``release_signer`` opens the key of an apt repository; without it, only what a lock pins of one
    is made.
    """

    recipe: Path
    platform: Platform
    cache: BuildCache
    epoch: int
    progress: Progress
    local_builds: tuple[LocalBuild, ...] = ()
    lock: BundleLock | None = None
    release_signer: Callable[[], Signer] | None = None

    def locked(self, recipe: ArtefactRecipe) -> LockedArtefact | None:
        """What the lock has for this artefact, if it was locked from the same part of a recipe."""
        found = self.lock.find(recipe.kind, recipe.name) if self.lock else None
        return found if found and found.recipe == recipe.digest else None

    def path(self, relative: str) -> Path:
        """A path of the recipe, from the folder the recipe lies in."""
        return self.recipe.parent / relative

    def missing(self, artefact: str, path: Path, reason: str) -> SourceMissing:
        """The error for a source the recipe names and that cannot be used."""
        return SourceMissing(recipe=self.recipe, artefact=artefact, path=path, reason=reason)


@dataclass(frozen=True, slots=True)
class MadeFile:
    """One file of an artefact: its path in the artefact, where and what it is, where it is from.

    ``origin`` is for the lock (:class:`~appliance.manifests.bundle_lock.LockedFile`); empty for
    what was computed from the artefact's inputs.
    """

    path: str
    content: Digested
    origin: str = ""


@dataclass(frozen=True)
class Made:
    """What a source brought. ``attributes`` are facts the source knows, for the manifest.

    ``inputs`` are the decisions a lock has to keep (``commit``), and the digests of files outside
    the recipe that decided something. ``unpinned`` are the paths a lock does not pin, because they
    change with the checkout that holds the recipe.
    """

    files: tuple[MadeFile, ...]
    attributes: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    unpinned: frozenset[str] = frozenset()


def collect(folder: Path, desk: Desk, title: str) -> tuple[MadeFile, ...]:
    """Digest every regular file below ``folder``, in path order. Raises ``ValueError`` on links."""
    found = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in found:
        if path.is_symlink() or not path.is_file():
            raise ValueError(_("{path} is a link or a special file").format(path=path))
    return digest_all(((path.relative_to(folder).as_posix(), path) for path in found), desk, title)


def digest_all(files: Iterable[tuple[str, Path]], desk: Desk, title: str) -> tuple[MadeFile, ...]:
    """Digest files given as (path in the artefact, location)."""
    listed = list(files)
    total = sum(location.stat().st_size for _path, location in listed)
    with desk.progress.task(title, total, "bytes") as task:
        return tuple(MadeFile(path, desk.cache.digest(at, task)) for path, at in listed)


@dataclass(frozen=True, slots=True)
class Step:
    """A program that is part of making an artefact. ``environment`` is added to this process's."""

    artefact: str
    title: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def run_step(step: Step, desk: Desk, task: Task) -> None:
    """Run a program to its end; its last line is shown beside ``task``.

    Raises :class:`BuildStepFailed`, with the last lines of what it printed and the path of a log.
    """
    lines: list[str] = []
    with subprocess.Popen(
        step.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env={**os.environ, **step.environment},
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                task.note(line.strip()[:60])
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        log = desk.cache.root / f"failed-{step.artefact}.log"
        log.write_text("".join(lines))
        reason = " ".join(line.strip() for line in lines[-3:]) or _("It printed nothing.")
        raise BuildStepFailed(artefact=step.artefact, step=step.title, reason=reason, log=log)
