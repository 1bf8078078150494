"""Start, stop and look at an installed appliance, from outside the seal.

``start`` returns when the appliance answers, or raises with the end of the log that says why not.
A second ``start`` is a no-op; a ``start`` beside another waits for it; what a power loss left
behind is recognised by its boot (:mod:`appliance.cluster.processes`) and replaced.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from appliance.bundle.revoked import refuse_revoked
from appliance.cluster import environment, pki, sizing
from appliance.cluster.files import open_log, read_object, tail, write_whole
from appliance.cluster.processes import ProcessName
from appliance.cluster.recording import record, record_start
from appliance.egress import live, seal
from appliance.egress.door import STOP_SECONDS
from appliance.errors import PortTaken, ReleaseForeign, SealBroken, StartFailed, StopFailed
from appliance.i18n import N_, _
from appliance.layout import Home
from appliance.progress import Progress, Task

DEFAULT_PORT = 8443
_START_SECONDS = 900.0
_DOOR = "appliance.egress.door"
_PHASES = {
    "starting-ray": N_("starting Ray"),
    "starting-serve": N_("loading the model into Ray Serve"),
    "starting-gateway": N_("opening the gateway"),
    "healthy": N_("healthy"),
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a running appliance is reached. ``ca`` is the certificate callers must trust."""

    url: str
    port: int
    sealed: bool
    ca: Path


@dataclass(frozen=True, slots=True)
class State:
    """What is known of an installation's processes.

    ``phase`` is one of ``docs/architecture.md`` or ``stopped``; ``pid`` is the outermost process.
    """

    phase: str
    detail: str
    pid: int | None
    endpoint: Endpoint | None
    started: str

    @property
    def running(self) -> bool:
        """Whether its processes are there, healthy or not."""
        return self.pid is not None


def start(
    home: Home, release: Path, port: int, progress: Progress, sealed: bool = True
) -> Endpoint:
    """Start the release in the folder ``release`` and wait until it is healthy.

    ``port`` is on 127.0.0.1; 0 lets the kernel choose. Raises :class:`SealUnavailable`,
    :class:`PortTaken`, :class:`ReleaseForeign`, :class:`ReleaseRevoked`, :class:`StartFailed` or
    :class:`SealBroken`, and leaves nothing running then.
    """
    if sealed:
        seal.check_supported()
    with _one_at_a_time(home), progress.task(_("Starting the appliance"), None, "steps") as task:
        process = _running(home)
        launched = process is None
        if process is None:
            process = _launch(home, release, port, sealed)
        endpoint = _endpoint(home)
        try:
            _await_health(home, process, task)
            seen = _check_seal(process) if endpoint.sealed else None
            if launched:
                record_start(home, release, seen)
        except BaseException:
            _end(process)
            raise
    return endpoint


def stop(home: Home, progress: Progress) -> None:
    """Stop in order, within about 45 seconds; a no-op if nothing runs. Raises StopFailed."""
    process = _running(home)
    if process is None:
        return
    with progress.task(_("Stopping the appliance"), None, "steps"):
        _end(process)
    (home.run / "process.json").unlink(missing_ok=True)
    record(home, "appliance.stop", {})


def state(home: Home) -> State:
    """What runs now. Reads files and ``/proc`` only, so it answers even if nothing else does."""
    process = _running(home)
    report = read_object(home.run / "supervisor.json")
    phase, detail = str(report.get("phase", "")), str(report.get("detail", ""))
    if process is None:
        failed = phase == "failed"
        return State("failed" if failed else "stopped", detail if failed else "", None, None, "")
    return State(
        phase=phase or "starting-ray",
        detail=detail,
        pid=process.pid,
        endpoint=_endpoint(home),
        started=str(report.get("started", "")),
    )


def seal_process(home: Home) -> int | None:
    """Host process id of the seal's process 1; None if nothing runs or it runs unsealed."""
    process = _running(home)
    if process is None or not _endpoint(home).sealed:
        return None
    for unshare in live.children(process.pid):
        for first in live.children(unshare):
            return first
    return None


