"""Trust where a bundle is installed: broken glass is written down, what is revoked does not run.

Real but for Ray (:mod:`install_driver`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import install_driver
import pytest
from small_bundle import Supplier

from appliance.cluster import lifecycle
from appliance.errors import ReleaseRevoked
from appliance.layout import Home
from appliance.manifests.bundle import BundleManifest
from appliance.progress import Silent

LONG_AGO = datetime.now(UTC) - timedelta(days=200)
REASON = 'ticket 12: the "supplier" is cut off'


@pytest.fixture
def home() -> Iterator[Home]:
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="sovctl-test-") as folder:
        yield Home(Path(folder) / "home")


@pytest.fixture
def supplier(tmp_path: Path) -> Supplier:
    return Supplier.at(tmp_path / "supplier")


def _install(supplier: Supplier, home: Home, bundle: Path, *options: str) -> install_driver.Done:
    return install_driver.run(home.root, bundle, supplier.fingerprint, "none", *options)


def _sovctl(home: Home, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli.main", *map(str, arguments)],
        env={**os.environ, "SOVCTL_HOME": str(home.root)},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def _events(home: Home) -> list[dict[str, Any]]:
    shown = _sovctl(home, "audit", "log", "--json")
    entries: list[dict[str, Any]] = json.loads(shown.stdout)
    return sorted(entries, key=lambda entry: str(entry["at"]))


def test_an_expired_bundle_gets_in_through_broken_glass_only(
    supplier: Supplier, home: Home
) -> None:
    bundle = supplier.bundle("old", signed=LONG_AGO)
    refused = _install(supplier, home, bundle)
    assert refused.returncode == 3
    assert "bundle-expired" in refused.stderr
    assert not home.root.exists()
    for empty in ("", "  ", "x" * 300):
        plan = _sovctl(home, "plan", bundle, "--break-glass", empty)
        assert plan.returncode == 2
        assert "break-glass-unfit" in plan.stderr
    plan = _sovctl(
        home, "plan", bundle, "--trust", supplier.fingerprint, "--break-glass", REASON, "--json"
    )
    assert "metadata/timestamp.json" in json.loads(plan.stdout)["break_glass"]["expired"]

    done = _install(supplier, home, bundle, f"--break-glass={REASON}")
    assert done.returncode == 0, done.stderr
    events = _events(home)
    actions = [event["action"] for event in events]
    assert actions.index("trust.break-glass") < actions.index("bundle.load")
    subject = events[actions.index("trust.break-glass")]["subject"]
    assert subject["reason"] == "ticket+12:+the+%22supplier%22+is+cut+off"
    assert "timestamp" in subject["expired"].split(",")
    status = json.loads(_sovctl(home, "status", "--json").stdout)
    assert status["break_glass"]["reason"] == REASON
    assert REASON in _sovctl(home, "status").stdout

    fresh = _install(supplier, home, supplier.bundle("new", version="2.0"))
    assert fresh.returncode == 0, fresh.stderr
    assert json.loads(_sovctl(home, "status", "--json").stdout)["break_glass"] is None


def test_a_revoked_release_is_not_gone_back_to_and_not_started(
    supplier: Supplier, home: Home
) -> None:
    assert _install(supplier, home, supplier.bundle("first")).returncode == 0
    old = home.current.resolve()
    manifest = BundleManifest.parse((old / "bundle.json").read_bytes())
    supplier.repository.revoke("bundle", manifest.digest, "it leaks")
    sick = _install(supplier, home, supplier.bundle("second", version="2.0"), "--sick")
    assert "release-revoked" in sick.stderr
    assert "it leaks" in sick.stderr
    assert not (home.run / "fake").exists()
    assert home.current.resolve() != old
    with pytest.raises(ReleaseRevoked):
        lifecycle.start(home, old, 0, Silent(), sealed=False)
    shown = json.loads(_sovctl(home, "trust", "show", "--json").stdout)
    assert shown["revoked"][0]["id"] == manifest.digest
    assert set(shown["roles"]) >= {"root", "targets", "models", "platform"}
