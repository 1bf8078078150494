"""``sovctl audit``: read, verify and quote the ledger.

It reads the files themselves, so it works when the appliance is stopped, and on a copy of the
ledger (``--ledger``) on a machine that never had the appliance.
"""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.errors import (
    ExitCode,
    FileUnreadable,
    LedgerDamaged,
    LedgerEntryMissing,
    LedgerKeyUnusable,
    LedgerMissing,
)
from appliance.i18n import N_, _
from appliance.layout import Home

if TYPE_CHECKING:
    from appliance.ledger.event import Event
    from appliance.ledger.files import LedgerFiles
    from appliance.ledger.note import Checkpoint, Verifier
    from appliance.ledger.verify import Verdict

R = TypeVar("R")

_AGO = re.compile(r"(\d{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class _Since(click.ParamType[datetime]):
    """A moment: ``30m``, ``2h``, ``7d`` ago, or an ISO date or time (UTC unless it says)."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, datetime):
            return value
        ago = _AGO.fullmatch(value)
        if ago:
            return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(_("give 30m, 2h, 7d, or a date such as 2026-11-24 or 2026-11-24T08:00Z"))
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _on_ledger(command: Callable[..., R]) -> Callable[..., R]:
    """Add ``--ledger`` and pass the command the files of that ledger as its second argument."""

    @click.option(
        "--ledger",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        help=_("Another ledger folder, a copy for instance. Default: this installation's."),
    )
    @functools.wraps(command)
    def wrapped(console: Console, *args: Any, folder: Path | None, **kwargs: Any) -> R:
        from appliance.ledger.files import CHECKPOINT, LedgerFiles

        root = folder or Home.from_environment().ledger
        try:
            if not (root / "tile").exists():  # with entries, a missing checkpoint is a finding
                (root / CHECKPOINT).stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LedgerMissing(path=root) from error
        except OSError as error:
            raise FileUnreadable(path=root, reason=error.strerror or error) from error
        return command(console, LedgerFiles(root), *args, **kwargs)

    return wrapped


_key_option = click.option(
    "--key",
    metavar="VKEY",
    help=_("Verifier string, or a file that holds it. Default: the ledger's own verifier.txt."),
)


@click.group()
def audit() -> None:
    """Read and verify the ledger."""


@audit.command("log")
@with_console
@_on_ledger
@click.option("--since", type=_Since(), help=_("From then on: 30m, 2h, 7d, or a date (UTC)."))
@click.option("--action", help=_("Only this action, or all of a group: tune, adapter.load."))
@click.option("--last", type=click.IntRange(min=1), help=_("Only the last N that match."))
def log(
    console: Console,
    files: LedgerFiles,
    since: datetime | None,
    action: str | None,
    last: int | None,
) -> None:
    """List what happened, oldest first."""
    matching = (
        (index, event)
        for index, event in _events(files)
        if (since is None or event.at >= since) and (action is None or _is(event.action, action))
    )
    found = deque(matching, maxlen=last) if last else matching
    if console.as_json:
        console.result([{"index": i, **event.as_json()} for i, event in found], "")
        return
    for index, event in found:
        click.echo(_line(index, event))


@audit.command("verify")
@with_console
@_on_ledger
@_key_option
@click.option(
    "--against",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="OLD_CHECKPOINT",
    help=_("A checkpoint kept from earlier: show that nothing before it changed."),
)
def verify(console: Console, files: LedgerFiles, key: str | None, against: Path | None) -> int:
    """Check every entry, every tile and the signature. Exit status 8 if anything is wrong."""
    from appliance.ledger.verify import verify as check

    older = None if against is None else _read(against)
    verifier = _verifier(files, key)
    verdict = check(files.root, verifier, console, older)
    report = {**verdict.as_json(), "verifier": str(verifier), "key_from": _key_origin(key)}
    console.result(report, _verdict_text(verdict, verifier, key))
    return int(ExitCode.OK if verdict.ok else ExitCode.VERDICT)


@audit.command("prove")
@with_console
@_on_ledger
@_key_option
@click.argument("index", type=click.IntRange(min=0))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help=_("Write the proof there instead of standard output."),
)
def prove(
    console: Console, files: LedgerFiles, key: str | None, index: int, out: Path | None
) -> None:
    """Make a stand-alone proof that entry INDEX is in the ledger (C2SP tlog-proof)."""
    from appliance.ledger.event import Event, EventInvalid
    from appliance.ledger.files import TileUnreadable
    from appliance.ledger.note import NoteInvalid
    from appliance.ledger.proof import ProofInvalid
    from appliance.ledger.proof import prove as make

    head = _head(files, key)
    if index >= head.size:
        raise LedgerEntryMissing(index=index, size=head.size)
    try:
        proof = make(files, index, _verifier(files, key))
    except (NoteInvalid, EventInvalid, TileUnreadable, ProofInvalid, OSError) as error:
        raise LedgerDamaged(reason=error, path=files.root) from error
    text = proof.encode()
    if out is not None:
        _write(out, text)
        console.say(_("Proof of entry {index} written to {out}.").format(index=index, out=out))
        text = ""
    value = {"index": index, "event": Event.decode(proof.entry).as_json(), "proof": proof.encode()}
    if console.as_json or text:
        console.result(value, text.removesuffix("\n"))


@audit.command("checkpoint")
@with_console
@_on_ledger
@_key_option
def checkpoint(console: Console, files: LedgerFiles, key: str | None) -> None:
    """Print the signed head of the ledger. Keep it on another machine, for 'verify --against'."""
    head = _head(files, key)
    note = files.checkpoint().decode()
    value = {
        "origin": head.origin,
        "size": head.size,
        "root": head.root.hex(),
        "verifier": str(_verifier(files, key)),
        "note": note,
    }
    console.result(value, note.removesuffix("\n"))


def _events(files: LedgerFiles) -> Iterator[tuple[int, Event]]:
    from appliance.ledger.event import Event, EventInvalid
    from appliance.ledger.files import TileUnreadable

    try:
        for index, entry in files.walk(0, _head(files, None).size):
            yield index, Event.decode(entry)
    except (TileUnreadable, EventInvalid) as error:
        raise LedgerDamaged(reason=error, path=files.root) from error


def _head(files: LedgerFiles, key: str | None) -> Checkpoint:
    from appliance.ledger.note import NoteInvalid, verify_checkpoint

    try:
        return verify_checkpoint(files.checkpoint(), _verifier(files, key))
    except NoteInvalid as error:
        raise LedgerDamaged(reason=f"checkpoint: {error}", path=files.root) from error
    except OSError as error:
        raise FileUnreadable(path=files.root, reason=error.strerror or error) from error


def _verifier(files: LedgerFiles, key: str | None) -> Verifier:
    from appliance.ledger.files import VERIFIER
    from appliance.ledger.note import NoteInvalid, Verifier

    try:
        if key is None:
            return files.verifier()
        text = _read(Path(key)).decode("utf-8", "replace") if "+" not in key else key
        return Verifier.parse(text.strip())
    except NoteInvalid as error:
        where = files.root / VERIFIER if key is None else key
        raise LedgerKeyUnusable(path=where, reason=f"It is no verifier: {error}.") from error
    except OSError as error:
        raise LedgerKeyUnusable(
            path=files.root / VERIFIER, reason=f"It cannot be read: {error.strerror}."
        ) from error


def _is(action: str, wanted: str) -> bool:
    return action == wanted or action.startswith(f"{wanted}.")


def _line(index: int, event: Event) -> str:
    subject = " ".join(f"{name}={value}" for name, value in sorted(event.subject.items()))
    at = event.at.strftime("%Y-%m-%d %H:%M:%SZ")
    return f"{index:>7}  {at}  {event.outcome:<7}  {event.action:<18}  {event.actor}  {subject}"


def _key_origin(key: str | None) -> str:
    return "ledger" if key is None else "operator"


def _verdict_text(verdict: Verdict, verifier: Verifier, key: str | None) -> str:
    head = verdict.checkpoint
    if verdict.ok:
        assert head is not None
        lines = [
            _("The ledger is whole: {size} entries of {origin}, root {root}.").format(
                size=head.size, origin=head.origin, root=head.root.hex()
            )
        ]
        if verdict.older is not None:
            lines.append(
                _("It extends the older checkpoint of {size} entries.").format(
                    size=verdict.older.size
                )
            )
        if key is None:
            lines.append(
                _(
                    "Checked with the key the ledger names for itself; give --key with one you kept"
                    " elsewhere:\n  {verifier}"
                ).format(verifier=verifier)
            )
        return "\n".join(lines)
    lines = [_("The ledger is NOT as it was signed.")]
    if verdict.first_bad is not None:
        lines.append(_("The first bad entry is {index}.").format(index=verdict.first_bad))
    for fault in verdict.faults[:10]:
        at = "" if fault.index is None else _(", entry {index}").format(index=fault.index)
        lines.append(f"  {fault.path}{at}: {fault.reason}")
    if len(verdict.faults) > 10:
        lines.append(_("  … and {count} more").format(count=len(verdict.faults) - 10))
    lines.append(_(_NEXT))
    return "\n".join(lines)


_NEXT = N_("→ Copy the ledger folder away as it is, then compare it with a backup or a checkpoint.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileUnreadable(path=path, reason=error.strerror or error) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise FileUnreadable(path=path, reason=error.strerror or error) from error
