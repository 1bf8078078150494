"""``sovctl bundle``: build, inspect, verify, carry and compare bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.bundle_build import build
from appliance.cli.bundle_carry import copy, decrypt, delta, encrypt, join, split
from appliance.cli.bundle_content import diff, export
from appliance.cli.bundle_evidence import licences, provenance
from appliance.cli.bundle_lock import lock
from appliance.cli.console import amount
from appliance.cli.options import with_console, with_opening
from appliance.i18n import _
from appliance.layout import Home

if TYPE_CHECKING:
    from appliance.bundle.opening import Opening
    from appliance.bundle.reader import BundleReader
    from appliance.cli.console import Console
    from appliance.manifests.bundle import BundleManifest
    from appliance.trust.verifier import Verified, Verifier


@click.group(help=_("Build, inspect, verify, carry and compare bundles."))
def bundle() -> None:
    """Group of the commands below."""


for _command in (
    build, split, join, copy, delta, encrypt, decrypt, diff, export, licences, lock, provenance,
):  # fmt: skip
    bundle.add_command(_command)

_file = click.argument("file", type=click.Path(path_type=Path))


def _trust(command: Callable[..., Any]) -> Callable[..., Any]:
    option = click.option(
        "--trust",
        "fingerprint",
        metavar="FINGERPRINT",
        help=_("Judge by this root; nothing is pinned."),
    )
    return option(command)


@bundle.command(help=_("Show what a bundle holds. Reads kilobytes of a file of any size."))
@with_console
@_file
@_trust
@with_opening
def inspect(console: Console, *, file: Path, fingerprint: str | None, opening: Opening) -> None:
    """Show a bundle's contents and whether its signature is trusted here."""
    from appliance.bundle.load import judge
    from appliance.bundle.reader import BundleReader

    with BundleReader(file, opening) as reader:
        verifier = _verifier(fingerprint)
        verified = judge(reader, verifier)[1] if verifier is not None else None
        reader.check_size()
        root = _root_fingerprint(reader)
        value = _as_json(reader.manifest, reader.size, verified, root)
        base = reader.delta.base if reader.delta is not None else None
        value["delta"] = base and {"base": base.digest, "left_out": len(reader.left_out)}
        value["encrypted"] = reader.encryption is not None
        text = _as_text(reader.manifest, reader.size, verified, root)
        console.result(value, "\n".join([text, *_as_copy(reader)]))


@bundle.command(help=_("Check every byte of a bundle against the trusted root. Writes nothing."))
@with_console
@_file
@_trust
@with_opening
def verify(console: Console, *, file: Path, fingerprint: str | None, opening: Opening) -> None:
    """Hash every blob and check every signature."""
    from appliance.bundle.load import verify as verify_bundle
    from appliance.errors import TrustNotPinned

    verifier = _verifier(fingerprint)
    if verifier is None:
        raise TrustNotPinned(bundle=file)
    checked = verify_bundle(file, verifier, console, opening)
    manifest = checked.manifest
    size = checked.size
    root = checked.verified.fingerprint.hex
    text = _("{file} is whole and signed by who is trusted here.\n\n{content}").format(
        file=file, content=_as_text(manifest, size, checked.verified, root)
    )
    console.result(_as_json(manifest, size, checked.verified, root), text)


def _verifier(fingerprint: str | None) -> Verifier | None:
    """A verifier under the given root, or the pinned one; None if there is neither."""
    from appliance.trust.fingerprint import Fingerprint
    from appliance.trust.pin import load_state
    from appliance.trust.verifier import Verifier

    state = load_state(Home.from_environment().trust)
    if fingerprint is not None:
        state = state.pinned_to(Fingerprint.parse(fingerprint))
    return Verifier(state) if state.pin is not None else None


def _root_fingerprint(reader: BundleReader) -> str:
    """The fingerprint of the first root the bundle carries: a claim, to be compared by a person."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    from appliance.errors import BundleTampered
    from appliance.trust.fingerprint import Fingerprint

    try:
        return Fingerprint.of(Metadata[Root].from_bytes(reader.metadata["1.root.json"]).signed).hex
    except (KeyError, RepositoryError) as error:
        member, reason = "metadata/1.root.json", "it is not a root"
        raise BundleTampered(bundle=reader.path, member=member, reason=reason) from error


def _as_json(
    manifest: BundleManifest, size: int, verified: Verified | None, root: str
) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": manifest.digest,
        "release": manifest.release_id,
        "created": manifest.created,
        "platform": manifest.platform.model_dump(),
        "size": size,
        "artefacts": [
            {
                **artefact.model_dump(exclude={"files"}),
                "files": len(artefact.files),
                "size": artefact.size,
            }
            for artefact in manifest.artefacts
        ],
        "signature": {
            "trusted": verified is not None,
            "root": root,
            "demo": verified.demo if verified else None,
            "version": verified.version if verified else None,
            "expires": verified.expires.isoformat() if verified else None,
        },
    }


def _as_copy(reader: BundleReader) -> list[str]:
    """What is particular to this copy of the bundle."""
    lines = []
    if reader.delta is not None:
        base = reader.delta.base
        text = _("A delta: {count} files come from {name} {version}, {digest}.")
        lines.append(
            text.format(
                count=len(reader.left_out), name=base.name, version=base.version, digest=base.digest
            )
        )
    if reader.encryption is not None:
        lines.append(_("Encrypted, file by file; loading it needs --identity FILE."))
    return ["", *lines] if lines else []


def _as_text(manifest: BundleManifest, size: int, verified: Verified | None, root: str) -> str:
    lines = [
        f"{manifest.name} {manifest.version}   {amount(size, 'bytes')}",
        _("  for        {platform}").format(platform=manifest.platform),
        _("  created    {created}").format(created=manifest.created),
        _("  digest     {digest}").format(digest=manifest.digest),
        _("  signature  {signature}").format(signature=_signature_text(verified, root)),
        "",
    ]
    for artefact in manifest.artefacts:
        count = _("{count} files").format(count=len(artefact.files))
        lines.append(
            f"  {artefact.kind:<11}{artefact.name} {artefact.version}"
            f"   {count}, {amount(artefact.size, 'bytes')}   {artefact.licence}"
        )
    return "\n".join(lines)


def _signature_text(verified: Verified | None, root: str) -> str:
    if verified is None:
        return _("not judged: no root is pinned here. Its root claims to be {root}").format(
            root=root
        )
    demo = _(", demo keys") if verified.demo else ""
    return _("trusted, version {version}, until {until}{demo}").format(
        version=verified.version, until=f"{verified.expires:%Y-%m-%d}", demo=demo
    )