# --- starting -----------------------------------------------------------------------------------


def _launch(home: Home, release: Path, port: int, sealed: bool) -> ProcessName:
    """Prepare the folder and start the door, which starts the rest."""
    _check_release(home, release)
    seal.prepare_folders(home)
    # Nothing can be made directly in the installation's folder from inside.
    inner = (home.logs, home.ledger, home.datasets, home.runs, home.adapters, home.registry.parent)
    for folder in inner:
        folder.mkdir(parents=True, exist_ok=True)
    pki.ensure(home)
    _ensure_secret(environment.ray_token(home))
    _ensure_secret(environment.serve_key(home))
    _forget_last_run(home)
    listener = _listen(port)
    try:
        actual = int(listener.getsockname()[1])
        argv = _supervisor_argv(home, release, actual, sealed)
        door = _open_door(home, listener, argv)
    finally:
        listener.close()
    process = ProcessName.of(door.pid)
    facts = {**asdict(process), "port": actual, "sealed": sealed}
    write_whole(home.run / "process.json", json.dumps(facts, indent=2).encode())
    return process


def _check_release(home: Home, release: Path) -> None:
    """Only what lies under ``releases``, which cannot be written inside, is run; nothing revoked.

    ``current`` is a link that a job could have pointed at a folder of its own.
    """
    if release.resolve().parent != home.releases.resolve():
        raise ReleaseForeign(release=release.resolve())
    refuse_revoked(home, release.resolve())


def _supervisor_argv(home: Home, release: Path, port: int, sealed: bool) -> list[str]:
    python = release / "venv/bin/python"
    command = (
        "-P",
        "-m",
        "appliance.cluster.supervisor",
        f"--home={home.root}",
        f"--endpoint={_url(port)}",
        f"--sealed={'yes' if sealed else 'no'}",
    )
    if not sealed:
        return [str(python), *command]
    shares = sizing.share_out(sizing.measure())
    spec = seal.SealSpec(
        home=home,
        python=python,
        command=command,
        visible=seal.interpreter_paths(python),
        # Nothing in there needs the operator's key: the registry knows its digest.
        hidden=(pki.ca_key(home), home.secrets / "operator.key"),
        protected=(
            home.releases,
            home.store,
            home.trust,
            home.tls,
            home.journal,
            home.secrets,
        ),
        shm_bytes=shares.shared_memory,
    )
    return seal.command(spec)


