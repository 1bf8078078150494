"""What the operator sees: text and bars on a terminal, plain lines in a pipe, JSON for machines.

Results go to standard output; narration, bars and errors go to standard error, so that
``sovctl … --json | jq`` always works. Without a terminal there is no colour and no bar: a task is
one line when it starts and one when it ends.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from appliance.errors import ApplianceError
    from appliance.progress import Task, Unit


class _LineTask:
    """A task in a pipe: its start and its end are lines, its middle is silence."""

    def __init__(self) -> None:
        self.done = 0
        self.remark = ""

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.remark = text


class _BarTask:
    def __init__(self, advance: Callable[[int], None], note: Callable[[str], None]) -> None:
        self.advance = advance
        self.note = note


class Console:
    """Prints results, and is the :class:`appliance.progress.Progress` of every command.

    ``as_json`` switches what :meth:`result` prints, and silences narration.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.interactive = sys.stderr.isatty() and not as_json

    def result(self, value: Any, text: str) -> None:
        """Print a command's result: ``value`` as JSON for machines, ``text`` for people."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=False) if self.as_json else text)

    def say(self, text: str) -> None:
        """One line of narration on standard error."""
        if not self.as_json:
            click.echo(text, err=True)

    def error(self, error: ApplianceError) -> None:
        """Print a diagnostic error: code, what, why, what to do next."""
        if self.as_json:
            click.echo(json.dumps({"error": error.as_json()}, ensure_ascii=False), err=True)
            return
        what, why, fix = error.sentences()
        colour = self.interactive
        label = click.style("error", fg="red", bold=True) if colour else "error"
        click.echo(f"{label}: {error.code}\n\n  {what}\n  {why}\n\n  → {fix}", err=True)

    @contextmanager
    def task(self, title: str, total: int | None, unit: Unit) -> Iterator[Task]:
        """See :meth:`appliance.progress.Progress.task`."""
        if self.interactive:
            with self._bar(title, total, unit) as bar:
                yield bar
            return
        started = time.monotonic()
        if not self.as_json:
            size = f" ({amount(total, unit)})" if total else ""
            click.echo(f"{title}{size} …", err=True)
        line = _LineTask()
        yield line
        if not self.as_json:
            took = time.monotonic() - started
            done = f" {amount(line.done, unit)}" if line.done else ""
            remark = f" {line.remark}" if line.remark else ""
            click.echo(f"{title}: done{done} in {took:.1f} s{remark}", err=True)

    @contextmanager
    def _bar(self, title: str, total: int | None, unit: Unit) -> Iterator[Task]:
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        counts = (
            [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
        )
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *counts,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
            console=RichConsole(stderr=True),
        ) as bars:
            bar = bars.add_task(title, total=total, remark="")
            yield _BarTask(
                lambda n: bars.advance(bar, n), lambda text: bars.update(bar, remark=text)
            )


def amount(count: int, unit: Unit) -> str:
    """``count`` as a person reads it: bytes in powers of 1000, the rest as a number."""
    if unit != "bytes":
        return f"{count} {unit}"
    value = float(count)
    for suffix in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {suffix}" if suffix == "B" else f"{value:.1f} {suffix}"
        value /= 1000
    return f"{value:.2f} TB"
