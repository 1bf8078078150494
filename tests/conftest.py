"""What tests of several folders share: one real appliance, set up once by the demo itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# CI looks at the same examples each time, so that a red build is about the change; a desk keeps
# looking for new ones. No deadline: a shared machine's speed says nothing about the code.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "desk")

CHECKOUT = Path(__file__).parents[1]
SOVCTL = Path(sys.executable).with_name("sovctl")


@dataclass
class Appliance:
    """The appliance the demo left running."""

    folder: Path
    summary: dict[str, Any]

    @property
    def home(self) -> Path:
        return self.folder / "appliance"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle.tar"

    def sovctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SOVCTL, *arguments],
            env={**os.environ, "SOVCTL_HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
        )

    def ask(self, *arguments: str) -> Any:
        done = self.sovctl(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    folder = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "SOVCTL_DEMO": str(folder), "CI": "false"}
    script = CHECKOUT / "bundles" / "demo" / "demo.py"
    done = subprocess.run([sys.executable, script], env=environment, check=False, timeout=2000)
    running = Appliance(folder, {})
    try:
        assert done.returncode == 0, "make demo failed; its output is above"
        running.summary = json.loads((folder / "summary.json").read_text())
        yield running
    finally:
        logs = running.home / "logs"
        if done.returncode and logs.is_dir():
            for log in sorted(logs.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}")
        running.sovctl("uninstall", "--yes")
        assert not running.home.exists(), "uninstall left something behind"
