"""``sovctl bundle split, join, copy, delta, encrypt, decrypt``: what happens on the way."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import amount
from appliance.cli.options import with_console, with_keys, with_opening
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.bundle.copying import Copied
    from appliance.bundle.opening import Opening
    from appliance.cli.console import Console
    from appliance.cli.options import Signer

_PATH = click.Path(path_type=Path)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _Size(click.ParamType[int]):
    """Bytes as people write them: ``4GB`` (10^9), ``4GiB`` (2^30), ``4000000000``."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        match = re.fullmatch(r"([0-9]{1,15})\s*([KMGT]?)(i?)B?", str(value), re.IGNORECASE)
        if match is None or (match.group(3) and not match.group(2)):
            self.fail(_("'{value}' is not a size such as 4GB or 700MiB").format(value=value))
        unit = match.group(2).upper()
        return int(match.group(1)) * (_BINARY[unit] if match.group(3) else _UNITS[unit])


@click.command()
@click.argument("file", type=_PATH)
@click.option("--size", type=_Size(), required=True, help=_("Of each part: 4GB, 700MiB, …"))
@click.option("--out", type=_PATH, default=Path(), help=_("Folder for the parts (here)."))
@with_keys
@with_console
def split(console: Console, file: Path, *, size: int, out: Path, signer: Signer) -> None:
    """Cut the bundle FILE into parts of exactly --size bytes (the last excepted).

    A bundle is installed straight from its parts, on several disks if need be. Run it again after
    an interruption: parts that are right are kept.
    """
    from appliance.bundle.split import split as split_bundle

    made = split_bundle(file, size, out, signer(), console)
    value = {
        "set": made.index.set_id,
        "part_size": size,
        "kept": made.kept,
        "parts": [
            {"part": str(path), "size": path.stat().st_size, "sha256": digest}
            for path, digest in zip(made.paths, made.index.parts, strict=True)
        ],
    }
    text = _("{count} parts, {first} to {last}; set {set}").format(
        count=len(made.paths),
        first=made.paths[0],
        last=made.paths[-1].name,
        set=made.index.set_id[:12],
    )
    console.result(value, text)


@click.command()
@click.argument("part", type=_PATH)
@click.option("--out", type=_PATH, required=True, help=_("The file to write."))
@with_opening
@with_console
def join(console: Console, part: Path, *, out: Path, opening: Opening) -> None:
    """Write the bundle that PART belongs to as one file again.

    Installing needs no joining: give 'sovctl install' any part.
    """
    from appliance.bundle.copying import join as join_parts

    _copied(console, join_parts(part, out, console, opening))


@click.command()
@click.argument("source", type=_PATH, metavar="FROM")
@click.argument("target", type=_PATH, metavar="TO")
@with_console
def copy(console: Console, source: Path, target: Path) -> None:
    """Copy a bundle or a part; go on where a copy was cut off, and read back what was written.

    What is there and right is kept by its signed digest, whether this command or 'cp' wrote it.
    """
    from appliance.bundle.copying import copy as copy_bundle

    _copied(console, copy_bundle(source, target, console))


@click.command()
@click.argument("full", type=_PATH)
@click.option(
    "--base", type=_PATH, required=True, help=_("What the site has: bundle or bundle.json.")
)
@click.option("--out", type=_PATH, required=True, help=_("The delta to write."))
@click.option("--dry-run", is_flag=True, help=_("Only say what it would carry; reads kilobytes."))
@with_keys
@with_console
def delta(
    console: Console, full: Path, *, base: Path, out: Path, dry_run: bool, signer: Signer
) -> None:
    """Write the bundle FULL without what the bundle --base has."""
    from appliance.bundle.delta import delta as write_delta
    from appliance.bundle.delta import plan_delta, read_base
    from appliance.bundle.reader import BundleReader

    older = read_base(base)
    with BundleReader(full) as reader:
        manifest = reader.manifest
    left = set(plan_delta(manifest, older).left_out)
    saved = sum(blob.size for blob in manifest.blobs() if blob.hex in left)
    carried = [blob for blob in manifest.blobs() if blob.hex not in left]
    value: dict[str, Any] = {
        "bundle": manifest.release_id,
        "base": older.release_id,
        "carried": len(carried),
        "carried_bytes": sum(blob.size for blob in carried),
        "left_out": len(left),
        "left_out_bytes": saved,
    }
    if not dry_run:
        made = write_delta(full, older, out, signer(), console)
        value |= {"delta": str(made.path), "size": made.size}
    text = _("{bundle} from {base}: {carried} files ({size}) to carry, {left} ({saved}) left out")
    console.result(
        value,
        text.format(
            bundle=value["bundle"],
            base=value["base"],
            carried=len(carried),
            size=amount(value["carried_bytes"], "bytes"),
            left=len(left),
            saved=amount(saved, "bytes"),
        ),
    )


@click.command()
@click.argument("file", type=_PATH)
@click.option("--recipient", "recipients", multiple=True, required=True, metavar="age1…",
    help=_("Public key of who may read it; may be given several times."))  # fmt: skip
@click.option("--hidden", is_flag=True, help=_("Encrypt all of it, as one age file."))
@click.option("--out", type=_PATH, required=True, help=_("The file to write."))
@with_keys
@with_console
def encrypt(
    console: Console,
    file: Path,
    *,
    recipients: tuple[str, ...],
    hidden: bool,
    out: Path,
    signer: Signer,
) -> None:
    """Encrypt the bundle FILE to recipients.

    Without --hidden what it holds stays readable, and whoever carries it can verify it.
    """
    from appliance.bundle.encryption import Sealer, encrypt_hidden
    from appliance.bundle.encryption import encrypt as encrypt_blobs

    if hidden:
        size = encrypt_hidden(file, out, recipients, console)
    else:
        size = encrypt_blobs(file, out, Sealer(recipients, signer()), console)
    value = {"bundle": str(out), "size": size, "recipients": list(recipients), "hidden": hidden}
    text = _("{path}   {size}, to {count} recipients")
    console.result(value, text.format(path=out, size=amount(size, "bytes"), count=len(recipients)))


@click.command()
@click.argument("file", type=_PATH)
@click.option("--out", type=_PATH, required=True, help=_("The file to write."))
@with_opening
@with_console
def decrypt(console: Console, file: Path, *, out: Path, opening: Opening) -> None:
    """Write the encrypted bundle FILE in clear. Installing needs no decrypting first."""
    from appliance.bundle.encryption import decrypt as decrypt_bundle

    _copied(console, decrypt_bundle(file, out, console, opening))


def _copied(console: Console, copied: Copied) -> None:
    value = {
        "path": str(copied.path),
        "size": copied.size,
        "kept": copied.kept,
        "written": copied.written,
    }
    text = _("{path} is whole: {size}, of which {kept} were there already")
    console.result(
        value,
        text.format(
            path=copied.path,
            size=amount(copied.size, "bytes"),
            kept=amount(copied.kept, "bytes"),
        ),
    )
