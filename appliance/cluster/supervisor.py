"""Process 1 inside the seal: keeps Ray, the Serve application and the gateway running.

``python -m appliance.cluster.supervisor --home HOME --endpoint URL --sealed yes|no``

It compares what is with what should be, twice a second, in the order Ray → Serve → gateway: the
first component that is not up is started or waited for. So start and repair are one path. Ray's
death takes Serve's replicas with it, therefore Serve is deployed again after it.

The end of standard input, or SIGTERM, is the order to stop: gateway first, so that no new work
comes in, then Ray. ``run/supervisor.json`` holds the phase (``docs/architecture.md``), written
whenever it changes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from appliance.cluster import environment, ray_head, restarts, sizing
from appliance.cluster.children import Children, rotate
from appliance.cluster.files import write_whole
from appliance.layout import Home

GATEWAY_SOCKET = "gateway.sock"
_TICK = 0.5
_CHECK_EVERY = 5.0
_CHECKS_MISSED = 3
_GATEWAY_STOP, _RAY_STOP = 10.0, 20.0


@dataclass(slots=True)
class Component:
    """One thing to keep up.

    ``argv`` runs for as long as the component does (``lasting``), or does its work and ends with
    status 0 (Serve's deployment). ``ready`` says whether it answers; it is also the health check.
    ``within`` is how long it may take to answer, in seconds.
    """

    name: str
    argv: tuple[str, ...]
    lasting: bool
    within: float
    ready: Callable[[], bool]
    pass_fds: tuple[int, ...] = ()
    child: subprocess.Popen[bytes] | None = None
    up: bool = False
    started: float = 0.0
    checked: float = 0.0
    missed: int = 0
    record: restarts.Record = field(default_factory=restarts.Record)

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self.child is not None and self.child.returncode is None


class ComponentFailedError(Exception):
    """Component ``name`` failed too often; the message says how."""

    def __init__(self, name: str, how: str) -> None:
        super().__init__(f"{name} {how}; see logs/{name}.log")
        self.name = name


class Supervisor:
    """Wires components to processes, whose environment is ``settings``, and to
    ``run/supervisor.json``."""

    def __init__(
        self,
        home: Home,
        components: list[Component],
        settings: Mapping[str, str],
        base: dict[str, object],
    ) -> None:
        self.home = home
        self.components = components
        self.settings = settings
        self.children = Children(home.logs)
        self.was_healthy = False
        self.stop_asked = False
        self._base = base
        self._written: tuple[str, str] | None = None

    def run(self) -> int:
        """Keep everything up until told to stop; returns the exit status."""
        self._listen_for_stop()
        try:
            while not self.stop_asked:
                self.children.reap()
                self._reconcile(time.monotonic())
                rotate(self.home.logs)
                self._wait(_TICK)
        except ComponentFailedError as failure:
            self._stop()
            self._base["failed_component"] = failure.name
            self._report("failed", str(failure))
            return 1
        self._report("stopping", "")
        self._stop()
        return 0

    def _reconcile(self, now: float) -> None:
        """Move the first component that is not up one step further."""
        for index, component in enumerate(self.components):
            self._notice(component, now)
            if not component.up:
                for later in self.components[index + 1 :]:
                    self._depend(component, later)
                self._report(f"starting-{component.name}", self._detail(component))
                self._advance(component, now)
                return
        self.was_healthy = True
        self._report("healthy", "")

    def _notice(self, component: Component, now: float) -> None:
        """Find out that a component which was up no longer is."""
        if not component.up:
            return
        if component.lasting and not component.running:
            self._fail(component, now, f"ended with status {_status(component)}")
        elif now - component.checked >= _CHECK_EVERY:
            component.checked = now
            component.missed = 0 if component.ready() else component.missed + 1
            if component.missed >= _CHECKS_MISSED:
                self._fail(component, now, "no longer answers")

    @staticmethod
    def _depend(earlier: Component, later: Component) -> None:
        """Serve lives in Ray's processes; the gateway stands alone and answers 503 meanwhile."""
        if earlier.name == "ray" and later.name == "serve":
            later.up = False

    def _advance(self, component: Component, now: float) -> None:
        if component.child is None:
            if now >= component.record.not_before:
                component.started = component.checked = now
                component.child = self.children.start(
                    component.argv, component.name, self.settings, component.pass_fds
                )
            return
        if not component.running and (component.lasting or _status(component) != 0):
            self._fail(component, now, f"ended with status {_status(component)}")
        elif (component.lasting or not component.running) and component.ready():
            component.up, component.missed = True, 0
            if not component.lasting:
                component.child = None
        elif now - component.started > component.within:
            self._fail(component, now, f"did not answer within {component.within:.0f} s")

    def _fail(self, component: Component, now: float, reason: str) -> None:
        if component.child is not None:
            self.children.end(component.child, 5.0)
        component.child, component.up, component.missed = None, False, 0
        component.record = restarts.after_failure(
            component.record, started=component.started, now=now
        )
        note(f"{component.name}: {reason}; failure {component.record.failures} in a row")
        if restarts.is_final(component.record, was_healthy=self.was_healthy):
            raise ComponentFailedError(component.name, f"{reason}, three times in a row")

    @staticmethod
    def _detail(component: Component) -> str:
        failures = component.record.failures
        return f"failed {failures} times in a row" if failures else ""

    def _stop(self) -> None:
        bounds = {"ray": _RAY_STOP, "gateway": _GATEWAY_STOP}
        for component in reversed(self.components):
            if component.child is not None:
                self.children.end(component.child, bounds.get(component.name, 2.0))
                component.child, component.up = None, False

    def _report(self, phase: str, detail: str) -> None:
        """Write the phase if it is another one than before."""
        if self._written == (phase, detail):
            return
        self._written = (phase, detail)
        note(f"{phase} {detail}".rstrip())
        parts = {c.name: {"up": c.up, "failures": c.record.failures} for c in self.components}
        content = {**self._base, "phase": phase, "detail": detail, "components": parts}
        write_whole(self.home.run / "supervisor.json", json.dumps(content, indent=2).encode())

    def _listen_for_stop(self) -> None:
        def ask(*_arguments: object) -> None:
            self.stop_asked = True

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _wait(self, seconds: float) -> None:
        """Sleep, or less if standard input ends."""
        with contextlib.suppress(InterruptedError):
            readable, _writable, _other = select.select([0], [], [], seconds)
            if readable and os.read(0, 4096) == b"":
                self.stop_asked = True


def components(home: Home, python: Path, shares: sizing.Shares, gateway_fd: int) -> list[Component]:
    """What an embedded appliance runs, in the order of their dependence."""
    token = environment.ray_token(home).read_text(encoding="ascii").strip()

    def ray_ready() -> bool:
        return ray_head.answers(token) and ray_head.guarded()

    def module(name: str, *options: str) -> tuple[str, ...]:
        return (str(python), "-P", "-m", name, "--home", str(home.root), *options)

    return [
        Component("ray", tuple(ray_head.start_argv(python, shares)), True, 180.0, ray_ready),
        Component(
            "serve", module("appliance.serving.deploy"), False, 600.0, ray_head.serve_answers
        ),
        Component(
            "gateway",
            module("appliance.gateway.server", "--fd", str(gateway_fd)),
            True,
            120.0,
            lambda: gateway_answers(home),
            (gateway_fd,),
        ),
    ]


def listen(home: Home) -> socket.socket:
    """The gateway's Unix socket, kept by the supervisor so that a restart loses no caller.

    Bound by its bare name: a path is limited to 107 bytes and the installation's may be longer.
    """
    os.chdir(home.run)
    Path(GATEWAY_SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(GATEWAY_SOCKET)
    Path(GATEWAY_SOCKET).chmod(0o600)
    listener.listen(1024)
    return listener


def gateway_answers(home: Home) -> bool:
    """Whether the gateway answers ``GET /healthz`` over TLS on its socket. At most 2 seconds."""
    context = ssl.create_default_context(cafile=str(home.tls / "ca.pem"))
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
            plain.settimeout(2)
            plain.connect(GATEWAY_SOCKET)
            with context.wrap_socket(plain, server_hostname="localhost") as secure:
                secure.sendall(request)
                return secure.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def note(text: str) -> None:
    """One line in ``logs/supervisor.log`` (standard error; the lifecycle points it there)."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    print(f"{now} {text}", file=sys.stderr, flush=True)  # noqa: T201 - this is the log


def _status(component: Component) -> int | None:
    return component.child.returncode if component.child is not None else None


def main(arguments: list[str]) -> int:
    """Command line of the supervisor."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--sealed", choices=("yes", "no"), required=True)
    options = parser.parse_args(arguments)
    home = Home(options.home)
    home.logs.mkdir(parents=True, exist_ok=True)
    # Unsealed there is no process namespace: orphans come to us by this, and not to init.
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    listener = listen(home)
    base: dict[str, object] = {
        "endpoint": options.endpoint,
        "sealed": options.sealed == "yes",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    python, shares = Path(sys.executable), sizing.share_out(sizing.measure())
    parts = components(home, python, shares, listener.fileno())
    settings = environment.inner(home, python, shares, os.environ)
    return Supervisor(home, parts, settings, base).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
