"""The attacks of the TUF specification, section 1.5.2, each by its name, and what goes with them.

Where an attacker has keys, they have real ones: a copy of the supplier's folder with some of its
keys exchanged for keys of their own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import rfc8785
from bundle_samples import FILES, SBOM, Supplier, manifest_of
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle.format import REVOCATIONS, signed_members, ustar_header
from appliance.bundle.load import judge
from appliance.bundle.load import verify as verify_file
from appliance.bundle.reader import BundleReader
from appliance.bundle.writer import BundleContent
from appliance.errors import (
    ApplianceError,
    BundleExpired,
    BundleRevoked,
    BundleRolledBack,
    BundleTampered,
    BundleUntrusted,
    RequestInvalid,
    RevocationInvalid,
    TrustKeysMissing,
)
from appliance.manifests.bundle import BundleManifest
from appliance.progress import Silent
from appliance.trust import model_signature, repository
from appliance.trust.keyring import Keyring
from appliance.trust.keys import new_model_key, new_tuf_key, open_signer, public_pem, save_pair
from appliance.trust.model_signature import key_id_of_pem
from appliance.trust.pin import TrustState, load_state, save_state
from appliance.trust.repository import DELEGATED, ROLES, Repository, Threshold
from appliance.trust.requests import Request
from appliance.trust.revocations import Revocations
from appliance.trust.verifier import Emergency, Verified, Verifier

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=200)
STORM = Emergency("the supplier is cut off")


@pytest.fixture
def supplier(tmp_path: Path) -> Supplier:
    return Supplier.at(tmp_path / "supplier")


def _bundle(
    supplier: Supplier,
    version: str = "1.0",
    name: str = "sample",
    now: datetime | None = None,
    files: Mapping[str, bytes] = FILES,
) -> BundleContent:
    """A bundle as the supplier builds it, with its list of what is revoked."""
    manifest = manifest_of(supplier.store, files, version, name)
    return _signed(supplier, manifest, manifest, now)


def _signed(
    supplier: Supplier,
    manifest: BundleManifest,
    vouched: BundleManifest,
    now: datetime | None = None,
) -> BundleContent:
    """``vouched``: whose artefacts the delegated roles sign."""
    hexes = {file.path: file.hex for file in manifest.artefacts[0].files}
    signatures = {"m": model_signature.sign(hexes, supplier.repository.model_key(), "m")}
    others = {REVOCATIONS: supplier.repository.revocations()}
    members = signed_members(manifest, SBOM, signatures, others)
    metadata = supplier.repository.sign(manifest.name, members, now, artefacts=vouched.artefacts)
    return BundleContent(manifest, SBOM, signatures, metadata, others)


def _verify(
    content: BundleContent,
    state: TrustState,
    now: datetime | None = None,
    emergency: Emergency | None = None,
) -> Verified:
    members = {n: d for n, d in content.members().items() if not n.startswith("metadata/")}
    verifier = Verifier(state, now, emergency)
    return verifier.verify("b.tar", content.metadata, members, lambda: content.manifest)


def _pinned(supplier: Supplier) -> TrustState:
    return TrustState().pinned_to(supplier.repository.fingerprint)


def _thief(supplier: Supplier, *stolen: str) -> Supplier:
    """Somebody with the supplier's public files and the keys of ``stolen`` roles, no others."""
    folder = supplier.folder.parent / f"thief-{'-'.join(stolen)}"
    shutil.copytree(supplier.folder, folder)
    keys = folder / "keys" / "keys"
    for path in keys.glob("*.pem"):
        if path.stem not in stolen:
            path.unlink()
    return Supplier(folder, Repository.open(folder / "keys", lambda: b""))


def _forge(thief: Supplier, *roles: str) -> None:
    """Give the thief keys of their own for ``roles``, as if the public files named them."""
    for role in roles:
        path = thief.folder / "keys" / "keys" / f"{role}.pem"
        path.unlink(missing_ok=True)
        save_pair(path, new_tuf_key(), None)


# --- the attacks ----------------------------------------------------------------------------------


def test_arbitrary_installation_attack(supplier: Supplier, tmp_path: Path) -> None:
    """Something else is offered: under a stranger's keys, or in place of what was signed."""
    stranger = Supplier.at(tmp_path / "stranger")
    with pytest.raises(BundleUntrusted):
        _verify(_bundle(stranger), _pinned(supplier))
    content = _bundle(supplier)
    other = manifest_of(supplier.store, {**FILES, "config.json": b"[]"})
    with pytest.raises(BundleTampered):
        _verify(replace(content, manifest=other), _pinned(supplier))
    path = supplier.write(content)
    data = bytearray(path.read_bytes())
    data[data.rindex(b"p" * 4096) + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleTampered, match="not what was signed"):
        verify_file(path, supplier.verifier(), Silent())


