"""A control group for each host, as each machine has its own.

systemd-nspawn puts a host below the group it was started in. Two hosts that were started in the
same one would share all groups of the same name, and each systemd would delete the other's: units
then fail with 219/CGROUP, and stopping one waits for the other host's processes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_ENTER = 'for group in $0; do echo $$ >"$group/cgroup.procs" || exit; done; exec "$@"'


def enter(host: str, command: list[str]) -> list[str]:
    """The command, to be run in the groups of ``host``, which are made."""
    groups = [top / host for top in _hierarchies()]
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
    return ["sh", "-c", _ENTER, " ".join(map(str, groups)), *command]


def remove(lab: str) -> None:
    """Delete the groups of a lab's hosts; nothing runs in them any more."""
    for top in _hierarchies():
        for group in top.glob(f"{lab}-*"):
            below = sorted(group.rglob("*/"), key=lambda path: len(path.parts), reverse=True)
            for each in (*(path for path in below if path.is_dir()), group):
                with contextlib.suppress(OSError):
                    each.rmdir()


def _hierarchies() -> list[Path]:
    """Those in which systemd keeps its units: that of version 2, and its own of version 1."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _source, options = right.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            found.append(Path(left.split()[4]))
    return found
