"""Our OpenPGP against GnuPG, and against Sequoia where it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from appliance.errors import TrustKeysMissing
from appliance.trust.keys import new_model_key, new_tuf_key
from appliance.trust.openpgp import KEY_DATE, ArchiveKey

AT = 1_700_000_000
RELEASE = b"Origin: sovctl\n- a dash\n-----BEGIN PGP SIGNATURE-----\n\nSHA256:\n 00 1 Packages\n"

needs_gpg = pytest.mark.skipif(
    not (shutil.which("gpg") and shutil.which("gpgv")), reason="gpg and gpgv are not installed"
)


@pytest.fixture
def key() -> ArchiveKey:
    return ArchiveKey(CryptoSigner(new_tuf_key()), "Hospital packages")


def gpg(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    home = folder / "gnupg"
    home.mkdir(mode=0o700, exist_ok=True)
    command = ["gpg", "--homedir", str(home), "--batch", "--no-autostart", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def gpgv(keyring: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    command = ["gpgv", "--status-fd", "1", "--keyring", str(keyring), *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def keyring_of(key: ArchiveKey, folder: Path) -> Path:
    (folder / "key.asc").write_bytes(key.certificate())
    done = gpg(folder, "--yes", "--output", str(folder / "key.gpg"), "--dearmor",
               str(folder / "key.asc"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "key.gpg"


@needs_gpg
def test_gnupg_reads_the_key_and_names_it_as_we_do(key: ArchiveKey, tmp_path: Path) -> None:
    keyring_of(key, tmp_path)
    shown = gpg(tmp_path, "--with-colons", "--show-keys", str(tmp_path / "key.asc")).stdout
    rows = [line.split(":") for line in shown.splitlines()]
    public = next(row for row in rows if row[0] == "pub")
    assert (public[3], public[5], public[11]) == ("22", str(KEY_DATE), "scSC")
    assert next(row for row in rows if row[0] == "fpr")[9].lower() == key.fingerprint
    assert next(row for row in rows if row[0] == "uid")[9] == "Hospital packages"


@needs_gpg
def test_gnupg_verifies_both_forms_and_gives_back_the_text(key: ArchiveKey, tmp_path: Path) -> None:
    keyring = keyring_of(key, tmp_path)
    release, detached, clear = (tmp_path / n for n in ("Release", "Release.gpg", "InRelease"))
    release.write_bytes(RELEASE)
    detached.write_bytes(key.detach_sign(RELEASE, AT))
    clear.write_bytes(key.clear_sign(RELEASE, AT))
    for files in ((detached, release), (clear,)):
        done = gpgv(keyring, *files)
        assert done.returncode == 0, done.stderr
        assert f"[GNUPG:] VALIDSIG {key.fingerprint.upper()} 2023-11-14 {AT}" in done.stdout
    done = subprocess.run(
        ["gpgv", "--keyring", str(keyring), "--output", "-", str(clear)],
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == RELEASE
    release.write_bytes(RELEASE.replace(b"00 1", b"01 1"))
    assert gpgv(keyring, detached, release).returncode != 0
    clear.write_bytes(clear.read_bytes().replace(b"00 1", b"01 1"))
    assert gpgv(keyring, clear).returncode != 0


@needs_gpg
@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(lines=st.lists(st.text("-ab: \t\x0cé", max_size=70).map(lambda s: s.rstrip(" \t"))))
def test_any_text_survives_clear_signing(lines: list[str], tmp_path: Path) -> None:
    key = ArchiveKey(CryptoSigner(new_tuf_key()), "x")  # a new one each: odd leading bits too
    text = "".join(f"{line}\n" for line in ["x", *lines]).encode()
    clear = tmp_path / "InRelease"
    clear.write_bytes(key.clear_sign(text, AT))
    assert gpgv(keyring_of(key, tmp_path), clear).returncode == 0


@pytest.mark.skipif(
    not shutil.which("sqv"), reason="sqv (apt's verifier from 3.0) is not installed"
)
def test_sequoia_verifies_it(key: ArchiveKey, tmp_path: Path) -> None:
    (tmp_path / "key.asc").write_bytes(key.certificate())
    (tmp_path / "Release").write_bytes(RELEASE)
    (tmp_path / "Release.gpg").write_bytes(key.detach_sign(RELEASE, AT))
    command = ["sqv", "--keyring", "key.asc", "Release.gpg", "Release"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and key.fingerprint.upper() in done.stdout, done.stderr


def test_the_same_input_makes_the_same_bytes(key: ArchiveKey) -> None:
    again = ArchiveKey(key.signer, key.user_id)
    assert again.certificate() == key.certificate()
    assert again.clear_sign(RELEASE, AT) == key.clear_sign(RELEASE, AT)
    assert again.detach_sign(RELEASE, AT) == key.detach_sign(RELEASE, AT)


@pytest.mark.parametrize("text", [b"no newline", b"a \nb\n", b"a\t\n", b"a\r\n"])
def test_what_the_signature_would_not_cover_is_not_signed(key: ArchiveKey, text: bytes) -> None:
    with pytest.raises(ValueError, match="white space"):
        key.clear_sign(text, AT)


def test_another_kind_of_key_is_refused() -> None:
    with pytest.raises(TrustKeysMissing) as caught:
        ArchiveKey(CryptoSigner(new_model_key()), "x").certificate()
    assert "Ed25519" in caught.value.values["reason"]