def _open_door(home: Home, listener: socket.socket, argv: list[str]) -> subprocess.Popen[bytes]:
    """Start the door in a session of its own, so that closing the terminal does not end it."""
    number = listener.fileno()
    # -P and the root folder: nothing that a job left in the installation is imported out here.
    door = [sys.executable, "-P", "-m", _DOOR, f"--listen-fd={number}"]
    log = open_log(home.logs, "supervisor.log")
    try:
        return subprocess.Popen(
            [*door, f"--run={home.run}", "--", *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment.outer(os.environ),
            cwd="/",
            pass_fds=(number,),
            start_new_session=True,
        )
    finally:
        os.close(log)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise PortTaken(port=port, reason=error.strerror or error) from error
    return listener


def _await_health(home: Home, process: ProcessName, task: Task) -> None:
    """Narrate phases until healthy. Raises StartFailed when it fails, ends or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    last = ""
    while True:
        report = read_object(home.run / "supervisor.json")
        phase = str(report.get("phase", "starting-ray"))
        if phase != last:
            last = phase
            task.note(_(_PHASES.get(phase, phase)))
            task.advance(1)
        if phase == "healthy":
            return
        if phase == "failed":
            raise StartFailed(phase=_unfinished(report), reason=_why(home, report))
        if not process.is_alive():
            raise StartFailed(phase=_(_PHASES.get(phase, phase)), reason=_why(home, report))
        if time.monotonic() > deadline:
            late = _("It took longer than {minutes} minutes.").format(
                minutes=int(_START_SECONDS // 60)
            )
            raise StartFailed(
                phase=_(_PHASES.get(phase, phase)), reason=f"{late} {_why(home, report)}"
            )
        time.sleep(0.2)


def _unfinished(report: dict[str, object]) -> str:
    """The component that failed, or the first that is not up; empty if there is no report yet."""
    failed = report.get("failed_component")
    parts = report.get("components")
    if failed or not isinstance(parts, dict):
        return str(failed or "")
    return next((str(name) for name, part in parts.items() if not part.get("up")), "")


def _why(home: Home, report: dict[str, object]) -> str:
    """The reason and the end of the log that tells most about it."""
    log = home.logs / f"{_unfinished(report)}.log"
    if not log.exists():
        log = home.logs / "supervisor.log"
    end = tail(log, 12) or _("(its log is empty)")
    detail = str(report.get("detail", ""))
    return f"{detail}\n\n{log}:\n{end}\n".lstrip()


def _check_seal(process: ProcessName) -> live.Observation:
    """Look at the running seal from outside. Raises SealBroken; a seal unseen is no seal."""
    for unshare in live.children(process.pid):
        for first in live.children(unshare):
            seen = live.observe(first)
            own = live.observe("self")
            if seen.sealed and seen.namespaces["net"] != own.namespaces["net"]:
                return seen
            raise SealBroken(reason=json.dumps(asdict(seen)))
    raise SealBroken(reason=_("its first process cannot be found"))


def _forget_last_run(home: Home) -> None:
    """Remove what the run before left: state files and Ray's session, which may be large."""
    for name in ("supervisor.json", "seal.json", "process.json"):
        (home.run / name).unlink(missing_ok=True)
    for leftover in home.tmp.iterdir():
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _ensure_secret(path: Path) -> None:
    """256 random bits in hexadecimal, made once."""
    if not path.exists():
        write_whole(path, secrets.token_hex(32).encode("ascii"), mode=0o600)


# --- the process --------------------------------------------------------------------------------


def _running(home: Home) -> ProcessName | None:
    record = read_object(home.run / "process.json")
    pid, ticks, boot = (record.get(key) for key in ("pid", "started_ticks", "boot_id"))
    if not (isinstance(pid, int) and isinstance(ticks, int) and isinstance(boot, str)):
        return None
    process = ProcessName(pid, ticks, boot)
    # The record can be written from inside: it must name a door of ours, not just any process.
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    ours = {_DOOR.encode(), b"--run=" + os.fsencode(home.run)} <= set(command)
    return process if ours and process.is_alive() else None


def _end(process: ProcessName) -> None:
    """SIGTERM the door, which gives its order on; SIGKILL everything if that takes too long."""
    if not process.is_alive():
        return
    inside = live.children(process.pid)
    named = [name for name in map(_name_or_none, inside) if name is not None]
    process.send(signal.SIGTERM)
    if not process.gone_within(STOP_SECONDS + 5):
        for one in (*named, process):
            one.send(signal.SIGKILL)
    if not all(one.gone_within(5) for one in (*named, process)):
        raise StopFailed(pid=process.pid, reason=_("It did not end after SIGKILL."))


def _name_or_none(pid: int) -> ProcessName | None:
    try:
        return ProcessName.of(pid)
    except ProcessLookupError:
        return None


def _endpoint(home: Home) -> Endpoint:
    record = read_object(home.run / "process.json")
    port = record.get("port")
    number = port if isinstance(port, int) else 0
    return Endpoint(_url(number), number, record.get("sealed") is True, home.tls / "ca.pem")


def _url(port: int) -> str:
    return f"https://127.0.0.1:{port}"


@contextmanager
def _one_at_a_time(home: Home) -> Iterator[None]:
    """Two starts at once: the second waits, then finds the appliance running."""
    home.run.mkdir(parents=True, exist_ok=True)
    lock = open_log(home.run, "start.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
