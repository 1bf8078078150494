"""Hosts of a site that are folders on this machine: the same programs and streams, without SSH."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.provision.ssh import Control, Remote


@dataclass(frozen=True, slots=True)
class LocalRemote(Remote):
    """Runs what it is given here."""

    def command(self, argv: Sequence[str], *, sudo: bool = False) -> list[str]:
        return list(argv)


@contextmanager
def local_hosts(folder: Path, *names: str) -> Iterator[dict[str, Remote]]:
    folder.mkdir(exist_ok=True)
    control = Control(folder)
    try:
        yield {
            name: LocalRemote(name, "root", "127.0.0.1", 22, None, folder / "known_hosts", control)
            for name in names
        }
    finally:
        control.end()
