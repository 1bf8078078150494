"""Role ``runtime`` picks the runtime for a host that ``sovctl`` would pick there."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.manifests.bundle import Platform
from appliance.manifests.environment import Host, RuntimeEnvironment, choose

SCRIPT = Path(__file__).parents[2] / "playbooks/roles/runtime/files/install_runtime.py"
ROLE: dict[str, Any] = runpy.run_path(str(SCRIPT))
OFFERED = (
    RuntimeEnvironment("cpu", Platform(python="3.11", system="linux", machine="x86_64"), "cpu"),
    RuntimeEnvironment("gpu", Platform(python="3.11", system="linux", machine="x86_64"), "cuda"),
    RuntimeEnvironment("newer", Platform(python="3.13", system="linux", machine="x86_64"), "cpu"),
)
MANIFEST = {
    "artefacts": [
        {
            "kind": "wheelhouse",
            "attributes": dict(one.attribute(rank) for rank, one in enumerate(OFFERED)),
        }
    ]
}


@pytest.mark.parametrize("python", ["3.11", "3.13", "3.12"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("cuda", [False, True])
def test_it_picks_what_sovctl_picks(python: str, machine: str, cuda: bool) -> None:
    chosen = choose(OFFERED, Host("linux", machine, frozenset({python}), cuda))
    here = (python, "linux", machine)
    if chosen is None:
        with pytest.raises(SystemExit):
            ROLE["requirements"](Path("/r"), MANIFEST, here, cuda)
    else:
        picked = ROLE["requirements"](Path("/r"), MANIFEST, here, cuda)
        assert picked == Path("/r/wheelhouse") / chosen.requirements


def test_one_runtime_is_for_every_host() -> None:
    bare: dict[str, Any] = {"artefacts": []}
    picked = ROLE["requirements"](Path("/r"), bare, ("3.11", "linux", "x86_64"), True)
    assert picked == Path("/r/wheelhouse/requirements.lock")


UV = """#!/bin/sh
[ "$1" = venv ] || exit 0
for folder; do :; done
mkdir "$folder"
echo begun >>"{log}"
until [ -e "{log}.go" ]; do sleep 0.05; done
[ -d "$folder" ] && echo ended >>"{log}"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="uv runs in a network namespace of its own")
def test_whoever_still_installs_is_waited_for(tmp_path: Path) -> None:
    """An operator's link goes silent, and what ran on the host goes on without them."""
    release, log = tmp_path / "release", tmp_path / "log"
    (release / "wheelhouse").mkdir(parents=True)
    (release / "bundle.json").write_text('{"artefacts": []}')
    (release / "wheelhouse/requirements.lock").touch()
    with zipfile.ZipFile(release / "wheelhouse/uv-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("uv-1.data/scripts/uv", UV.format(log=log))
    command = [sys.executable, SCRIPT, release, tmp_path / "cache"]
    first = subprocess.Popen(command)
    _await(log.exists)
    first.kill()
    first.wait()
    second = subprocess.Popen(command)
    waits = f"-> FLOCK  ADVISORY  WRITE {second.pid} "
    _await(lambda: waits in Path("/proc/locks").read_text() or len(log.read_text().split()) > 1)
    Path(f"{log}.go").touch()
    assert second.wait(timeout=60) == 0
    assert log.read_text().split() == ["begun", "ended", "begun", "ended"]


def _await(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
