"""The record of plans as they run: what was intended, what was done, what failed.

An append-only file of JSON lines, each flushed to the disk before the act it announces. A kill or
a power cut can tear the last line only; such a tail is ignored when read and cut off when the next
line is written. A damaged line *before* the last is not a torn write but a damaged file, and is
refused (:class:`~appliance.errors.JournalDamaged`).

    journal = Journal(home.journal / "install.jsonl")
    journal.append(Entry(plan="3f…", phase="runtime", mark="intent", at=now))
    journal.unfinished()          # the plan that was begun and neither finished nor given up
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from appliance.errors import JournalDamaged
from appliance.store.blobs import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Mark = Literal["begin", "intent", "done", "failed", "end", "given-up"]


class Entry(BaseModel):
    """One line.

    ``begin`` opens a plan (``phase`` is empty; ``release`` is what it installs, ``replaces`` what
    ran before); ``intent``, ``done`` and ``failed`` belong to a phase; ``end`` closes a plan that
    succeeded and ``given-up`` one that was rolled back. ``reason`` tells why it failed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: str
    phase: str = ""
    mark: Mark
    at: datetime
    release: str = ""
    replaces: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A plan that was interrupted: what it was installing, over what, and how far it came.

    ``open_phases`` were intended and not recorded as done. Such a phase runs again even if its end
    state is true, because what follows the act in it (its ledger entry) may be missing. ``reason``
    is why it failed; empty if it was cut off.
    """

    plan: str
    release: str
    replaces: str | None
    begun: datetime
    open_phases: frozenset[str] = frozenset()
    reason: str = ""

    def after(self, entry: Entry) -> Unfinished:
        """What is unfinished once a phase's ``entry`` is read too."""
        if entry.mark == "done":
            return replace(self, open_phases=self.open_phases - {entry.phase})
        return replace(self, open_phases=self.open_phases | {entry.phase}, reason=entry.reason)


def parse(data: bytes, path: Path) -> tuple[list[Entry], int]:
    """Read whole lines; return them and how many bytes they take. A torn last line is left out.

    Raises :class:`JournalDamaged` for a whole line that is not an entry.
    """
    whole = data.rfind(b"\n") + 1
    entries = []
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            entries.append(Entry.model_validate_json(line))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise JournalDamaged(path=path, line=number, reason=reason) from error
    return entries, whole


def find_unfinished(entries: Iterable[Entry]) -> Unfinished | None:
    """The last plan, if it was begun and neither ended nor given up. Pure."""
    found: Unfinished | None = None
    for entry in entries:
        if entry.mark == "begin":
            resumes = found is not None and found.release == entry.release
            still_open = found.open_phases if found is not None and resumes else frozenset()
            found = Unfinished(entry.plan, entry.release, entry.replaces, entry.at, still_open)
        elif entry.mark in {"end", "given-up"}:
            found = None
        elif found is not None and entry.phase:
            found = found.after(entry)
    return found


class Journal:
    """The journal at ``path``. Constructing one touches no disk; writers hold the home's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> Sequence[Entry]:
        """Every whole line, oldest first; none if there is no journal."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        return parse(data, self.path)[0]

    def unfinished(self) -> Unfinished | None:
        """The plan that was interrupted, if the last one was."""
        return find_unfinished(self.entries())

    def append(self, entry: Entry) -> None:
        """Write one line; it is on the disk when this returns."""
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self.path, flags, 0o644)
        try:
            _cut_torn_tail(descriptor)
            _write_all(descriptor, entry.model_dump_json(exclude_defaults=True).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(self.path.parent)


def _cut_torn_tail(descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        data = os.pread(descriptor, size, 0)
        os.ftruncate(descriptor, data.rfind(b"\n") + 1)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
