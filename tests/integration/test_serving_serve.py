"""The model server in a real Ray cluster, in a namespace with loopback only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.layout import Home
from appliance.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from engine_fixtures import make_model

SCRIPT = Path(__file__).with_name("serving_in_namespace.py")
UNSHARE = ["unshare", "-rnmpf", "--mount-proc", "--kill-child"]


def can_unshare() -> bool:
    """Whether this machine lets us make namespaces."""
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare(), reason="the kernel does not allow namespaces here")
def test_an_application_is_served_and_the_server_survives_its_replica(tmp_path_factory):
    home = tmp_path_factory.mktemp("h")  # short: Ray's sockets are limited to 107 bytes
    make_model(home / "releases" / "r" / "models" / "tiny")
    (home / "current").symlink_to("releases/r")
    (home / "secrets").mkdir(mode=0o700)
    (home / "secrets" / "serve.key").write_text("a-key")
    (home / "secrets" / "ray.token").write_text("0" * 64)
    Ledger.create(Home(home), "test.example/serving")
    environment = os.environ | {
        # Left to itself, Ray looks into ~/.ray for a token and lets that decide.
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / "secrets" / "ray.token"),
        "RAY_ADDRESS": "127.0.0.1:6379",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(SCRIPT.parent)]),
    }
    try:
        done = subprocess.run(
            [*UNSHARE, sys.executable, str(SCRIPT), str(home)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    finally:
        shutil.rmtree(home / "ray", ignore_errors=True)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    status, code, why = seen["broken"]
    assert (status, code) == (7, "serving-unhealthy")
    assert "model.safetensors" in why, "Serve's own words name no cause"
    assert seen["models"] == ["tiny"]
    assert seen["whole"] == seen["streamed"] == seen["again"] != ""
    assert seen["usage"] == 8
    assert seen["without_key"] == 403
    assert seen["refused"] == "n"
    assert seen["while_streaming"] == 1
    assert seen["after_leaving"] and seen["recovered"]
