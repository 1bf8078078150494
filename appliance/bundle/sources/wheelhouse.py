"""Every wheel of a lock, our own, and the exact requirements file an offline install takes.

``requirements.lock`` in the artefact names each wheel that is in it with that file's own digest, so
that ``uv pip install --offline --no-index --require-hashes --find-links . -r requirements.lock``
installs exactly these files. A recipe with several environments gets ``requirements-<name>.lock``
for each, and an attribute that says what it is for (:mod:`appliance.manifests.environment`).

``python -m appliance.bundle.sources.wheelhouse RECIPE FOLDER`` puts the wheels of a recipe's locks
into a folder (hard links to the cache); setting up a development environment uses that.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.utils import parse_wheel_filename

from appliance.bundle.cache import BuildCache, Inputs
from appliance.bundle.sources import own_wheel
from appliance.bundle.sources.desk import Desk, Made, MadeFile, digest_all
from appliance.bundle.sources.pins import read_lock
from appliance.bundle.sources.wheels import fetch, narrowed
from appliance.errors import ApplianceError, ExitCode
from appliance.i18n import _
from appliance.manifests.document import load
from appliance.manifests.environment import RuntimeEnvironment
from appliance.manifests.recipe import ArtefactRecipe, GgufSource, PypiSource, Recipe
from appliance.progress import Silent, Task, Unit


def make(recipe: ArtefactRecipe, source: PypiSource, desk: Desk) -> Made:
    """Fetch what the cache lacks, build our own wheel, digest all, write the requirements.

    Raises what :func:`~appliance.bundle.sources.wheels.fetch` raises, ``LockInvalid``, and
    ``SourceMissing`` if two environments bring different files of one name.
    """
    own = (
        []
        if source.project is None
        else [own_wheel.build(desk.path(source.project), recipe.name, desk)]
    )
    runtimes = _runtimes(source, desk)
    files: dict[str, MadeFile] = {}
    lists: list[tuple[str, str]] = []
    for runtime in runtimes:
        wheels = _wheels(recipe, runtime, own, desk)
        lists.append((runtime.environment.requirements, requirements(wheels)))
        for wheel in wheels:
            if files.setdefault(wheel.path, wheel).content.hex != wheel.content.hex:
                reason = _("two environments bring different files named {name}.")
                where = desk.path(runtime.lock)
                raise desk.missing(recipe.name, where, reason.format(name=wheel.path))
    listed = _listed(lists, desk)
    attributes = {"wheels": str(len(files))}
    if source.environments:
        attributes |= dict(r.environment.attribute(n) for n, r in enumerate(runtimes))
    named = (*(files[name] for name in sorted(files)), *listed)
    unpinned = (
        frozenset([*(w.name for w in own), *(f.path for f in listed)]) if own else frozenset()
    )
    inputs = {_key(lock): _sha256(desk.path(lock)) for lock in source.locks}
    return Made(named, attributes, inputs, unpinned)


@dataclass(frozen=True)
class _Runtime:
    """One set of wheels: what it is for, its lock, and a desk that chooses for that platform."""

    environment: RuntimeEnvironment
    lock: str
    desk: Desk


def _runtimes(source: PypiSource, desk: Desk) -> list[_Runtime]:
    if source.lock is not None:
        return [_Runtime(RuntimeEnvironment("", desk.platform, "cpu"), source.lock, desk)]
    found = []
    for each in source.environments:
        platform = desk.platform.model_copy(update={"python": each.python, "machine": each.machine})
        chooser = replace(desk, platform=platform, local_builds=each.local_builds)
        environment = RuntimeEnvironment(each.name, platform, each.accelerator)
        found.append(_Runtime(environment, each.lock, chooser))
    return found


def _wheels(
    recipe: ArtefactRecipe, runtime: _Runtime, own: Sequence[Path], desk: Desk
) -> tuple[MadeFile, ...]:
    pins = narrowed(read_lock(desk.path(runtime.lock)).pins, desk.locked(recipe))
    wheels = [*fetch(pins, runtime.desk).values(), *own]
    title = _("Digesting {count} wheels").format(count=len(wheels))
    made = digest_all(sorted((path.name, path) for path in wheels), desk, title)
    return tuple(replace(wheel, origin=_origin(wheel.path)) for wheel in made)


def _listed(lists: Sequence[tuple[str, str]], desk: Desk) -> tuple[MadeFile, ...]:
    """The requirements files, as (path, text), written and digested."""
    inputs: Inputs = {"texts": [f"{name}\0{text}" for name, text in lists]}

    def write(out: Path) -> None:
        for name, text in lists:
            (out / name).write_text(text, encoding="utf-8")

    folder = desk.cache.make("requirements", inputs, write)
    places = [(name, folder / name) for name, _text in lists]
    return digest_all(places, desk, _("Digesting the lock"))


def _origin(file_name: str) -> str:
    name, version, _build, _tags = parse_wheel_filename(file_name)
    return f"pypi:{name}=={version}"


def _key(lock: str) -> str:
    """A lock's path as a key of the bundle lock's inputs."""
    return "lock." + re.sub(r"[^A-Za-z0-9_.-]", "_", lock)[-59:]


def _sha256(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def requirements(wheels: tuple[MadeFile, ...]) -> str:
    """One line a wheel: name, full version, digest; sorted by name."""
    lines = []
    for wheel in wheels:
        name, version, _build, _tags = parse_wheel_filename(wheel.path)
        lines.append(f"{name}=={version} --hash=sha256:{wheel.content.hex}\n")
    return "".join(sorted(lines))


def main(arguments: list[str]) -> int:
    """Fill a folder with the wheels of a recipe's locks; see the module's first lines."""
    recipe_path, folder = Path(arguments[0]), Path(arguments[1])
    recipe = load(Recipe, recipe_path)
    desk = Desk(
        recipe=recipe_path,
        platform=recipe.platform,
        cache=BuildCache.from_environment(),
        epoch=0,
        progress=Narrator(),
        local_builds=recipe.local_builds,
    )
    try:
        _fill(recipe, desk, folder)
    except ApplianceError as error:
        sys.stderr.write("\n".join((f"error: {error.code}", *error.sentences())) + "\n")
        return int(error.exit_code)
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    return 0


def _fill(recipe: Recipe, desk: Desk, folder: Path) -> None:
    wanted = [
        (a.source.environment, desk) for a in recipe.artefacts if isinstance(a.source, GgufSource)
    ]
    for artefact in recipe.artefacts:
        if isinstance(artefact.source, PypiSource):
            wanted += [(runtime.lock, runtime.desk) for runtime in _runtimes(artefact.source, desk)]
    folder.mkdir(parents=True, exist_ok=True)
    for lock, chooser in wanted:
        for wheel in fetch(read_lock(desk.path(lock)).pins, chooser).values():
            _link(wheel, folder / wheel.name)


def _link(wheel: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(wheel, target)
    except OSError:  # another file system
        shutil.copyfile(wheel, target)


class Narrator(Silent):
    """A :class:`~appliance.progress.Progress` of plain lines on standard error."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: Unit) -> Iterator[Task]:
        """Print the title; the rest is silence."""
        sys.stderr.write(f"{title} …\n")
        with super().task(title, total, unit) as task:
            yield task


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
