"""``sovctl trust key``, ``init``, ``sign``, ``publish``, ``rotate``, ``revoke``: the supplier."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.options import with_console
from appliance.errors import ConfirmationNeeded, FileUnreadable, RevocationInvalid, TrustKeysExist
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.cli.console import Console
    from appliance.trust.requests import Request

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)

_keys = click.option(
    "--keys", "folder", required=True, type=_FOLDER, help=_("Folder of the signing keys.")
)


def _secrets(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that opens private keys."""
    command = click.option(
        "--passphrase-fd", type=int, help=_("Read the passphrase (or PIN) from this descriptor.")
    )(command)
    return click.option(
        "--pkcs11-module",
        type=click.Path(path_type=Path, dir_okay=False),
        expose_value=False,
        callback=_use_module,
        help=_("The token's PKCS#11 module; else what PYKCS11LIB names."),
    )(command)


def _use_module(_context: object, _parameter: object, value: Path | None) -> None:
    if value is not None:
        os.environ["PYKCS11LIB"] = str(value)


@click.group(help=_("A holder's own key."))
def key() -> None:
    """Group of the commands below."""


@key.command("new", help=_("Make a holder's key: NAME.pem (keep it) and NAME.pub (give it away)."))
@with_console
@click.option("--out", "name", required=True, type=_FILE, help=_("Path without .pem and .pub."))
@_secrets
def key_new(console: Console, *, name: Path, passphrase_fd: int | None) -> None:
    """Make a key, encrypted under a passphrase."""
    from appliance.trust.keys import new_tuf_key, public_key_of, save_pair
    from appliance.trust.passphrase import new_passphrase_source

    private, public = Path(f"{name}.pem"), Path(f"{name}.pub")
    for path in (private, public):
        if path.exists():
            raise TrustKeysExist(folder=path)
    passphrase = new_passphrase_source(passphrase_fd)
    save_pair(private, new_tuf_key(), passphrase)
    made = public_key_of(str(public), passphrase)
    text = _("Keep {private}; give {public} to who runs 'sovctl trust init'.\nKey: {id}")
    value = {"key": made.keyid, "private": str(private), "public": str(public)}
    console.result(value, text.format(private=private, public=public, id=made.keyid))


@key.command("show", help=_("Show the id of a key: a .pub or .pem file, or hsm:ID?label=TOKEN."))
@with_console
@click.argument("reference")
@_secrets
def key_show(console: Console, *, reference: str, passphrase_fd: int | None) -> None:
    """Show a public key."""
    from appliance.trust.keys import holder_of, is_token, open_signer, public_key_of
    from appliance.trust.passphrase import passphrase_source

    passphrase = passphrase_source(passphrase_fd)
    private = reference.endswith(".pem") and not is_token(reference)
    opened = open_signer(reference, passphrase).public_key if private else None
    shown = opened or public_key_of(reference, passphrase)
    value = {"key": shown.keyid, "type": shown.keytype, "holder": holder_of(shown)}
    console.result(value, f"{shown.keyid}  {shown.keytype}  {holder_of(shown)}".rstrip())


@click.command(help=_("Make an m-of-n root and signing keys (on the supplier's side)."))
@with_console
@click.option("--threshold", default=2, show_default=True, help=_("Root keys that must sign."))
@click.option("--keys", default=3, show_default=True, help=_("Root keys to make here."))
@click.option(
    "--holder",
    "holders",
    multiple=True,
    help=_("A holder's .pub file or hsm:… instead of keys made here; repeat it."),
)
@click.option("--out", "folder", required=True, type=_FOLDER, help=_("Folder for keys and roots."))
@click.option("--demo", is_flag=True, help=_("Passphrase-free keys, labelled so to every site."))
@_secrets
def init(
    console: Console,
    *,
    threshold: int,
    keys: int,
    holders: tuple[str, ...],
    folder: Path,
    demo: bool,
    passphrase_fd: int | None,
) -> None:
    """Make keys and the first root, or a request for one that holders sign elsewhere."""
    from appliance.trust.passphrase import new_passphrase_source
    from appliance.trust.repository import Repository, Threshold

    if holders:
        _propose(console, folder, holders, threshold, passphrase_fd)
        return
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


