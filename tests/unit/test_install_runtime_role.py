"""Role ``runtime`` picks the runtime for a host that ``sovctl`` would pick there."""

from __future__ import annotations

import runpy
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
