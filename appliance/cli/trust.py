"""``sovctl trust``: make signing keys, show and pin fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance.cli.options import with_console
from appliance.i18n import _
from appliance.layout import Home

if TYPE_CHECKING:
    from appliance.cli.console import Console


@click.group(help=_("Keys, the m-of-n root, the pinned fingerprint."))
def trust() -> None:
    """Group of the commands below."""


@trust.command(help=_("Make an m-of-n root and signing keys (on the supplier's side)."))
@with_console
@click.option("--threshold", default=2, show_default=True, help=_("Root keys that must sign."))
@click.option("--keys", default=3, show_default=True, help=_("Root keys to make."))
@click.option(
    "--out",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help=_("Folder for keys and roots."),
)
@click.option("--demo", is_flag=True, help=_("Passphrase-free keys, labelled so to every site."))
@click.option("--passphrase-fd", type=int, help=_("Read the passphrase from this descriptor."))
def init(
    console: Console,
    *,
    threshold: int,
    keys: int,
    folder: Path,
    demo: bool,
    passphrase_fd: int | None,
) -> None:
    """Make keys and the first root."""
    from appliance.trust.passphrase import new_passphrase_source
    from appliance.trust.repository import Repository, Threshold

    quorum = Threshold(threshold, keys)
    if demo:
        repository = Repository.create_demo(folder, quorum)
    else:
        repository = Repository.create(folder, quorum, new_passphrase_source(passphrase_fd))
    fingerprint = repository.fingerprint
    lines = [
        _("A root of {threshold} of {keys} keys is in {folder}.").format(
            threshold=threshold, keys=keys, folder=folder
        ),
        _("Fingerprint: {fingerprint}").format(fingerprint=fingerprint),
        _("These are demo keys without a passphrase; every site that pins them is told.")
        if demo
        else _("Move keys/root-*.pem to separate media now; signing bundles does not need them."),
        _("Give the fingerprint to your sites by another way than the bundle:"),
        f"  sovctl trust pin {fingerprint.hex}",
    ]
    value = {
        "folder": str(folder),
        "fingerprint": fingerprint.hex,
        "threshold": threshold,
        "keys": keys,
        "demo": demo,
    }
    console.result(value, "\n".join(lines))


@trust.command(help=_("Show what this installation trusts, or the fingerprint of signing keys."))
@with_console
@click.option(
    "--keys",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help=_("Folder of signing keys to show instead."),
)
def show(console: Console, *, folder: Path | None) -> None:
    """Show a fingerprint."""
    if folder is not None:
        _show_keys(console, folder)
    else:
        _show_pin(console)


def _show_keys(console: Console, folder: Path) -> None:
    from appliance.trust.passphrase import passphrase_source
    from appliance.trust.repository import DEMO_FIELD, Repository

    repository = Repository.open(folder, passphrase_source())
    root = repository.root
    role = root.roles["root"]
    value = {
        "fingerprint": repository.fingerprint.hex,
        "version": root.version,
        "threshold": role.threshold,
        "keys": len(role.keyids),
        "expires": root.expires.isoformat(),
        "demo": root.unrecognized_fields.get(DEMO_FIELD) is True,
    }
    text = _("Fingerprint: {fingerprint}\nRoot {version}, {needed} of {keys} keys, until {until}")
    shown = text.format(
        fingerprint=repository.fingerprint,
        version=root.version,
        needed=role.threshold,
        keys=len(role.keyids),
        until=f"{root.expires:%Y-%m-%d}",
    )
    console.result(value, shown + (_("\nDemo keys.") if value["demo"] else ""))


def _show_pin(console: Console) -> None:
    from appliance.trust.pin import load_state

    state = load_state(Home.from_environment().trust)
    value = {
        "pinned": state.pin.hex if state.pin else None,
        "bundles_seen": sorted(state.seen),
        "latest_time_seen": state.clock.isoformat() if state.clock else None,
    }
    if state.pin is None:
        text = _("Nothing is trusted here yet. Run 'sovctl trust pin FINGERPRINT'.")
    else:
        text = _("Pinned: {pin}\nBundles seen: {bundles}").format(
            pin=state.pin, bundles=", ".join(sorted(state.seen)) or _("none")
        )
    console.result(value, text)


@trust.command(help=_("Trust bundles signed under the root with this fingerprint."))
@with_console
@click.argument("fingerprint", nargs=-1, required=True)
@click.option("--replace", is_flag=True, help=_("Forget the root trusted before."))
def pin(console: Console, *, fingerprint: tuple[str, ...], replace: bool) -> None:
    """Pin a root. The fingerprint may be typed in groups."""
    from appliance.trust import pin as pins
    from appliance.trust.fingerprint import Fingerprint

    parsed = Fingerprint.parse(" ".join(fingerprint))
    folder = Home.from_environment().trust
    (pins.replace_pin if replace else pins.pin)(folder, parsed)
    console.result({"pinned": parsed.hex}, _("Pinned: {pin}").format(pin=parsed))
