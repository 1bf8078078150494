"""What users of other air-gap packagers complain of and no other test here covers by name.

``docs/lessons.md`` lists all of it, and where each is tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from small_bundle import Supplier

from appliance.bundle.load import BUFFER, load
from appliance.progress import Silent, Task, Unit
from appliance.store.blobs import Store
from appliance.trust.pin import TrustState
from appliance.trust.verifier import Verifier

# Ends the process at the first attempt to look a name up or to connect anywhere.
_NO_CALLS = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        os.write(2, f"{event} {args}".encode())
        os._exit(99)
sys.addaudithook(hook)
from appliance.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def supplier(tmp_path: Path) -> Supplier:
    return Supplier.at(tmp_path / "supplier")


def _verifier(supplier: Supplier) -> Verifier:
    return Verifier(TrustState().pinned_to(supplier.repository.fingerprint))


def test_nothing_goes_through_tmp(
    supplier: Supplier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the library's means nor by name, and the bundle's bytes are on the disk once."""
    bundle = supplier.bundle("b", payload=3_000_000)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something wants a temporary file")

    for name in ("mkstemp", "mkdtemp", "TemporaryFile", "NamedTemporaryFile", "gettempdir"):
        monkeypatch.setattr(tempfile, name, forbidden)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    store = Store(tmp_path / "store")
    loaded = load(bundle, store, _verifier(supplier), Silent())
    kept = sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file())
    assert kept == loaded.written


@dataclass
class _Watched(Silent):
    """Counts how often somebody hears of the work, and of how much of it."""

    heard: list[int] = field(default_factory=list)
    total: int | None = None

    @contextmanager
    def task(self, title: str, total: int | None, unit: Unit) -> Iterator[Task]:
        self.total = total
        with super().task(title, total, unit) as task:
            task.advance = self.heard.append  # type: ignore[method-assign]
            yield task


def test_no_silent_hours(supplier: Supplier, tmp_path: Path) -> None:
    """Progress is told at every buffer, and ends at its total."""
    bundle = supplier.bundle("b", payload=5 * BUFFER)
    progress = _Watched()
    load(bundle, Store(tmp_path / "store"), _verifier(supplier), progress)
    assert max(progress.heard) <= BUFFER
    assert sum(progress.heard) == progress.total


def test_no_command_of_the_air_gapped_side_calls_anybody(
    supplier: Supplier, tmp_path: Path
) -> None:
    bundle, newer = supplier.bundle("old"), supplier.bundle("new", version="2.0")
    home = tmp_path / "home"
    parts, keys = tmp_path / "parts", supplier.folder / "keys"
    parts.mkdir()
    commands: list[list[object]] = [
        ["trust", "pin", supplier.fingerprint],
        ["bundle", "inspect", bundle],
        ["bundle", "verify", bundle],
        ["plan", bundle],
        ["bundle", "copy", bundle, tmp_path / "copy.tar"],
        ["bundle", "split", bundle, "--size", "64KB", "--out", parts, "--keys", keys],
        ["bundle", "diff", bundle, newer],
        ["bundle", "licences", bundle],
        ["status"],
    ]  # fmt: skip
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-c", _NO_CALLS, *map(str, command)],
            env={**os.environ, "SOVCTL_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 99, (command, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in {0, 4, 5}, (command, done.returncode, done.stderr)