def _propose(
    console: Console, folder: Path, holders: tuple[str, ...], needed: int, descriptor: int | None
) -> None:
    from appliance.trust.keys import public_key_of
    from appliance.trust.passphrase import new_passphrase_source
    from appliance.trust.repository import Repository

    passphrase = new_passphrase_source(descriptor)
    named = [public_key_of(reference, passphrase) for reference in holders]
    request = Repository.propose(folder, named, needed, passphrase)
    text = _(
        "The first root waits for {needed} of {all} signatures. Each holder runs\n"
        "  sovctl trust sign {request} --key KEY\n"
        "and then, here: sovctl trust publish --keys {folder} REQUEST…"
    )
    value = {"request": str(request), "threshold": needed, "keys": len(named)}
    console.result(
        value, text.format(needed=needed, all=len(named), request=request, folder=folder)
    )


@click.command(help=_("Sign a request with a holder's key, after showing what it says."))
@with_console
@click.argument("file", metavar="REQUEST", type=_FILE)
@click.option("--key", "reference", required=True, help=_("A .pem file, or hsm:ID?label=TOKEN."))
@click.option("--out", type=_FILE, help=_("Write the signed copy there instead of in place."))
@click.option("--yes", is_flag=True, help=_("Do not ask; needed without a terminal."))
@_secrets
def sign(
    console: Console,
    *,
    file: Path,
    reference: str,
    out: Path | None,
    yes: bool,
    passphrase_fd: int | None,
) -> None:
    """Show a request in words, ask, and add one signature."""
    from appliance.cli.trust_words import request_as_json, request_in_words
    from appliance.trust.files import replace_file
    from appliance.trust.keys import open_signer
    from appliance.trust.passphrase import passphrase_source

    request = _read(file)
    console.say(request_in_words(request))
    if not yes:
        if not sys.stdin.isatty():
            reason = _("A signature is given by a person who read this.")
            raise ConfirmationNeeded(command=f"sovctl trust sign {file}", reason=reason)
        click.confirm(_("Sign this?"), abort=True, err=True)
    signed = request.signed(open_signer(reference, passphrase_source(passphrase_fd)))
    replace_file(out or file, signed.encode())
    lacking = sum(count for _quorum, count in signed.missing())
    text = (
        _("Signed: {path}. {count} more signatures are needed.").format(
            path=out or file, count=lacking
        )
        if lacking
        else _("Signed: {path}. It has all it needs: 'sovctl trust publish'.").format(
            path=out or file
        )
    )
    console.result({**request_as_json(signed), "path": str(out or file)}, text)


@click.command(help=_("Merge signed copies of a request and put it in force."))
@with_console
@_keys
@click.argument("files", metavar="REQUEST…", nargs=-1, required=True, type=_FILE)
@_secrets
def publish(
    console: Console, *, folder: Path, files: tuple[Path, ...], passphrase_fd: int | None
) -> None:
    """Check every signature and threshold, then publish."""
    from appliance.trust.ceremony import publish as publish_requests
    from appliance.trust.passphrase import passphrase_source

    done = publish_requests(folder, passphrase_source(passphrase_fd), [_read(f) for f in files])
    value = {
        "role": done.role,
        "version": done.version,
        "bundle": done.bundle,
        "fingerprint": done.fingerprint.hex if done.fingerprint else None,
    }
    if done.fingerprint is None:
        text = _("'{role}' of the bundle {bundle} is signed; build it again.").format(
            role=done.role, bundle=done.bundle
        )
    else:
        text = _("Root {version} is in force.\nFingerprint: {fingerprint}").format(
            version=done.version, fingerprint=done.fingerprint
        )
    console.result(value, text)