def test_endless_data_attack(supplier: Supplier) -> None:
    """A member, or the file, that goes on and on is refused by its size, before it is read."""
    path = supplier.write(_bundle(supplier))
    data = path.read_bytes()
    path.write_bytes(ustar_header("metadata/1.root.json", 8**11 - 1, b"0") + data[512:])
    with pytest.raises(BundleTampered, match="bundle-tampered"):
        BundleReader(path)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(1 << 40)  # 1 TiB of nothing after the end; reading it would never end
    with BundleReader(path) as reader, pytest.raises(BundleTampered):
        judge(reader, supplier.verifier())


def test_extraneous_dependencies_attack(supplier: Supplier) -> None:
    """One file more than was signed: in the list, or in the archive beside the list."""
    content = _bundle(supplier)
    more = manifest_of(supplier.store, {**FILES, "extra.json": b"import os"})
    with pytest.raises(BundleTampered):
        _verify(replace(content, manifest=more), _pinned(supplier))
    # Who has the bundle's keys adds it to the list: the role it belongs to did not.
    listed = _signed(supplier, more, content.manifest)
    with pytest.raises(BundleTampered, match="not what was signed"):
        _verify(listed, _pinned(supplier))
    path = supplier.write(content)
    stowaway = replace(content, manifest=more)
    path.write_bytes(supplier.write(stowaway, "c.tar").read_bytes())
    with pytest.raises(BundleTampered):
        verify_file(path, supplier.verifier(), Silent())


