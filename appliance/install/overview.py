"""What is installed and what runs, from files and, where it runs, from the gateway.

Everything here works on a stopped or half-broken installation too; it then knows less.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cluster import lifecycle
from appliance.errors import ApplianceError, NotInstalled
from appliance.install.break_glass import broken_for
from appliance.install.embedded import journal_of
from appliance.install.lock import holder
from appliance.ledger.files import LedgerFiles
from appliance.ledger.note import Checkpoint, NoteInvalid, parse_note
from appliance.store.releases import Releases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from appliance.layout import Home


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """The newest checkpoint, not verified here ('sovctl audit verify' does that)."""

    origin: str
    size: int
    root: str


@dataclass(frozen=True)
class Overview:
    """The state of one installation. ``disk`` is bytes by area; ``live`` is the gateway's own
    account (nodes, models, adapters, jobs, seal), empty when it does not answer; ``busy`` is the
    command that holds the lock and ``interrupted`` the release a broken-off install was making;
    ``break_glass`` why and past what expiry the release in use was let in."""

    home: str
    phase: str
    detail: str
    endpoint: str | None
    sealed: bool | None
    started: str
    release: str | None
    previous: str | None
    releases: tuple[str, ...]
    ledger: LedgerHead | None
    disk: Mapping[str, int]
    free: int
    models: tuple[str, ...]
    busy: str | None
    interrupted: str | None
    problem: str | None = None
    break_glass: Mapping[str, Any] | None = None
    live: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """One flat object: the gateway's account, and over it what is known from outside."""
        value = asdict(self)
        live = value.pop("live")
        return {**live, **value, "models": live.get("models") or list(self.models)}


def look(home: Home, ask: Callable[[], Mapping[str, Any]]) -> Overview:
    """Read the state of ``home``; ``ask`` gets the gateway's account where it runs.

    Raises :class:`NotInstalled` if there is nothing at all.
    """
    releases = Releases(home)
    current, previous = releases.current(), releases.previous()
    if not home.root.is_dir() or (current is None and not home.marker.exists()):
        raise NotInstalled(home=home.root)
    state = lifecycle.state(home)
    live: Mapping[str, Any] = {}
    problem = None
    if state.running and state.phase == "healthy":
        try:
            live = ask()
        except ApplianceError as error:
            problem = " ".join(error.sentences()[:2])
    owner = holder(home)
    unfinished = journal_of(home).unfinished()
    return Overview(
        home=str(home.root),
        phase=state.phase,
        detail=state.detail,
        endpoint=state.endpoint.url if state.endpoint else None,
        sealed=state.endpoint.sealed if state.endpoint else None,
        started=state.started,
        release=current.id if current else None,
        previous=previous.id if previous else None,
        releases=tuple(release.id for release in releases.list()),
        ledger=ledger_head(home),
        disk=usage(home),
        free=shutil.disk_usage(home.root).free,
        models=_model_names(releases),
        busy=f"{owner.command} ({owner.pid})" if owner else None,
        interrupted=unfinished.release if unfinished and not owner else None,
        problem=problem,
        break_glass=broken_for(home, current.id if current else None),
        live=live,
    )


def ledger_head(home: Home) -> LedgerHead | None:
    """The ledger's newest checkpoint; None if there is none that can be read."""
    try:
        head = Checkpoint.parse(parse_note(LedgerFiles(home.ledger).checkpoint()).text)
    except (ApplianceError, NoteInvalid, OSError):
        return None
    return LedgerHead(head.origin, head.size, head.root.hex())


def usage(home: Home) -> dict[str, int]:
    """Bytes on disk by area; a file linked into several areas counts in the first."""
    seen: set[tuple[int, int]] = set()
    areas = {
        "store": home.store,
        "releases": home.releases,
        "datasets": home.datasets,
        "runs": home.runs,
        "adapters": home.adapters,
        "ledger": home.ledger,
        "logs": home.logs,
        "tmp": home.tmp,
    }
    return {name: _bytes_below(str(folder), seen) for name, folder in areas.items()}


def _bytes_below(folder: str, seen: set[tuple[int, int]]) -> int:
    total = 0
    pending = [folder]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:  # it went away, or is not ours to read
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                    continue
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if status.st_nlink > 1:
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
            total += status.st_blocks * 512
    return total


def _model_names(releases: Releases) -> tuple[str, ...]:
    current = releases.current()
    if current is None:
        return ()
    try:
        return tuple(artefact.name for artefact in current.manifest().of_kind("model"))
    except ApplianceError:
        return ()


def log_files(home: Home) -> dict[str, Path]:
    """Component → its log, the newest generation of each."""
    found = sorted(home.logs.glob("*.log")) if home.logs.is_dir() else []
    return {path.stem: path for path in found}
