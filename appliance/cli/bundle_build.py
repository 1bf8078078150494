"""``sovctl bundle build``: a recipe in, a signed bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import amount
from appliance.cli.options import with_console
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.bundle.build import Built
    from appliance.cli.console import Console


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--keys", type=click.Path(path_type=Path), default=Path("keys"), show_default=True,
    help=_("Folder that 'sovctl trust init' made."),
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), default=None,
    help=_("The bundle to write; NAME-VERSION.tar here if not given."),
)  # fmt: skip
@click.option(
    "--passphrase-fd", type=int, default=None,
    help=_("Read the signing keys' passphrase from this file descriptor."),
)  # fmt: skip
@click.option(
    "--base", type=click.Path(path_type=Path), default=None,
    help=_("Write a delta: without what this bundle (or its bundle.json) has."),
)  # fmt: skip
@with_console
def build(
    console: Console,
    recipe: Path,
    *,
    keys: Path,
    out: Path | None,
    base: Path | None,
    passphrase_fd: int | None,
) -> None:
    """Build and sign the bundle that RECIPE describes.

    What is fetched and made is kept in $SOVCTL_CACHE or ~/.cache/sovctl, by digest: building again
    does neither again.
    """
    from appliance.bundle.build import build as build_bundle
    from appliance.bundle.cache import BuildCache
    from appliance.bundle.delta import read_base
    from appliance.manifests.document import load
    from appliance.manifests.recipe import Recipe
    from appliance.trust.passphrase import passphrase_source
    from appliance.trust.repository import Repository

    named = load(Recipe, recipe)
    target = (out or Path(f"{named.name}-{named.version}.tar")).absolute()
    repository = Repository.open(keys, passphrase_source(passphrase_fd))
    cache = BuildCache.from_environment()
    older = read_base(base) if base is not None else None
    built = build_bundle(recipe, repository, target, cache, console, base=older)
    fingerprint = str(repository.fingerprint)
    console.result(_as_json(built, fingerprint), _as_text(built, fingerprint))


def _as_json(built: Built, fingerprint: str) -> dict[str, Any]:
    manifest = built.manifest
    return {
        "bundle": str(built.path),
        "name": manifest.name,
        "version": manifest.version,
        "digest": manifest.digest,
        "created": manifest.created,
        "size": built.size,
        "seconds": round(built.seconds, 1),
        "root": fingerprint,
        "artefacts": [
            {
                "kind": artefact.kind,
                "name": artefact.name,
                "version": artefact.version,
                "licence": artefact.licence,
                "files": len(artefact.files),
                "size": artefact.size,
            }
            for artefact in manifest.artefacts
        ],
    }


def _as_text(built: Built, fingerprint: str) -> str:
    manifest = built.manifest
    lines = [
        _("{path}   {size}, built in {seconds:.1f} s").format(
            path=built.path, size=amount(built.size, "bytes"), seconds=built.seconds
        ),
        *(
            f"  {a.kind:<11}{a.name} {a.version}   "
            + _("{count} files").format(count=len(a.files))
            + f", {amount(a.size, 'bytes')}   {a.licence}"
            for a in manifest.artefacts
        ),
        _("  digest     {digest}").format(digest=manifest.digest),
        _("  root       {fingerprint}").format(fingerprint=fingerprint),
        _("Next, on the other side: sovctl install {name} --trust FINGERPRINT").format(
            name=built.path.name
        ),
    ]
    return "\n".join(lines)
