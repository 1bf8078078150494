"""The model server of a site, kept deployed: what ``sovctl-serve.service`` runs on the head.

It asks Ray's dashboard what is deployed and, when that is not what the current release and
``node.json`` want, runs ``appliance.serving.deploy`` once. So start, a head that came back without
its applications, and another release are one path. The watcher itself is no Ray driver: it neither
needs Ray's memory nor dies with the head.

Ended by SIGTERM it leaves the application as it is: the next watcher finds it, and nobody who is
being answered notices.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from appliance.cluster import environment, ports, ray_head, sizing
from appliance.cluster.environment import Place
from appliance.cluster.notify import notify
from appliance.layout import Home
from appliance.serving.config import ServingConfig

APPLICATION, DEPLOYMENT, RELEASE = "appliance", "model", "APPLIANCE_RELEASE"

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 2.0
_LONGEST_WAIT_S = 60.0
_STOP_S = 5.0

Found = Literal["unknown", "absent", "deployed"]


def found_in(instance: Any, wanted: ServingConfig) -> Found:
    """Whether Serve's details (``ServeInstanceDetails`` as JSON) are of what is ``wanted``. Pure.

    ``unknown`` are details that are none: Ray does not answer, and nothing can be done about it.
    """
    if not isinstance(instance, dict) or "applications" not in instance:
        return "unknown"
    replicas = wanted.fleet.replicas if wanted.fleet is not None else 1
    try:
        application = instance["applications"][APPLICATION]
        deployment = application["deployments"][DEPLOYMENT]
        options = deployment["deployment_config"]["ray_actor_options"]
        release = options["runtime_env"]["env_vars"][RELEASE]
        fits = (release, deployment["target_num_replicas"]) == (wanted.release, replicas)
        return "deployed" if fits and application["status"] != "DEPLOY_FAILED" else "absent"
    except (KeyError, TypeError):
        return "absent"


class Watch:
    """Keeps the application deployed until told to stop."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._stop = threading.Event()
        self._ready = False
        self._attempts = 0

    def run(self) -> int:
        """Watch; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)
        token = environment.ray_token(self._home).read_text(encoding="ascii").strip()
        while not self._stop.is_set():
            # Read every time: another release may have become the current one.
            found = found_in(_details(token), ServingConfig.of_home(self._home))
            if found == "absent":
                self._attempts += 1  # also one that ends well and changes nothing waits longer
                self._deploy()
            elif found == "deployed":
                self._attempts = 0
            self._tell(found)
            self._stop.wait(self._pause())
        notify("STOPPING=1")
        return 0

    def _ask_to_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _pause(self) -> float:
        return min(_LONGEST_WAIT_S, _LOOK_EVERY_S * 2.0 ** min(self._attempts, 9))

    def _tell(self, found: Found) -> None:
        """READY once the model answers for the first time; afterwards only how it is."""
        if found == "deployed" and ray_head.serve_answers():
            if not self._ready:
                _LOG.info("the model answers")
            self._ready = True
            notify("READY=1", "STATUS=the model answers")
        elif found == "unknown":
            notify("STATUS=waiting for Ray's head")
        else:
            notify("STATUS=the model does not answer yet")

    def _deploy(self) -> None:
        """Run one deployment to its end, or end it when told to stop."""
        _LOG.info("deploying")
        child = subprocess.Popen(_argv(self._home), env=settings(self._home))
        while child.poll() is None and not self._stop.wait(0.2):
            pass
        if child.returncode is None:
            child.terminate()
            try:
                child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        elif child.returncode:
            _LOG.warning("deploying failed with status %d", child.returncode)


def _argv(home: Home) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "appliance.serving.deploy", "--home", str(home.root))


def settings(home: Home, operator: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of what runs beside Ray on this host."""
    shares = sizing.share_out(sizing.measure())
    return environment.inner(home, Path(sys.executable), shares, operator, Place.of_home(home))


def _details(token: str) -> Any:
    """What Serve's controller says through the dashboard of this host; None if it says nothing."""
    connection = http.client.HTTPConnection(ports.HOST, ports.DASHBOARD, timeout=5)
    try:
        headers = {"Authorization": f"Bearer {token}"}
        connection.request("GET", "/api/serve/applications/", headers=headers)
        answer = connection.getresponse()
        return json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
