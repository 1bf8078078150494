"""``sovctl trust`` and ``sovctl bundle`` as an operator meets them: real processes, real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_bundle import Supplier


@pytest.fixture
def supplier(tmp_path: Path) -> Supplier:
    return Supplier.at(tmp_path / "supplier")


def _sovctl(home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "appliance.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "SOVCTL_HOME": str(home), "LANGUAGE": "en"},
    )


def test_from_keys_to_a_verified_bundle(supplier: Supplier, tmp_path: Path) -> None:
    home, bundle = tmp_path / "home", supplier.bundle("b")
    looked = json.loads(_sovctl(home, "bundle", "inspect", bundle, "--json").stdout)
    assert looked["signature"] == {
        "trusted": False,
        "root": supplier.fingerprint,
        "demo": None,
        "version": None,
        "expires": None,
    }
    assert _sovctl(home, "bundle", "verify", bundle).returncode == 3
    grouped = [supplier.fingerprint[i : i + 8] for i in range(0, 64, 8)]
    assert _sovctl(home, "trust", "pin", *grouped).returncode == 0
    assert json.loads(_sovctl(home, "trust", "show", "--json").stdout)["pinned"] == (
        supplier.fingerprint
    )
    checked = json.loads(_sovctl(home, "bundle", "verify", bundle, "--json").stdout)
    assert checked["signature"]["trusted"]
    assert checked["signature"]["demo"]
    assert "demo keys" in _sovctl(home, "bundle", "inspect", bundle).stdout


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda data: data[:-5000], "bundle-truncated"),
        (lambda data: data[:-3000] + b"!" + data[-2999:], "bundle-tampered"),
        (lambda data: b"hello", "not-a-bundle"),
    ],
)
def test_refusals_have_codes_and_no_traceback(
    supplier: Supplier, tmp_path: Path, harm: object, code: str
) -> None:
    bundle = supplier.bundle("b")
    bundle.write_bytes(harm(bundle.read_bytes()))  # type: ignore[operator]
    arguments = ("bundle", "verify", bundle, "--trust", supplier.fingerprint)
    refused = _sovctl(tmp_path / "home", *arguments, "--json")
    assert json.loads(refused.stderr)["error"]["code"] == code
    assert refused.returncode in {2, 3}
    assert "Traceback" not in _sovctl(tmp_path / "home", *arguments).stderr
    assert not (tmp_path / "home").exists()


def test_keys_are_made_with_a_passphrase_from_a_file_or_not_at_all(tmp_path: Path) -> None:
    keys, secret = tmp_path / "keys", tmp_path / "secret"
    refused = _sovctl(tmp_path, "trust", "init", "--out", keys)
    assert "passphrase-needed" in refused.stderr
    assert not (keys / "keys").exists()
    secret.write_text("correct horse battery staple\n")
    with secret.open() as file:
        made = subprocess.run(
            [
                *(sys.executable, "-m", "appliance.cli.main", "trust", "init", "--json"),
                *("--out", str(keys), "--passphrase-fd", str(file.fileno())),
            ],
            pass_fds=[file.fileno()],
            capture_output=True,
            text=True,
            check=True,
        )
    value = json.loads(made.stdout)
    assert (value["threshold"], value["keys"], value["demo"]) == (2, 3, False)
    shown = json.loads(_sovctl(tmp_path, "trust", "show", "--keys", keys, "--json").stdout)
    assert shown["fingerprint"] == value["fingerprint"]
    assert "trust-keys-exist" in _sovctl(tmp_path, "trust", "init", "--demo", "--out", keys).stderr