def test_fast_forward_attack_and_recovery(
    supplier: Supplier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stolen keys a site is shown huge versions, so that it refuses all that follow; new keys
    for the roles bring it back."""
    thief = _thief(supplier, "targets", "snapshot", "timestamp", *DELEGATED, "oms")
    thief.repository.revoke("content", f"sha256:{'ab' * 32}", "to do harm")
    with monkeypatch.context() as patched:
        patched.setattr(repository, "_version_in", lambda _path: 2**30)
        forward = _bundle(thief, "1.1")
    state = _verify(forward, _pinned(supplier)).state
    with pytest.raises(BundleRolledBack):
        _verify(_bundle(supplier, "1.2"), state)
    supplier.repository.rotate((*ROLES, *DELEGATED))
    recovered = _verify(_bundle(supplier, "1.3"), state)
    assert recovered.version < 10
    assert not recovered.revocations.revoked  # the thief's are forgotten with their keys
    save_state(supplier.folder / "site", state)
    save_state(supplier.folder / "site", recovered.state)
    assert load_state(supplier.folder / "site") == recovered.state
    with pytest.raises(BundleUntrusted):
        _verify(forward, recovered.state)


def test_indefinite_freeze_attack(supplier: Supplier) -> None:
    """The same old bundle is offered for ever: it holds for 180 days, then not any more."""
    content = _bundle(supplier, now=NOW)
    state = _verify(content, _pinned(supplier), NOW).state
    _verify(content, state, NOW + timedelta(days=179))
    with pytest.raises(BundleExpired):
        _verify(content, state, NOW + timedelta(days=181))


def test_mix_and_match_attack(supplier: Supplier) -> None:
    """Parts that were signed at different times do not make a bundle."""
    old, new = _bundle(supplier, "1.0"), _bundle(supplier, "2.0", files={"config.json": b"{}"})
    for name in new.metadata:
        if name.endswith("root.json") or old.metadata[name] == new.metadata[name]:
            continue
        mixed = replace(new, metadata={**new.metadata, name: old.metadata[name]})
        with pytest.raises((BundleTampered, BundleRolledBack)):
            _verify(mixed, _pinned(supplier))
    with pytest.raises(BundleTampered):
        _verify(replace(new, manifest=old.manifest), _pinned(supplier))
    with pytest.raises(BundleTampered):
        _verify(replace(new, signatures=old.signatures), _pinned(supplier))


def test_rollback_attack(supplier: Supplier) -> None:
    """An older bundle, an older root or an older list of what is revoked, after a newer one."""
    old = _bundle(supplier, "1.0")
    supplier.repository.revoke("content", f"sha256:{'ab' * 32}", "a test")
    new = _bundle(supplier, "2.0")
    state = _verify(new, _verify(old, _pinned(supplier)).state).state
    with pytest.raises(BundleRolledBack):
        _verify(old, state)
    # Newer versions everywhere, and the list of yesterday: by who has every key but the root's.
    revocations = supplier.folder / "keys" / "revocations.json"
    revocations.write_bytes(old.others[REVOCATIONS])
    with pytest.raises(BundleRolledBack, match="bundle-rollback"):
        _verify(_bundle(supplier, "3.0"), state)
    revocations.write_bytes(new.others[REVOCATIONS])
    supplier.repository.rotate_roles()
    after = _verify(_bundle(supplier, "4.0"), state).state
    with pytest.raises(BundleUntrusted):
        _verify(new, after)


def test_wrong_software_installation_attack(supplier: Supplier) -> None:
    """What was signed as one thing is offered as another."""
    coding, imaging = _bundle(supplier, name="coding"), _bundle(supplier, name="imaging")
    with pytest.raises(BundleTampered):
        _verify(replace(imaging, metadata=coding.metadata), _pinned(supplier))
    members = signed_members(imaging.manifest, SBOM, imaging.signatures, imaging.others)
    metadata = supplier.repository.sign("coding", members, artefacts=imaging.manifest.artefacts)
    path = supplier.write(replace(imaging, metadata=metadata))
    with BundleReader(path) as reader, pytest.raises(BundleTampered):
        judge(reader, supplier.verifier())
    # A model that was signed as a data set is no model.
    (model,) = coding.manifest.artefacts
    dataset = model.model_copy(update={"kind": "dataset"})
    as_data = coding.manifest.model_copy(update={"artefacts": (dataset,)})
    with pytest.raises(BundleTampered):
        _verify(_signed(supplier, coding.manifest, as_data), _pinned(supplier))


@pytest.mark.parametrize("stolen", [*ROLES, *DELEGATED])
def test_vulnerability_to_key_compromises(
    supplier: Supplier, stolen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stolen key, whichever, with one's own for the rest, signs nothing a site installs."""
    state = _verify(_bundle(supplier, "1.0"), _pinned(supplier)).state
    thief = _thief(supplier, stolen, "oms")
    _forge(thief, *({*ROLES, *DELEGATED} - {stolen}))
    keys = thief.folder / "keys" / "keys"
    monkeypatch.setattr(
        Keyring, "signers", lambda _self, role, _keys: [open_signer(f"{keys}/{role}.pem", bytes)]
    )
    forged = _bundle(thief, "2.0", files={"config.json": b"[]"})
    for trust in (state, _pinned(supplier)):
        with pytest.raises(BundleUntrusted):
            _verify(forged, trust)


def test_the_bundles_keys_alone_bring_no_model(supplier: Supplier) -> None:
    """Targets, snapshot and timestamp stolen together, the everyday keys: the model is unsigned."""
    _bundle(supplier, "1.0")
    thief = _thief(supplier, *ROLES, "oms")
    with pytest.raises(ApplianceError) as caught:
        _bundle(thief, "2.0", files={"config.json": b"[]"})
    assert caught.value.code == "signature-awaited"


def test_one_root_key_of_two_makes_no_root(supplier: Supplier) -> None:
    thief = _thief(supplier, "root-1", "oms")
    _forge(thief, *ROLES, *DELEGATED)
    with pytest.raises(TrustKeysMissing):
        thief.repository.rotate_root(Threshold(1, 1))
    request = thief.repository.rotate(ROLES)
    assert request is not None
    assert not (thief.folder / "keys" / "roots" / "2.root.json").exists()


# --- time -----------------------------------------------------------------------------------------


def test_wrong_clock(supplier: Supplier) -> None:
    """A clock set back does not revive what has expired once this site saw a later time."""
    old = _bundle(supplier, "1.0", now=NOW)
    fresh = _bundle(supplier, "2.0", now=LATER)
    state = _verify(fresh, _pinned(supplier), LATER).state
    assert state.clock == LATER
    with pytest.raises((BundleExpired, BundleRolledBack)):
        _verify(old, state, NOW)
    with pytest.raises(BundleExpired):
        _verify(_bundle(supplier, "3.0", now=NOW), state, NOW)


def test_expired_with_broken_glass(supplier: Supplier) -> None:
    content = _bundle(supplier, now=NOW)
    with pytest.raises(BundleExpired, match="bundle-expired"):
        _verify(content, _pinned(supplier), LATER)
    verified = _verify(content, _pinned(supplier), LATER, STORM)
    assert {"metadata/timestamp.json", "metadata/models.json"} <= set(verified.expired)
    assert verified.state.clock == LATER
    with pytest.raises(BundleExpired):  # the next time again needs a reason
        _verify(content, verified.state, LATER)
    unneeded = _verify(_bundle(supplier, "2.0"), _pinned(supplier), emergency=STORM)
    assert not unneeded.expired


def test_broken_glass_forgives_nothing_but_expiry(supplier: Supplier, tmp_path: Path) -> None:
    old, new = _bundle(supplier, "1.0", now=NOW), _bundle(supplier, "2.0", now=NOW)
    state = _verify(new, _pinned(supplier), NOW).state
    with pytest.raises(BundleRolledBack):
        _verify(old, state, LATER, STORM)
    with pytest.raises(BundleTampered):
        _verify(replace(new, sbom=b"{}"), state, LATER, STORM)
    with pytest.raises(BundleUntrusted):
        _verify(_bundle(Supplier.at(tmp_path / "stranger"), now=NOW), state, LATER, STORM)
    supplier.repository.revoke("bundle", new.manifest.digest, "a test")
    with pytest.raises(BundleRevoked):
        _verify(_bundle(supplier, "2.0", now=NOW), state, LATER, STORM)


# --- revocation -----------------------------------------------------------------------------------


def _of_bundle(content: BundleContent) -> str:
    return content.manifest.digest


def _of_artefact(content: BundleContent) -> str:
    return f"sha256:{hashlib.sha256(content.manifest.artefacts[0].canonical()).hexdigest()}"


def _of_file(content: BundleContent) -> str:
    return content.manifest.artefacts[0].files[-1].digest


@pytest.mark.parametrize("what", [_of_bundle, _of_artefact, _of_file])
def test_what_is_revoked_is_refused_whoever_brings_it(
    supplier: Supplier, what: Callable[[BundleContent], str]
) -> None:
    bad = _bundle(supplier, "1.0")
    state = _verify(bad, _pinned(supplier)).state
    kind = "bundle" if what is _of_bundle else "content"
    assert supplier.repository.revoke(kind, what(bad), "it leaks")  # type: ignore[arg-type]
    assert not supplier.repository.revoke(kind, what(bad), "again")  # type: ignore[arg-type]
    # Another product of the same supplier tells the site, which then refuses the first one.
    other = _bundle(supplier, name="other", files={"config.json": b"[1]"})
    state = _verify(other, state).state
    with pytest.raises(BundleRevoked) as caught:
        _verify(bad, state)
    assert "it leaks" in caught.value.sentences()[1]
    with pytest.raises(BundleRevoked):  # and so it would be by itself
        _verify(_bundle(supplier, "1.0"), _pinned(supplier))


def test_a_revoked_key_signs_nothing_any_more(supplier: Supplier) -> None:
    repo = supplier.repository
    before = _bundle(supplier, "1.0")
    oms = key_id_of_pem(public_pem(repo.model_key()))
    models = next(k for k, role in repo.keys_in_use().items() if role == "models")
    for in_use in (oms, models):
        with pytest.raises(RevocationInvalid):
            repo.revoke("key", in_use, "stolen")
    with pytest.raises(RevocationInvalid):
        repo.revoke("key", "12", "stolen")
    repo.rotate(["oms", "models"])
    repo.revoke("key", oms, "stolen")
    repo.revoke("key", models, "stolen")
    told = _verify(_bundle(supplier, name="other"), _pinned(supplier)).state
    with pytest.raises(BundleRevoked):
        _verify(before, told)
    _verify(_bundle(supplier, "2.0"), told)


def test_a_list_outlives_the_key_that_signed_it(supplier: Supplier) -> None:
    """The supplier's own list comes again under the new key, with the bundle that brings it."""
    bad = _bundle(supplier, "1.0")
    supplier.repository.revoke("bundle", bad.manifest.digest, "it leaks")
    state = _verify(_bundle(supplier, name="other"), _pinned(supplier)).state
    supplier.repository.rotate_roles()
    after = _verify(_bundle(supplier, name="third"), state)
    assert after.revocations.find("bundle", bad.manifest.digest)
    assert REVOCATIONS not in after.state.seen["other"]
    with pytest.raises(BundleRevoked):
        _verify(_bundle(supplier, "1.0"), after.state)


def test_an_ecdsa_signature_has_one_form(supplier: Supplier, tmp_path: Path) -> None:
    """Anybody can turn one ECDSA signature into another that verifies: refused all the same."""
    key = tmp_path / "hsm.pem"
    save_pair(key, new_model_key(), None)
    supplier.repository.rotate(given={"models": str(key.with_suffix(".pub"))})
    shutil.copy(key, supplier.folder / "keys" / "keys" / "models.pem")
    content = _bundle(supplier)
    _verify(content, _pinned(supplier))
    tree = json.loads(content.metadata["models.json"])
    (signature,) = tree["signatures"]
    r, s = decode_dss_signature(bytes.fromhex(signature["sig"]))
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    signature["sig"] = encode_dss_signature(r, order - s).hex()
    other = {**content.metadata, "models.json": rfc8785.dumps(tree)}
    with pytest.raises(BundleTampered):
        _verify(replace(content, metadata=other), _pinned(supplier))


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda t: f'{{"a":"{t}"}}'.encode()))
def test_junk_is_no_request_and_no_list(data: bytes) -> None:
    with pytest.raises(RequestInvalid):
        Request.parse(data, "junk")
    with pytest.raises(ValueError):
        Revocations.parse(data)
