"""Files that lie beside the recipe."""

from __future__ import annotations

from dataclasses import replace

from appliance.bundle.sources.desk import Desk, Made, MadeFile, collect, digest_all
from appliance.i18n import _
from appliance.manifests.recipe import ArtefactRecipe, PathSource


def make(recipe: ArtefactRecipe, source: PathSource, desk: Desk) -> Made:
    """Digest a file, or every file below a folder. Raises ``SourceMissing``."""
    path = desk.path(source.path)
    title = _("Digesting {name}").format(name=recipe.name)
    if path.is_file():
        return _made(digest_all([(path.name, path)], desk, title), source.path)
    if not path.is_dir():
        raise desk.missing(recipe.name, path, _("it is neither a file nor a folder."))
    try:
        files = collect(path, desk, title)
    except ValueError as error:
        raise desk.missing(recipe.name, path, _("{reason}.").format(reason=error)) from error
    if not files:
        raise desk.missing(recipe.name, path, _("the folder is empty."))
    return _made(files, source.path)


def _made(files: tuple[MadeFile, ...], where: str) -> Made:
    return Made(tuple(replace(file, origin=f"file:{where}") for file in files))
