"""Where everything of one installation lives on disk.

One folder holds an installation, so that it can be backed up, inspected and removed as one thing.
It is ``$SOVCTL_HOME``, or ``$XDG_DATA_HOME/sovctl``, or ``~/.local/share/sovctl``.

Inside the seal the same absolute path is visible (see ``appliance/egress/seal.py``), so a path
means the same thing to a process inside and outside.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of one installation. Holding a ``Home`` touches no disk.

    Folders under ``secrets`` are mode 0700 and their files 0600; the rest is 0755/0644 less umask.
    """

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """The installation the environment names; see the module's first lines."""
        explicit = os.environ.get("SOVCTL_HOME")
        if explicit:
            return cls(Path(explicit).expanduser().absolute())
        data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
        return cls(Path(data).expanduser().absolute() / "sovctl")

    # what came in, and what is installed of it
    @property
    def trust(self) -> Path:
        """The pinned root's fingerprint and the TUF client's trusted metadata."""
        return self.root / "trust"

    @property
    def store(self) -> Path:
        """Content-addressed blobs: ``sha256/ab/abcd…``."""
        return self.root / "store"

    @property
    def releases(self) -> Path:
        """One folder per installed bundle version."""
        return self.root / "releases"

    @property
    def current(self) -> Path:
        """Symbolic link to the release in use; replaced atomically."""
        return self.root / "current"

    @property
    def previous(self) -> Path:
        """Symbolic link to the release before it."""
        return self.root / "previous"

    # what is under way
    @property
    def marker(self) -> Path:
        """Says that this folder is an installation of ours; nothing is removed without it."""
        return self.root / ".sovctl"

    @property
    def cache(self) -> Path:
        """Wheels unpacked while a runtime is installed; may be deleted at any time."""
        return self.root / "cache"

    @property
    def journal(self) -> Path:
        """Plans as they run: intents and completions, one JSON line each."""
        return self.root / "journal"

    @property
    def lock(self) -> Path:
        """Held with flock(2) by the one command that may change this installation."""
        return self.root / "lock"

    # what happened
    @property
    def ledger(self) -> Path:
        """C2SP tlog-tiles on plain files."""
        return self.root / "ledger"

    @property
    def logs(self) -> Path:
        """What the processes print: ``supervisor.log``, ``gateway.log``, ``serve.log``, …"""
        return self.root / "logs"

    # what the site owns
    @property
    def secrets(self) -> Path:
        """Private keys and tokens. Never in a log, never on argv, never in a backup in clear."""
        return self.root / "secrets"

    @property
    def tls(self) -> Path:
        """The site's own CA certificate and the certificates it issued (no private keys)."""
        return self.root / "tls"

    @property
    def registry(self) -> Path:
        """SQLite file: API keys, data sets, jobs, models, adapters.

        In a folder of its own, because SQLite makes files beside it and nothing may be made in
        ``root`` from inside the seal.
        """
        return self.root / "registry" / "registry.sqlite"

    @property
    def datasets(self) -> Path:
        """Imported data sets by digest."""
        return self.root / "datasets"

    @property
    def runs(self) -> Path:
        """Tuning runs: checkpoints, metrics, results."""
        return self.root / "runs"

    @property
    def adapters(self) -> Path:
        """Registered adapters by digest."""
        return self.root / "adapters"

    # what exists only while it runs
    @property
    def run(self) -> Path:
        """``supervisor.json`` (pid, start time, endpoint, seal) and Ray's files."""
        return self.root / "run"

    @property
    def tmp(self) -> Path:
        """Mounted as /tmp inside the seal."""
        return self.root / "tmp"
