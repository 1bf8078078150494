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

    # what this machine manages besides itself
    @property
    def sites(self) -> Path:
        """One folder for each site that is installed from here; see :class:`SitePlace`."""
        return self.root / "sites"

    # what exists only while it runs
    @property
    def run(self) -> Path:
        """``supervisor.json`` (pid, start time, endpoint, seal) and Ray's files."""
        return self.root / "run"

    @property
    def tmp(self) -> Path:
        """Mounted as /tmp inside the seal."""
        return self.root / "tmp"


@dataclass(frozen=True, slots=True)
class SitePlace:
    """What the controller keeps of one site, ``sites/<name>``. Holding one touches no disk.

    It holds the site's authorities and every host's secrets: the folder is mode 0700.
    """

    home: Home
    name: str

    @property
    def root(self) -> Path:
        """The site's folder."""
        return self.home.sites / self.name

    @property
    def site_file(self) -> Path:
        """A copy of the ``site.yaml`` that was last planned or installed."""
        return self.root / "site.yaml"

    @property
    def known_hosts(self) -> Path:
        """Host keys in OpenSSH's format: those that were accepted, and no other."""
        return self.root / "known_hosts"

    @property
    def lock(self) -> Path:
        """Held with flock(2) by the one command of this controller that changes the site."""
        return self.root / "lock"

    @property
    def journal(self) -> Path:
        """The site's installations as they run."""
        return self.root / "journal.jsonl"

    @property
    def authority(self) -> Path:
        """The callers' CA, each trust domain's CA and token, the operator's key."""
        return self.root / "authority"

    @property
    def operator_key(self) -> Path:
        """The operator's API key for the site's gateway."""
        return self.authority / "operator.key"

    @property
    def callers_ca(self) -> Path:
        """The CA that callers of the gateway trust."""
        return self.authority / "ca.pem"

    def domain(self, name: str) -> Path:
        """A trust domain's CA, token and serving key."""
        return self.authority / "domains" / name

    @property
    def hosts(self) -> Path:
        """One folder for each host."""
        return self.root / "hosts"

    def host(self, name: str) -> Path:
        """What Ansible copies to that host, as it is."""
        return self.hosts / name

    @property
    def ansible(self) -> Path:
        """ansible-runner's folder: inventory, environment, artifacts."""
        return self.root / "ansible"

    @property
    def endpoint(self) -> Path:
        """Where the site's gateway answers and what it runs, once it is installed."""
        return self.root / "endpoint.json"
