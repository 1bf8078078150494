"""Carrying a bundle as an operator does it: ``sovctl`` in processes of its own."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_bundle import Supplier

from appliance.bundle.load import load
from appliance.layout import Home
from appliance.progress import Silent
from appliance.store.blobs import Store
from appliance.store.releases import Releases
from appliance.trust.pin import TrustState
from appliance.trust.verifier import Verifier


@pytest.fixture
def supplier(tmp_path: Path) -> Supplier:
    return Supplier.at(tmp_path / "supplier")


def _run(
    home: Path, *arguments: object, within: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*within, sys.executable, "-m", "appliance.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "SOVCTL_HOME": str(home), "LANGUAGE": "en"},
    )


def _ask(home: Path, *arguments: object) -> Any:
    done = _run(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _code(home: Path, *arguments: object, within: tuple[str, ...] = ()) -> str:
    refused = _run(home, *arguments, "--json", within=within)
    assert refused.returncode != 0
    code = json.loads(refused.stderr)["error"]["code"]
    assert isinstance(code, str)
    return code


@pytest.mark.skipif(shutil.which("age-keygen") is None, reason="age is not installed")
def test_a_bundle_on_two_disks_encrypted(supplier: Supplier, tmp_path: Path) -> None:
    home, bundle = tmp_path / "home", supplier.bundle("b")
    keys = ("--keys", supplier.folder / "keys")
    identity = tmp_path / "identity"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    recipient = subprocess.run(
        ["age-keygen", "-y", identity], check=True, capture_output=True, text=True
    ).stdout.strip()
    sealed = tmp_path / "b.sealed.tar"
    _ask(home, "bundle", "encrypt", bundle, "--recipient", recipient, "--out", sealed, *keys)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    made = _ask(home, "bundle", "split", sealed, "--size", "60000", "--out", one, *keys)
    parts = [Path(part["part"]) for part in made["parts"]]
    assert [part["size"] for part in made["parts"][:-1]] == [60000] * (len(parts) - 1)
    for part in parts[1:]:
        shutil.move(part, two)
    trust = ("--trust", supplier.fingerprint)
    assert _code(home, "bundle", "verify", parts[0], *trust) == "part-missing"
    both = (parts[0], "--parts", two, *trust)
    assert _ask(home, "bundle", "verify", *both)["signature"]["trusted"]
    assert _ask(home, "bundle", "inspect", *both)["name"] == "small"
    planned = _run(home, "plan", *both, "--identity", identity, "--json")
    assert json.loads(planned.stdout)["release"].startswith("small-1.0-")
    clear = tmp_path / "clear.tar"
    opening = ("--parts", two, "--identity", identity)
    _ask(home, "bundle", "decrypt", parts[0], "--out", clear, *opening)
    assert clear.read_bytes() == bundle.read_bytes()
    joined = _ask(home, "bundle", "join", parts[0], "--parts", two, "--out", tmp_path / "j.tar")
    assert Path(joined["path"]).read_bytes() == sealed.read_bytes()


def test_somebody_at_a_terminal_is_asked_for_the_next_part(
    supplier: Supplier, tmp_path: Path
) -> None:
    keys = ("--keys", supplier.folder / "keys")
    bundle, one, two = supplier.bundle("b"), tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    _ask(tmp_path, "bundle", "split", bundle, "--size", "60000", "--out", one, *keys)
    shutil.move(one / "b.tar.part0002", two)
    leader, follower = pty.openpty()
    command = ("bundle", "join", one / "b.tar.part0001", "--out", tmp_path / "joined.tar")
    with subprocess.Popen(
        [sys.executable, "-m", "appliance.cli.main", *map(str, command)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "LANGUAGE": "en"},
    ) as child:
        os.close(follower)
        shown = b""
        while b"and Enter." not in shown:
            assert select.select([leader], [], [], 30)[0], shown
            shown += os.read(leader, 4096)
        assert b"Part 2 of" in shown
        os.write(leader, f"{two}\n".encode())
        try:
            while os.read(leader, 4096):
                pass
        except OSError:
            pass  # the child closed the terminal
        assert child.wait() == 0
    os.close(leader)
    assert (tmp_path / "joined.tar").read_bytes() == bundle.read_bytes()


def test_a_delta_is_planned_and_refused_without_its_base(
    supplier: Supplier, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    keys = ("--keys", supplier.folder / "keys")
    old, new = supplier.bundle("old"), supplier.bundle("new", "2.0")
    thin = tmp_path / "thin.tar"
    options = (new, "--base", old, "--out", thin)
    would = _ask(home.root, "bundle", "delta", *options, "--dry-run")
    assert not thin.exists()
    assert would["left_out"] == 0  # every file of the small bundle holds its version
    _ask(home.root, "bundle", "delta", *options, *keys)
    trust = ("--trust", supplier.fingerprint)
    assert _ask(home.root, "bundle", "verify", thin, *trust)["version"] == "2.0"
    same = supplier.bundle("same", "1.1", payload=100_000, wheels=0)
    less = supplier.bundle("less", "1.1", payload=100_000, wheels=1)
    _ask(home.root, "bundle", "delta", less, "--base", same, "--out", thin, *keys)
    assert _code(home.root, "plan", thin, *trust) == "base-missing"
    shown = _ask(home.root, "bundle", "inspect", thin)["delta"]
    assert shown["base"] == _ask(home.root, "bundle", "inspect", same)["digest"]
    assert shown["left_out"]
    pinned = TrustState().pinned_to(supplier.repository.fingerprint)
    load(same, Store(home.store), Verifier(pinned), Silent())
    planned = json.loads(_run(home.root, "plan", thin, *trust, "--json").stdout)
    blobs = next(step for step in planned["phases"] if step["phase"] == "blobs")
    assert 0 < blobs["bytes"] < 100_000  # counts what is missing, not what the bundle has


def test_what_changed_between_two_bundles(supplier: Supplier, tmp_path: Path) -> None:
    old, new = supplier.bundle("old"), supplier.bundle("new", "2.0")
    found = _ask(tmp_path, "bundle", "diff", old, new)
    assert {(a["kind"], a["name"], a["change"]) for a in found["artefacts"]} == {
        ("dataset", "rows", "changed"),
        ("wheelhouse", "runtime", "changed"),
    }
    assert found["new_bytes"] > 100_000
    assert "A delta would carry" in _run(tmp_path, "bundle", "diff", old, new).stdout
    assert _ask(tmp_path, "bundle", "diff", old, old)["artefacts"] == []


def test_a_copy_goes_on_and_refusals_have_codes(supplier: Supplier, tmp_path: Path) -> None:
    bundle, target = supplier.bundle("b"), tmp_path / "copy.tar"
    target.write_bytes(bundle.read_bytes()[:70_000])
    copied = _ask(tmp_path, "bundle", "copy", bundle, target)
    assert copied["kept"] > 10_000
    assert target.read_bytes() == bundle.read_bytes()
    (tmp_path / "other").write_bytes(b"?")
    keys = ("--keys", supplier.folder / "keys")
    assert _code(tmp_path, "bundle", "copy", bundle, tmp_path / "other") == "target-taken"
    split = ("bundle", "split", bundle, "--out", tmp_path, *keys)
    assert _code(tmp_path, *split, "--size", "100") == "part-size-invalid"
    encrypt = ("bundle", "encrypt", bundle, "--hidden", "--out", tmp_path / "x")
    assert _code(tmp_path, *encrypt, "--recipient", "age1x") == "recipient-invalid"
    assert _code(tmp_path, "bundle", "export", "--model", "m", "--out", "x", *keys) == (
        "not-installed"
    )
    assert Releases(Home(tmp_path)).list() == ()


def test_a_medium_that_ends_files_early_is_not_called_full(
    supplier: Supplier, tmp_path: Path
) -> None:
    """FAT answers EFBIG at 4 GiB, with any amount free; the kernel does so here at a limit."""
    bundle = supplier.bundle("b", payload=1_000_000)
    stick, limited = tmp_path / "stick", ("prlimit", "--fsize=300000")
    stick.mkdir()
    keys = ("--keys", supplier.folder / "keys")
    split = ("bundle", "split", bundle, "--out", stick, *keys, "--size")
    copy = ("bundle", "copy", bundle, stick / "b.tar")
    assert _code(tmp_path, *split, "900kB", within=limited) == "file-too-large"
    assert _code(tmp_path, *copy, within=limited) == "file-too-large"
    assert not (stick / "b.tar").exists()
    _ask(tmp_path, *copy)
    assert (stick / "b.tar").read_bytes() == bundle.read_bytes()
