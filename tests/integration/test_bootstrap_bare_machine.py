"""``sovctl.pyz`` on a Debian that has ``python3`` and nothing else: no network, no pip, no root."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from bare_machine import BareMachine
from small_bundle import Supplier

from appliance.bundle import bootstrap
from appliance.bundle.cache import BuildCache
from appliance.bundle.sources.desk import Desk
from appliance.manifests.bundle import Platform
from appliance.manifests.document import load
from appliance.manifests.recipe import Recipe
from appliance.progress import Silent

DEMO = Path(__file__).parents[2] / "bundles" / "demo" / "bundle.yaml"
TARGET = Platform(python="3.11", system="linux", machine="x86_64")


@pytest.mark.slow
def test_a_machine_with_a_python_and_nothing_else_takes_a_bundle_in(tmp_path: Path) -> None:
    machine = BareMachine.at(tmp_path)
    desk = Desk(DEMO, TARGET, BuildCache.from_environment(), 1_700_000_000, Silent())
    wanted = load(Recipe, DEMO).bootstrap
    assert wanted is not None
    carried = bootstrap.prepare(wanted, desk)
    pyz = bootstrap.write(carried, tmp_path / "x.sovctl.pyz", desk.cache)
    supplier = Supplier.at(tmp_path / "supplier")
    machine.bring(pyz.path, "sovctl.pyz")
    machine.bring(supplier.bundle("small", platform=TARGET), "small.tar")

    def here(*command: str) -> str:
        done = machine.run(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def sovctl(*arguments: str) -> str:
        return here("python3", "sovctl.pyz", *arguments)

    assert machine.run("python3", "-m", "pip").returncode != 0
    assert machine.run("python3", "-c", "import click").returncode != 0
    assert re.findall(r"(\S+): ", here("cat", "/proc/net/dev")) == ["lo"]

    assert here("sha256sum", "sovctl.pyz").split()[0] == pyz.sha256
    assert "install" in sovctl("--help")
    sovctl("trust", "pin", supplier.fingerprint)
    assert json.loads(sovctl("bundle", "inspect", "small.tar", "--json"))["signature"]["trusted"]
    sovctl("bundle", "verify", "small.tar")
    assert "small" in sovctl("plan", "small.tar")
    sovctl("install", "small.tar", "--no-start", "--yes")
    current = ".local/share/sovctl/current"
    ran = here(f"{current}/venv/bin/python", "-c", "import tiny0; print(tiny0.VERSION)")
    assert ran.strip() == "1.0"
    assert json.loads(sovctl("status", "--json"))
    assert (machine.home / ".cache/sovctl/pyz").stat().st_mode & 0o777 == 0o700

    # A copy that lost a byte on its way is found by the sum, and says so itself where it matters.
    data = bytearray(pyz.path.read_bytes())
    data[len(data) * 9 // 10] ^= 1  # in uv, the largest and last of the wheels
    assert hashlib.sha256(data).hexdigest() != pyz.sha256
    (machine.home / "sovctl.pyz").write_bytes(data)
    refused = machine.run("python3", "sovctl.pyz", "--help", XDG_CACHE_HOME="/home/operator/other")
    assert refused.returncode == 3
    assert "bootstrap-damaged" in refused.stderr
    assert not list((machine.home / "other").rglob("python"))
