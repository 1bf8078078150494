"""Options every command shares."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import click

from appliance.cli.console import Console
from appliance.i18n import _

if TYPE_CHECKING:
    from collections.abc import Callable

    from appliance.bundle.parts import Wanted
    from appliance.trust.repository import Repository

R = TypeVar("R")
Signer: TypeAlias = "Callable[[], Repository]"
"""Opens the signing keys; asks for their passphrase when one is first used."""


def with_console(command: Callable[..., R]) -> Callable[..., R]:
    """Add ``--json`` and pass the command a :class:`Console` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help=_("Print the result as JSON."))
    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, **kwargs: Any) -> R:
        return command(Console(as_json=as_json), *args, **kwargs)

    return wrapped


def with_keys(command: Callable[..., R]) -> Callable[..., R]:
    """Add ``--keys`` and ``--passphrase-fd`` and pass ``signer``, which opens them when called."""

    @click.option(
        "--keys", type=click.Path(path_type=Path), default=Path("keys"), show_default=True,
        help=_("Folder that 'sovctl trust init' made."),
    )  # fmt: skip
    @click.option(
        "--passphrase-fd", type=int, default=None,
        help=_("Read the signing keys' passphrase from this file descriptor."),
    )  # fmt: skip
    @functools.wraps(command)
    def wrapped(*args: Any, keys: Path, passphrase_fd: int | None, **kwargs: Any) -> R:
        from appliance.trust.passphrase import passphrase_source
        from appliance.trust.repository import Repository

        def signer() -> Repository:
            return Repository.open(keys, passphrase_source(passphrase_fd))

        return command(*args, signer=signer, **kwargs)

    return wrapped


def with_opening(command: Callable[..., R]) -> Callable[..., R]:
    """Add ``--parts`` and ``--identity`` and pass them on as ``opening``.

    On a terminal, whoever sits there is asked for a part that is missing.
    """

    @click.option(
        "--parts", multiple=True, type=click.Path(path_type=Path),
        help=_("A further folder with parts of the bundle; may be given several times."),
    )  # fmt: skip
    @click.option(
        "--identity", type=click.Path(path_type=Path),
        help=_("File with the age identity the bundle is encrypted to."),
    )  # fmt: skip
    @functools.wraps(command)
    def wrapped(*args: Any, parts: tuple[Path, ...], identity: Path | None, **kwargs: Any) -> R:
        from appliance.bundle.opening import Opening

        somebody = sys.stdin.isatty() and sys.stderr.isatty()
        opening = Opening(parts, identity, _ask_for_part if somebody else None)
        return command(*args, opening=opening, **kwargs)

    return wrapped


def _ask_for_part(wanted: Wanted) -> Path | None:
    """Ask for the next disk; an empty answer means it is where the last one was."""
    text = _("Part {number} of {total} of {bundle} (set {set}) is needed. Insert its disk.")
    index = wanted.index
    click.echo(
        text.format(
            number=wanted.number, total=len(index.parts), bundle=index, set=index.set_id[:12]
        ),
        err=True,
    )
    folders = ", ".join(str(folder) for folder in dict.fromkeys(wanted.folders))
    question = _("Press Enter to look in {folders}, or type another folder and Enter.")
    # A whole line each: under a bar, rich holds back what does not end in one.
    click.echo(question.format(folders=folders), err=True)
    typed = sys.stdin.readline()
    if not typed:
        raise click.Abort
    return Path(typed.strip()).expanduser() if typed.strip() else None
