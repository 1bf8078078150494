"""Naming a process so that it is never confused with a later one of the same number.

A process id is reused, after a power loss at once. A process is therefore known by its id, its
start time (clock ticks after boot, ``/proc/PID/stat`` field 22) and the boot it belongs to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessName:
    """A process, unmistakably."""

    pid: int
    started_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessName:
        """Name the running process ``pid``. Raises :class:`ProcessLookupError` if it is gone."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ProcessLookupError(pid) from error
        fields = stat.rpartition(")")[2].split()  # from field 3 on; the name may hold spaces
        if fields[0] == "Z":
            raise ProcessLookupError(pid)
        return cls(pid, int(fields[19]), boot_id())

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        with contextlib.suppress(ProcessLookupError):
            return ProcessName.of(self.pid) == self
        return False

    def send(self, number: signal.Signals) -> None:
        """Signal it if it is alive. A descriptor pins the process between the check and the act."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                if self.is_alive():
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)

    def gone_within(self, seconds: float) -> bool:
        """Wait until it ended; False if it has not after ``seconds``."""
        deadline = time.monotonic() + seconds
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


def boot_id() -> str:
    """Identifies the time since the machine was last started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
