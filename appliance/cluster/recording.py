"""The lifecycle on the ledger: ``seal.closed``, ``appliance.start``, ``appliance.stop``."""

from __future__ import annotations

import os
import pwd
from datetime import UTC, datetime
from pathlib import Path

from appliance.egress import live
from appliance.layout import Home
from appliance.ledger.event import Event
from appliance.ledger.log import Ledger


def record_start(home: Home, release: Path, seen: live.Observation | None) -> None:
    """``seal.closed`` if it is sealed, and ``appliance.start``, with identifiers only."""
    if seen is not None:
        inodes = {f"{kind}_namespace": str(inode) for kind, inode in seen.namespaces.items()}
        record(home, "seal.closed", inodes)
    sealed = "yes" if seen is not None else "no"
    record(home, "appliance.start", {"release": release.resolve().name, "sealed": sealed})


def record(home: Home, action: str, subject: dict[str, str]) -> None:
    """Put it on the ledger; an action that cannot be recorded counts as failed."""
    actor = f"operator:{os.environ.get('SUDO_USER') or _user()}"
    event = Event(actor=actor, action=action, subject=subject, outcome="ok", at=datetime.now(UTC))
    Ledger.open(home).append([event])


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"
