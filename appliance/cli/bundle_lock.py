"""``sovctl bundle lock``: pin every file a recipe stands for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import amount
from appliance.cli.options import with_console
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.cli.console import Console
    from appliance.manifests.bundle_lock import BundleLock


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--upgrade", is_flag=True,
    help=_("Decide anew what the lock decided: the newest commit of a branch, the newest date."),
)  # fmt: skip
@with_console
def lock(console: Console, recipe: Path, *, upgrade: bool) -> None:
    """Write bundle.lock beside RECIPE: the digest of every file of every source.

    Commit it with the recipe: 'sovctl bundle build --locked' then builds the same bundle anywhere.
    """
    from appliance.bundle import locking
    from appliance.bundle.cache import BuildCache
    from appliance.bundle.making import lock as make_lock
    from appliance.manifests.document import load
    from appliance.manifests.recipe import Recipe

    load(Recipe, recipe)  # a mistake in it is said before one in the lock
    before = None if upgrade else locking.read(recipe)
    found = make_lock(recipe, before, BuildCache.from_environment(), console)
    path = locking.place(recipe)
    if found != before:
        locking.write(found, path)
    console.result(_as_json(found, path, before), _as_text(found, path, before))


def _as_json(found: BundleLock, path: Path, before: BundleLock | None) -> dict[str, Any]:
    return {
        "lock": str(path),
        "changed": found != before,
        "recipe": found.recipe,
        "created": found.created,
        "artefacts": [
            {
                "kind": artefact.kind,
                "name": artefact.name,
                "inputs": artefact.inputs,
                "files": len(artefact.files),
                "size": sum(file.size for file in artefact.files),
            }
            for artefact in found.artefacts
        ],
    }


def _as_text(found: BundleLock, path: Path, before: BundleLock | None) -> str:
    state = _("unchanged") if found == before else _("written")
    lines = [f"{path}   {state}"]
    for artefact in found.artefacts:
        size = amount(sum(file.size for file in artefact.files), "bytes")
        count = _("{count} files").format(count=len(artefact.files))
        lines.append(f"  {artefact.kind:<11}{artefact.name}   {count}, {size}")
    lines.append(_("Commit it; 'sovctl bundle build --locked' builds exactly this."))
    return "\n".join(lines)
