"""Encrypted bundles against the ``age`` program: each opens what the other made."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from bundle_samples import FILES, Supplier

from appliance.bundle import age
from appliance.bundle.copying import copy
from appliance.bundle.encryption import Sealer, decrypt, encrypt, encrypt_hidden
from appliance.bundle.load import load, verify
from appliance.bundle.opening import Opening
from appliance.bundle.reader import BundleReader
from appliance.bundle.split import split
from appliance.errors import (
    ApplianceError,
    BundleTampered,
    BundleTruncated,
    IdentityNeeded,
    IdentityRefused,
    IdentityUnusable,
    NotABundle,
    NotEncrypted,
    RecipientInvalid,
)
from appliance.progress import Silent
from appliance.store.blobs import Store

pytestmark = pytest.mark.skipif(
    shutil.which("age") is None or shutil.which("age-keygen") is None,
    reason="the age program is not installed (Debian: age)",
)
QUIET = Silent()


@dataclass(frozen=True)
class Holder:
    """Who can decrypt: an identity file made by age-keygen."""

    file: Path
    recipient: str

    @classmethod
    def at(cls, file: Path) -> Holder:
        subprocess.run(["age-keygen", "-o", file], check=True, capture_output=True)
        shown = subprocess.run(["age-keygen", "-y", file], check=True, capture_output=True)
        return cls(file, shown.stdout.decode().strip())

    @property
    def opening(self) -> Opening:
        return Opening(identity=self.file)


@pytest.fixture(scope="module")
def supplier(tmp_path_factory: pytest.TempPathFactory) -> Supplier:
    return Supplier.at(tmp_path_factory.mktemp("supplier"))


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Holder:
    return Holder.at(tmp_path_factory.mktemp("holder") / "identity.txt")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Holder:
    return Holder.at(tmp_path_factory.mktemp("stranger") / "identity.txt")


@pytest.fixture(scope="module")
def bundle(supplier: Supplier) -> Path:
    files = {**FILES, "large.safetensors": bytes(range(251)) * 40_000}
    return supplier.write(supplier.content(files, name="secret"), "secret.tar")


@pytest.fixture(scope="module")
def readable(supplier: Supplier, bundle: Path, holder: Holder) -> Path:
    out = supplier.folder / "readable.tar"
    encrypt(bundle, out, Sealer((holder.recipient,), supplier.repository), QUIET)
    return out


@pytest.fixture(scope="module")
def hidden(bundle: Path, holder: Holder) -> Path:
    out = bundle.with_name("hidden.age")
    encrypt_hidden(bundle, out, [holder.recipient], QUIET)
    return out


def test_age_opens_a_hidden_bundle(hidden: Path, bundle: Path, holder: Holder) -> None:
    opened = subprocess.run(
        ["age", "-d", "-i", holder.file, hidden], capture_output=True, check=True
    )
    assert opened.stdout == bundle.read_bytes()


def test_age_opens_one_blob_of_a_readable_bundle(
    readable: Path, holder: Holder, tmp_path: Path
) -> None:
    subprocess.run(["tar", "-xf", readable, "-C", tmp_path], check=True)
    with BundleReader(readable) as reader:
        assert reader.manifest.name == "secret"  # in clear
        for name, blob in reader.blob_of.items():
            opened = subprocess.run(
                ["age", "-d", "-i", holder.file, tmp_path / name], capture_output=True, check=True
            )
            assert len(opened.stdout) == blob.size


def test_what_age_made_is_verified_and_loaded(
    supplier: Supplier, bundle: Path, holder: Holder, tmp_path: Path
) -> None:
    made = tmp_path / "made.age"
    subprocess.run(["age", "-r", holder.recipient, "-o", made, bundle], check=True)
    verify(made, supplier.verifier(), QUIET, holder.opening)
    store = Store(tmp_path / "store")
    loaded = load(made, store, supplier.verifier(), QUIET, holder.opening)
    assert loaded.written == sum(blob.size for blob in loaded.manifest.blobs())
    assert decrypt(made, tmp_path / "clear.tar", QUIET, holder.opening).path.read_bytes() == (
        bundle.read_bytes()
    )


def test_a_readable_bundle_is_checked_without_an_identity_and_loaded_with_one(
    supplier: Supplier, readable: Path, bundle: Path, holder: Holder, tmp_path: Path
) -> None:
    verify(readable, supplier.verifier(), QUIET)
    verify(readable, supplier.verifier(), QUIET, holder.opening)
    store = Store(tmp_path / "store")
    with pytest.raises(IdentityNeeded):
        load(readable, store, supplier.verifier(), QUIET)
    load(readable, store, supplier.verifier(), QUIET, holder.opening)
    for digest in store.digests():
        store.check(digest)
    # what is in the store needs no identity
    assert load(readable, store, supplier.verifier(), QUIET).written == 0
    clear = decrypt(readable, tmp_path / "clear.tar", QUIET, holder.opening)
    assert clear.path.read_bytes() == bundle.read_bytes()


@pytest.mark.parametrize("which", ["readable", "hidden"])
def test_an_encrypted_bundle_travels_in_parts(
    which: str,
    supplier: Supplier,
    holder: Holder,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    path: Path = request.getfixturevalue(which)
    made = split(path, 3_000_000, tmp_path, supplier.repository, QUIET)
    assert len(made.paths) > 2
    load(made.paths[1], Store(tmp_path / "s"), supplier.verifier(), QUIET, holder.opening)
    copied = copy(path, tmp_path / "copy", QUIET)
    assert copied.path.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("which", ["readable", "hidden"])
def test_the_wrong_identity_is_refused(
    which: str, supplier: Supplier, stranger: Holder, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(which)
    store = Store(tmp_path / "store")
    with pytest.raises(IdentityRefused):
        load(path, store, supplier.verifier(), QUIET, stranger.opening)
    assert list(store.digests()) == []
    sealer = Sealer((stranger.recipient,), supplier.repository)
    with pytest.raises(NotEncrypted):
        encrypt(path, tmp_path / "twice", sealer, QUIET)


@pytest.mark.parametrize("which", ["readable", "hidden"])
@pytest.mark.parametrize("at", [10, 500, -700_000, -70_000, -3000, -600, -5])
def test_a_flipped_bit_is_refused_and_nothing_is_used(
    which: str,
    at: int,
    supplier: Supplier,
    holder: Holder,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    data = bytearray(request.getfixturevalue(which).read_bytes())
    data[at] ^= 4
    path = tmp_path / "flipped"
    path.write_bytes(data)
    store = Store(tmp_path / "store")
    with pytest.raises(ApplianceError) as refusal:
        load(path, store, supplier.verifier(), QUIET, holder.opening)
    assert refusal.value.code in {"bundle-tampered", "not-a-bundle", "identity-refused"}
    for digest in store.digests():
        store.check(digest)


@pytest.mark.parametrize("keep", [100, 250, 70_000, 3_000_000, -1, -20, -70_000])
def test_a_truncated_hidden_bundle_is_refused(
    keep: int, supplier: Supplier, hidden: Path, holder: Holder, tmp_path: Path
) -> None:
    path = tmp_path / "short"
    path.write_bytes(hidden.read_bytes()[:keep])
    with pytest.raises((BundleTruncated, BundleTampered)):
        verify(path, supplier.verifier(), QUIET, holder.opening)


@pytest.mark.parametrize("payload", [0, 15, 16, 17, 48, 500, 528])
def test_a_hidden_bundle_cut_off_after_its_header_is_refused(
    payload: int, supplier: Supplier, hidden: Path, holder: Holder, tmp_path: Path
) -> None:
    """Where its header ends differs from file to file: age adds a line of random length."""
    data = hidden.read_bytes()
    nonce = data.index(b"\n", data.index(b"\n--- ") + 1) + 1
    path = tmp_path / "short"
    path.write_bytes(data[: nonce + 16 + payload])
    with pytest.raises((BundleTruncated, BundleTampered)):
        verify(path, supplier.verifier(), QUIET, holder.opening)


def test_a_short_message_to_us_is_whole_and_no_bundle(holder: Holder, tmp_path: Path) -> None:
    path = tmp_path / "message.age"
    command = ["age", "-r", holder.recipient, "-o", path]
    subprocess.run(command, input=b"The disk follows by courier.", check=True)
    with pytest.raises(NotABundle):
        BundleReader(path, holder.opening)


def test_keys_that_are_none_are_refused(bundle: Path, hidden: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipientInvalid):
        age.check_recipients(["age1nonsense"])
    nothing = tmp_path / "nothing"
    nothing.write_text("# created: never\n")
    with pytest.raises(IdentityUnusable):
        BundleReader(hidden, Opening(identity=nothing))
    with pytest.raises(IdentityNeeded):
        BundleReader(hidden)
