"""A host's part in its trust domain: one Ray head or worker, kept honest.

``python -m appliance.cluster.node --home HOME``, run by ``sovctl-ray.service`` as ``Type=notify``

It starts ``ray start --block`` and watches what that does not: a raylet that ended in good order
(because the head told it that it is no longer a member) leaves ``ray start`` waiting for ever. Here
the end of any of them, or a head that no longer answers, ends the whole, and systemd starts it
again. So a worker whose head was restarted joins it as a new node, and there is one way to start.

The control store keeps its state in memory: a head that starts is a new cluster, which knows no
job and no actor of the one before.

Without the token nothing is started, and a head whose dashboard answers somebody without it is
ended at once: submitting a job is running code (CVE-2023-48022).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from appliance.cluster import environment, node_file, ray_head, ray_start, sizing
from appliance.cluster.environment import Place
from appliance.cluster.node_file import NodeFile
from appliance.cluster.notify import notify
from appliance.cluster.processes import ProcessName
from appliance.egress import live
from appliance.errors import ApplianceError, RayUnguarded
from appliance.layout import Home
from appliance.manifests import site_ports

_TICK = 0.5
_CHECK_EVERY = 5.0
_CHECKS_MISSED = 3
_START_SECONDS = 240.0
_STOP_SECONDS = 20.0
_LEAST_TOKEN = 32


@dataclass(slots=True)
class Orders:
    """Whether systemd asked for the end."""

    stop: bool = False

    def listen(self) -> None:
        """Take SIGTERM and SIGINT as the order to stop."""

        def ask(*_arguments: object) -> None:
            self.stop = True

        signal.signal(signal.SIGTERM, ask)
        signal.signal(signal.SIGINT, ask)


def read_token(home: Home) -> str:
    """The domain's token. Raises :class:`RayUnguarded` if there is none worth the name."""
    path = environment.ray_token(home)
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise RayUnguarded(reason=f"{path}: {error}") from error
    if len(token) < _LEAST_TOKEN:
        raise RayUnguarded(reason=f"{path} holds fewer than {_LEAST_TOKEN} characters")
    return token


def refuse_revoked_release(home: Home, release: Path) -> None:
    """Raise :class:`ReleaseRevoked` where this host was told of revocations."""
    if not home.trust.is_dir():
        return
    from appliance.bundle.revoked import refuse_revoked

    refuse_revoked(home, release)


def wait_for_head(node: NodeFile, orders: Orders) -> None:
    """Return when the head's control store accepts connections, or when told to stop."""
    told = 0.0
    while not orders.stop and not _listens(str(node.head_address), site_ports.GCS):
        if time.monotonic() - told > 10:
            told = time.monotonic()
            note(f"waiting for the head at {node.head_address}:{site_ports.GCS}")
        time.sleep(1)


def run(home: Home, node: NodeFile, token: str, orders: Orders) -> int:
    """Keep Ray running; returns the exit status. 0 only if it was told to stop."""
    temp_dir = ray_start.TEMP_DIR
    started = temp_dir / "ray_current_cluster"  # Ray writes it once GCS knows the raylet
    for leftover in temp_dir.iterdir():
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink()
    python = Path(sys.executable)
    shares = sizing.share_out(sizing.measure())
    shares = replace(shares, object_store=sizing.fitting(shares.object_store, Path("/dev/shm")))  # noqa: S108
    given = environment.inner(home, python, shares, os.environ, Place.of_node(node))
    given |= ray_start.settings(interface_of(node.address))
    argv = ray_start.argv(python, node, shares, spill=home.tmp / "spilled")
    ray = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=given, cwd="/")
    try:
        return _watch(node, token, ray, started, orders)
    finally:
        _end(ray)


def _watch(
    node: NodeFile, token: str, ray: subprocess.Popen[bytes], started: Path, orders: Orders
) -> int:
    """Look twice a second until something ended."""
    begin = checked = time.monotonic()
    raylet: ProcessName | None = None
    missed = 0
    while not orders.stop:
        now = time.monotonic()
        if ray.poll() is not None:
            note(f"'ray start' ended with status {ray.returncode}")
            return 1
        if raylet is None:
            if started.exists() and _ready(node, token):
                raylet = _raylet_of(ray.pid)
                notify("READY=1")
                note(f"{'head' if node.head else 'worker'} {node.host} is up")
            elif now - begin > _START_SECONDS:
                note(f"not up within {_START_SECONDS:.0f} s")
                return 1
        elif not raylet.is_alive():
            note("the raylet ended")
            return 1
        elif node.head and now - checked >= _CHECK_EVERY:
            checked = now
            missed = 0 if ray_head.answers(token) else missed + 1
            if missed >= _CHECKS_MISSED:
                note("the head no longer answers")
                return 1
        time.sleep(_TICK)
    notify("STOPPING=1")
    return 0


def _ready(node: NodeFile, token: str) -> bool:
    """Whether Ray answers here. Raises :class:`RayUnguarded` if it answers everybody."""
    if not _listens(node.address, site_ports.NODE_MANAGER):
        return False
    if not node.head:
        return True
    if not ray_head.answers(token):
        return False
    if not ray_head.guarded():
        raise RayUnguarded(reason="its dashboard answers without the token")
    return True


def _raylet_of(parent: int) -> ProcessName:
    """The raylet that ``ray start`` started. Raises :class:`ProcessLookupError`."""
    for pid in live.children(parent):
        try:
            name = Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip()
        except OSError:
            continue
        if name == "raylet":
            return ProcessName.of(pid)
    raise ProcessLookupError("raylet")


def _end(ray: subprocess.Popen[bytes]) -> None:
    """SIGTERM; ``ray start`` ends its daemons. What is left after that is systemd's to kill."""
    if ray.poll() is None:
        ray.terminate()
        try:
            ray.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            ray.kill()
            ray.wait()


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), 2):
            return True
    except OSError:
        return False


def interface_of(address: str) -> str:
    """The name of the interface that has ``address``. Raises :class:`RayUnguarded` if none has:
    Ray would listen where nobody expects it."""
    command = ["ip", "-json", "address", "show", "to", address]
    answer = subprocess.run(command, capture_output=True, check=False)
    found = json.loads(answer.stdout or b"[]")
    names = [str(each["ifname"]) for each in found if each]
    if not names:
        raise RayUnguarded(reason=f"this host does not have the address {address} of node.json")
    return names[0].partition("@")[0]


def note(text: str) -> None:
    """One line in the journal."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    print(f"{now} {text}", file=sys.stderr, flush=True)  # noqa: T201 - this is the log


def main(arguments: list[str]) -> int:
    """Command line of the unit."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    home = Home(parser.parse_args(arguments).home)
    orders = Orders()
    orders.listen()
    try:
        node = node_file.read(home)
        if not node.runs_ray:
            raise RayUnguarded(reason="node.json gives this host no part in a Ray cluster")
        token = read_token(home)
        refuse_revoked_release(home, home.releases / node.release)
        if not node.head:
            wait_for_head(node, orders)
        return 0 if orders.stop else run(home, node, token, orders)
    except ApplianceError as error:
        note(json.dumps(error.as_json()))
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
