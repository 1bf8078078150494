"""Which labs there are on this machine, and how one is ended when whoever made it cannot do so.

Every lab has a record below :data:`REGISTER` for as long as anything of it may exist. A lab's
namespaces, its hosts' processes and its overlays all carry its id, so they are found without its
folder. ``sweep`` ends the labs whose maker is gone; those that a person keeps up are left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab import cgroups
from tests.lab.network import Fabric, namespaces

REGISTER = Path("/run/sovctl-labs")


@dataclass(frozen=True)
class Record:
    """Where a lab is and who made it; ``born`` tells its maker from a later process of that id."""

    id: str
    folder: str
    maker: int
    born: str
    kept: bool

    @classmethod
    def mine(cls, lab: str, folder: Path, *, kept: bool) -> Record:
        return cls(lab, str(folder), os.getpid(), _born(os.getpid()), kept)

    @property
    def in_use(self) -> bool:
        """Whether the process that made it still runs."""
        return bool(self.born) and _born(self.maker) == self.born

    def write(self) -> None:
        REGISTER.mkdir(mode=0o700, exist_ok=True)
        (REGISTER / f"{self.id}.json").write_text(json.dumps(asdict(self)))


def records() -> list[Record]:
    """Every lab that is up, or that something may be left of; the newest last."""
    found = []
    for path in sorted(REGISTER.glob("*.json"), key=lambda path: path.stat().st_mtime):
        with contextlib.suppress(ValueError, TypeError, OSError):
            found.append(Record(**json.loads(path.read_text())))
    return found


def sweep() -> list[str]:
    """End the labs whose maker died before it could; their ids."""
    crashed = [record for record in records() if not record.kept and not record.in_use]
    for record in crashed:
        end(record.id, Path(record.folder))
    return [record.id for record in crashed]


def end(lab: str, folder: Path) -> None:
    """Kill what runs in a lab, unmount and delete what is its but for files. Safe to repeat."""
    # Ended in one blow: a host whose init is dead leaves nothing, and nspawn follows it.
    for pid in _hosts(lab):
        _kill([*children(pid), pid])
    mine = [name for name in namespaces() if name.startswith(f"{lab}-")]
    for name in mine:
        _kill(_inside(name))
    _wait(lambda: not _hosts(lab) and not any(_inside(name) for name in mine))
    for mounted in reversed(_mounts(lab, folder)):
        subprocess.run(["umount", mounted], capture_output=True, check=False)
    for mounted in reversed(_mounts(lab, folder)):  # somebody's shell stands in it
        subprocess.run(["umount", "-l", mounted], capture_output=True, check=False)
    _wait(lambda: not _disks(folder))
    Fabric(lab).remove()
    cgroups.remove(lab)
    for path in Path("/run/systemd/nspawn/propagate").glob(f"{lab}-*"):
        with contextlib.suppress(OSError):
            path.rmdir()
    (REGISTER / f"{lab}.json").unlink(missing_ok=True)


def children(pid: int) -> list[int]:
    """Of a process's main thread."""
    text = ""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def _hosts(lab: str) -> list[int]:
    """The systemd-nspawn processes of a lab."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if any(word.startswith(f"--machine={lab}-".encode()) for word in words):
                found.append(int(path.parent.name))
    return found


def _inside(namespace: str) -> list[int]:
    done = subprocess.run(
        ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
    )
    return [int(word) for word in done.stdout.split()]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait(done: Callable[[], bool]) -> None:
    """What was killed and unmounted is gone a moment later."""
    deadline = time.monotonic() + 20
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)


def _disks(folder: Path) -> list[str]:
    """Files in a lab's folder that are loop devices."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            file = path.read_text().strip()
            if Path(file).is_relative_to(folder):
                found.append(file)
    return found


def _mounts(lab: str, folder: Path) -> list[str]:
    """Mount points in a lab's folder or of its overlays, in the order they were mounted in."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])
        source = right.split()[1]
        if source.startswith(f"{lab}-") or Path(point).is_relative_to(folder):
            found.append(point)
    return found


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks; nothing if there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