@click.command(help=_("Replace keys and thresholds. Sites follow from the root they trust."))
@with_console
@_keys
@click.option("--role", "roles", multiple=True, help=_("Role that gets a new key made here."))
@click.option(
    "--role-key",
    "given",
    multiple=True,
    metavar="ROLE=KEY",
    help=_("Role whose key is a .pub file (kept elsewhere) or hsm:ID?label=TOKEN."),
)
@click.option("--holder", "holders", multiple=True, help=_("Root keys from now on; repeat it."))
@click.option("--root-keys", type=int, help=_("Make this many new root keys here."))
@click.option("--threshold", type=int, help=_("Root keys that must sign from now on."))
@_secrets
def rotate(
    console: Console,
    *,
    folder: Path,
    roles: tuple[str, ...],
    given: tuple[str, ...],
    holders: tuple[str, ...],
    root_keys: int | None,
    threshold: int | None,
    passphrase_fd: int | None,
) -> None:
    """Publish a new root, or write a request where its keys are elsewhere."""
    from appliance.trust.keys import public_key_of
    from appliance.trust.passphrase import passphrase_source
    from appliance.trust.repository import Repository, Threshold

    if not (roles or given or holders or root_keys or threshold):
        raise click.UsageError(_("Say what to replace: --role, --role-key, --holder, --threshold."))
    passphrase = passphrase_source(passphrase_fd)
    repository = Repository.open(folder, passphrase)
    pairs = dict(_pair(text) for text in given)
    request = None
    if root_keys is not None:
        needed = threshold or repository.root.roles["root"].threshold
        repository.rotate_root(Threshold(needed, root_keys))
    if roles or pairs or holders or (threshold and root_keys is None):
        named = [public_key_of(reference, passphrase) for reference in holders] or None
        wanted = None if root_keys is not None else threshold
        request = repository.rotate(roles, pairs, named, wanted)
    value = {
        "request": str(request) if request else None,
        "version": repository.root.version,
        "fingerprint": repository.fingerprint.hex,
    }
    if request is not None:
        text = _("Nothing changed yet: {request} waits for signatures ('sovctl trust sign').")
        console.result(value, text.format(request=request))
        return
    text = _("In force: root {version}. The next bundle carries it.\nFingerprint: {fingerprint}")
    shown = text.format(version=repository.root.version, fingerprint=repository.fingerprint)
    console.result(value, shown)


def _pair(text: str) -> tuple[str, str]:
    role, separator, reference = text.partition("=")
    if not separator or not reference:
        raise click.UsageError(_("--role-key takes ROLE=KEY, not {0}.").format(text))
    return role, reference


@click.command(help=_("Take back a bundle, a content or a key in every bundle from now on."))
@with_console
@_keys
@click.option("--bundle", metavar="DIGEST", help=_("Digest of a bundle ('bundle inspect')."))
@click.option("--content", metavar="DIGEST", help=_("Digest of an artefact, a file, an adapter."))
@click.option("--key", "key_id", metavar="ID", help=_("Id of a key that was replaced."))
@click.option("--reason", required=True, help=_("Why, for whoever meets it."))
def revoke(
    console: Console,
    *,
    folder: Path,
    bundle: str | None,
    content: str | None,
    key_id: str | None,
    reason: str,
) -> None:
    """Add to the list that every bundle built from now on carries."""
    from appliance.trust.passphrase import passphrase_source
    from appliance.trust.repository import Repository
    from appliance.trust.revocations import Kind

    named: list[tuple[Kind, str]] = []
    if bundle:
        named.append(("bundle", bundle))
    if content:
        named.append(("content", content))
    if key_id:
        named.append(("key", key_id))
    if not named:
        why = _("Name what: --bundle, --content or --key.")
        raise RevocationInvalid(subject=_("Nothing"), reason=why)
    repository = Repository.open(folder, passphrase_source())
    for kind, identity in named:
        repository.revoke(kind, identity, reason)
    value = {"revoked": [{"kind": kind, "id": identity} for kind, identity in named]}
    text = _("Revoked. Sites learn of it with the next bundle they take in.")
    console.result(value, text)


def _read(path: Path) -> Request:
    from appliance.trust.requests import Request

    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileUnreadable(path=path, reason=error.strerror or str(error)) from error
    return Request.parse(data, path)
