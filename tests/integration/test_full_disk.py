"""Full disks: foretold to the byte, and undone where somebody else was quicker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from full_disk_scenes import SCENES

ALONE = ["unshare", "--user", "--map-root-user", "--mount"]
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    if subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here: nothing can be mounted")


@pytest.mark.parametrize("scene", SCENES)
def test_full_disk(scene: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("full_disk_scenes.py")
    done = subprocess.run(
        [*ALONE, sys.executable, script, scene, tmp_path],
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT}/tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
