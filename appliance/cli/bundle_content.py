"""``sovctl bundle diff`` and ``export``: what changed, and one thing out to another site."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.console import amount
from appliance.cli.options import with_console, with_keys, with_opening
from appliance.i18n import _
from appliance.layout import Home

if TYPE_CHECKING:
    from appliance.bundle.compare import ArtefactChange, Difference
    from appliance.bundle.opening import Opening
    from appliance.cli.console import Console
    from appliance.cli.options import Signer

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("before", type=_PATH)
@click.argument("after", type=_PATH)
@with_opening
@with_console
def diff(console: Console, before: Path, after: Path, *, opening: Opening) -> None:
    """What changed from the bundle BEFORE to AFTER: models, packages, licences. Reads kilobytes.

    Both are taken as they are; 'sovctl bundle verify' says whether to believe them.
    """
    from appliance.bundle.compare import compare, side_of
    from appliance.bundle.reader import BundleReader

    with BundleReader(before, opening) as old, BundleReader(after, opening) as new:
        difference = compare(side_of(old), side_of(new))
    console.result(asdict(difference), _as_text(difference))


@click.command()
@click.option("--model", help=_("A model of the current release."))
@click.option("--adapter", help=_("A registered adapter, with its card and signature."))
@click.option("--licence", help=_("Of the adapter, as SPDX expression (its base model's)."))
@click.option("--out", type=_PATH, required=True, help=_("The bundle to write."))
@with_keys
@with_console
def export(
    console: Console,
    *,
    model: str | None,
    adapter: str | None,
    licence: str | None,
    out: Path,
    signer: Signer,
) -> None:
    """Write one model or adapter of this site as a signed bundle for another site."""
    from appliance.bundle.export import export as export_bundle
    from appliance.install.outgoing import outgoing_adapter, outgoing_model

    home = Home.from_environment()
    if (model is None) == (adapter is None):
        raise click.UsageError(_("Give either --model or --adapter."))
    exported = (
        outgoing_model(home, model)
        if model is not None
        else outgoing_adapter(home, adapter or "", licence)
    )
    repository = signer()
    built = export_bundle(exported, out.absolute(), repository, console)
    value = {
        "bundle": str(built.path),
        "name": built.manifest.name,
        "version": built.manifest.version,
        "digest": built.manifest.digest,
        "size": built.size,
        "root": str(repository.fingerprint),
    }
    text = _("{path}   {size}\n  digest     {digest}\n  root       {root}")
    console.result(
        value,
        text.format(
            path=built.path,
            size=amount(built.size, "bytes"),
            digest=built.manifest.digest,
            root=repository.fingerprint,
        ),
    )


def _as_text(difference: Difference) -> str:
    lines = [f"{difference.before} → {difference.after}"]
    for title, changes in (
        (_("Artefacts:"), [_artefact(change) for change in difference.artefacts]),
        (
            _("Packages:"),
            [f"{p.change:<11}{p.name} {_versions(p.before, p.after)}" for p in difference.packages],
        ),
        (
            _("Licences:"),
            [f"{each.name}: {each.before} → {each.after}" for each in difference.licences],
        ),
    ):
        lines += ["", title, *(f"  {text}" for text in changes or [_("no change")])]
    moved = [p for p in difference.packages if p.purl_after]
    if moved:
        lines += ["", _("Ask a vulnerability scanner about:")]
        lines += [f"  {change.purl_after}" for change in moved]
    size = amount(difference.new_bytes, "bytes")
    lines += ["", _("A delta would carry {size}.").format(size=size)]
    return "\n".join(lines)


def _artefact(change: ArtefactChange) -> str:
    sizes = f"{amount(change.bytes_before, 'bytes')} → {amount(change.bytes_after, 'bytes')}"
    name = f"{change.kind} {change.name} {_versions(change.before, change.after)}"
    return f"{change.change:<11}{name}   {sizes}"


def _versions(before: str, after: str) -> str:
    return " → ".join(version for version in dict.fromkeys((before, after)) if version)
