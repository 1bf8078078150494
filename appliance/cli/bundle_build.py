"""``sovctl bundle build``: a recipe in, a signed bundle out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import amount
from appliance.cli.options import with_console
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.bundle.bootstrap import Written
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
@click.option(
    "--locked", "use", flag_value="demanded",
    help=_("Refuse to build anything but what bundle.lock pins."),
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
    use: str | None,
) -> None:
    """Build and sign the bundle that RECIPE describes.

    What 'sovctl bundle lock' wrote beside RECIPE is used if it is for this recipe. What is fetched
    and made is kept in $SOVCTL_CACHE or ~/.cache/sovctl, by digest: building again does neither
    again.
    """
    from appliance.bundle.build import build as build_bundle
    from appliance.bundle.cache import BuildCache
    from appliance.bundle.delta import read_base
    from appliance.bundle.locking import LockUse
    from appliance.manifests.document import load
    from appliance.manifests.recipe import Recipe
    from appliance.trust.passphrase import passphrase_source
    from appliance.trust.repository import Repository

    named = load(Recipe, recipe)
    target = (out or Path(f"{named.name}-{named.version}.tar")).absolute()
    repository = Repository.open(keys, passphrase_source(passphrase_fd))
    cache = BuildCache.from_environment()
    older = read_base(base) if base is not None else None
    lock_use = LockUse(use) if use else LockUse.IF_IT_FITS
    built = build_bundle(recipe, repository, target, cache, console, base=older, use=lock_use)
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
        "bootstrap": _bootstrap_as_json(built.bootstrap),
        "as_locked": built.as_locked,
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


def _bootstrap_as_json(written: Written | None) -> dict[str, Any] | None:
    if written is None:
        return None
    return {"path": str(written.path), "sha256": written.sha256, "size": written.size}


def _bootstrap_as_text(written: Written | None) -> list[str]:
    if written is None:
        return []
    from appliance.trust.fingerprint import Fingerprint

    words = " ".join(Fingerprint(written.sha256).words)
    return [
        _("{path}   {size}, for a machine without sovctl").format(
            path=written.path, size=amount(written.size, "bytes")
        ),
        _("  sha256sum  {sha256}").format(sha256=written.sha256),
        _("  in words   {words}").format(words=words),
    ]


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
        *([_("  lock       every file is as locked")] if built.as_locked else []),
        _("  root       {fingerprint}").format(fingerprint=fingerprint),
        *_bootstrap_as_text(built.bootstrap),
        _("Next, on the other side: sovctl install {name} --trust FINGERPRINT").format(
            name=built.path.name
        ),
    ]
    return "\n".join(lines)
