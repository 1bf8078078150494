"""``sovctl trust``: make signing keys, show and pin fingerprints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.options import with_console
from appliance.cli.trust_keys import init, key, publish, revoke, rotate, sign
from appliance.i18n import _
from appliance.layout import Home

if TYPE_CHECKING:
    from tuf.api.metadata import Targets

    from appliance.cli.console import Console
    from appliance.trust.fingerprint import Fingerprint


@click.group(help=_("Keys, the m-of-n root, the pinned fingerprint."))
def trust() -> None:
    """Group of the commands below."""


for _command in (key, init, sign, publish, rotate, revoke):
    trust.add_command(_command)


@trust.command(help=_("Show what this installation trusts, or a supplier's keys."))
@with_console
@click.option(
    "--keys",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help=_("Folder of signing keys to show instead."),
)
@click.option("--qr", is_flag=True, help=_("The fingerprint for paper: words and a QR code."))
def show(console: Console, *, folder: Path | None, qr: bool) -> None:
    """Show who may sign, and the fingerprint."""
    shown = _keys_shown(folder) if folder is not None else _pin_shown()
    if qr and shown.fingerprint is not None:
        from appliance.cli.trust_words import fingerprint_on_paper

        console.result(shown.value, fingerprint_on_paper(shown.fingerprint))
        return
    console.result(shown.value, "\n".join(shown.lines))


@dataclass(frozen=True)
class _Shown:
    fingerprint: Fingerprint | None
    value: dict[str, Any]
    lines: list[str]


def _keys_shown(folder: Path) -> _Shown:
    from tuf.api.metadata import Targets

    from appliance.cli import trust_words as words
    from appliance.trust.passphrase import passphrase_source
    from appliance.trust.repository import DEMO_FIELD, Repository
    from appliance.trust.revocations import Revocations

    repository = Repository.open(folder, passphrase_source())
    root = repository.root
    role = root.roles["root"]
    revocations = Revocations.parse(repository.revocations())
    roles = words.roles_as_json(root, Targets(delegations=repository.delegations))
    value = {
        "fingerprint": repository.fingerprint.hex,
        "words": list(repository.fingerprint.words),
        "version": root.version,
        "threshold": role.threshold,
        "keys": len(role.keyids),
        "expires": root.expires.isoformat(),
        "demo": root.unrecognized_fields.get(DEMO_FIELD) is True,
        "roles": roles,
        "revoked": words.revocations_as_json(revocations),
    }
    text = _("Root {version}, {needed} of {keys} keys, until {until}").format(
        version=root.version,
        needed=role.threshold,
        keys=len(role.keyids),
        until=f"{root.expires:%Y-%m-%d}",
    )
    lines = [
        _("Fingerprint: {fingerprint}").format(fingerprint=repository.fingerprint),
        *words.words_in_rows(repository.fingerprint.words),
        text,
        *([_("Demo keys.")] if value["demo"] else []),
        *words.roles_in_words(roles),
        _("Revoked:"),
        *words.revocations_in_words(revocations),
    ]
    return _Shown(repository.fingerprint, value, lines)


def _pin_shown() -> _Shown:
    from tuf.api.metadata import Metadata, Root

    from appliance.cli import trust_words as words
    from appliance.trust.fingerprint import Fingerprint
    from appliance.trust.pin import load_revocations, load_state

    home = Home.from_environment()
    state = load_state(home.trust)
    revocations = load_revocations(home.trust)
    root = Metadata[Root].from_bytes(state.root).signed if state.root else None
    roles = words.roles_as_json(root, _delegator(home)) if root else {}
    value = {
        "pinned": state.pin.hex if state.pin else None,
        "words": list(state.pin.words) if state.pin else None,
        "root": Fingerprint.of(root).hex if root else None,
        "expires": root.expires.isoformat() if root else None,
        "roles": roles,
        "bundles_seen": sorted(state.seen),
        "latest_time_seen": state.clock.isoformat() if state.clock else None,
        "revoked": words.revocations_as_json(revocations),
    }
    if state.pin is None:
        nothing = _("Nothing is trusted here yet. Run 'sovctl trust pin FINGERPRINT'.")
        return _Shown(None, value, [nothing])
    lines = [
        _("Pinned: {pin}").format(pin=state.pin),
        *words.words_in_rows(state.pin.words),
        _("Bundles seen: {bundles}").format(bundles=", ".join(sorted(state.seen)) or _("none")),
    ]
    if root is not None:
        until = _("Root {version}, until {until}")
        lines.append(until.format(version=root.version, until=f"{root.expires:%Y-%m-%d}"))
        lines += words.roles_in_words(roles)
    lines += [_("Revoked:"), *words.revocations_in_words(revocations)]
    return _Shown(state.pin, value, lines)


def _delegator(home: Home) -> Targets | None:
    """The targets role of the release in use, which says who may sign what; None: none yet."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Targets

    try:
        data = (home.current / "metadata" / "targets.json").read_bytes()
        return Metadata[Targets].from_bytes(data).signed
    except (OSError, RepositoryError):
        return None


@trust.command(help=_("Trust bundles signed under the root with this fingerprint."))
@with_console
@click.argument("fingerprint", nargs=-1, required=True, metavar="FINGERPRINT")
@click.option("--replace", is_flag=True, help=_("Forget the root trusted before."))
def pin(console: Console, *, fingerprint: tuple[str, ...], replace: bool) -> None:
    """Pin a root. The fingerprint may be typed in groups of digits, or as its 32 words."""
    from appliance.trust import pin as pins
    from appliance.trust.fingerprint import Fingerprint

    parsed = Fingerprint.parse(" ".join(fingerprint))
    folder = Home.from_environment().trust
    (pins.replace_pin if replace else pins.pin)(folder, parsed)
    console.result({"pinned": parsed.hex}, _("Pinned: {pin}").format(pin=parsed))
