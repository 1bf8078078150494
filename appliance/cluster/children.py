"""The supervisor's children: started with a log of their own, reaped, ended within a bound.

Process 1 inherits every orphan in the seal, so it reaps with ``waitpid(-1)`` and looks up which of
its own children ended; :class:`subprocess.Popen` alone would leave the orphans as zombies.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.cluster.files import open_log

_LOG_BYTES = 20 << 20
_LOGS_KEPT = 3


@dataclass(slots=True)
class Children:
    """Running children by process id."""

    logs: Path
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(
        self,
        argv: Sequence[str],
        log: str,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start ``argv`` in its own session; what it prints is appended to ``logs/LOG.log``."""
        descriptor = open_log(self.logs, f"{log}.log")
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=dict(environment),
                pass_fds=tuple(pass_fds),
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self.running[child.pid] = child
        return child

    def reap(self) -> list[subprocess.Popen[bytes]]:
        """Collect everything that ended; returns those that are ours, ``returncode`` set."""
        ended: list[subprocess.Popen[bytes]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            child = self.running.pop(pid, None)
            if child is not None:
                child.returncode = os.waitstatus_to_exitcode(status)
                ended.append(child)

    def end(self, child: subprocess.Popen[bytes], seconds: float) -> None:
        """SIGTERM, and SIGKILL to its whole session if it is still there after ``seconds``."""
        if child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while child.pid in self.running and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def rotate(folder: Path) -> None:
    """Keep every log under 20 MB, with three older ones.

    Copied and cut short, not renamed: children hold their log open for append and go on in it.
    """
    for log in folder.glob("*.log"):
        if log.stat().st_size < _LOG_BYTES:
            continue
        for number in range(_LOGS_KEPT - 1, 0, -1):
            older = log.with_suffix(f".log.{number}")
            if older.exists():
                older.replace(log.with_suffix(f".log.{number + 1}"))
        shutil.copyfile(log, log.with_suffix(".log.1"))
        os.truncate(log, 0)
