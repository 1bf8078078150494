"""The attacks TUF is for, against real metadata: rollback, expiry, too few keys, rotation, pins."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import rfc8785
from bundle_samples import Supplier
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import Metadata, Root

from appliance.bundle.format import signed_members
from appliance.bundle.writer import BundleContent
from appliance.errors import (
    ApplianceError,
    BundleExpired,
    BundleRolledBack,
    BundleTampered,
    BundleUnsigned,
    BundleUntrusted,
    FingerprintMalformed,
    PassphraseNeeded,
    PassphraseWrong,
    TrustKeysExist,
    TrustKeysMissing,
    TrustNotPinned,
    TrustPinDiffers,
    TrustThresholdInvalid,
)
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.pin import TrustState, load_state, pin, replace_pin, save_state
from appliance.trust.repository import Repository, Threshold
from appliance.trust.verifier import Verified, Verifier


@pytest.fixture
def supplier(tmp_path: Path) -> Supplier:
    return Supplier.at(tmp_path)


def _verify(content: BundleContent, state: TrustState, now: datetime | None = None) -> Verified:
    members = signed_members(content.manifest, content.sbom, content.signatures, content.others)
    return Verifier(state, now).verify("b.tar", content.metadata, members, lambda: content.manifest)


def _pinned(supplier: Supplier) -> TrustState:
    return TrustState().pinned_to(supplier.repository.fingerprint)


def test_nothing_is_believed_without_a_pin(supplier: Supplier) -> None:
    with pytest.raises(TrustNotPinned):
        _verify(supplier.content(), TrustState())


def test_another_suppliers_bundle_is_untrusted(supplier: Supplier, tmp_path: Path) -> None:
    other = Supplier.at(tmp_path / "other")
    with pytest.raises(BundleUntrusted):
        _verify(other.content(), _pinned(supplier))
    after = _verify(supplier.content(), _pinned(supplier)).state
    with pytest.raises(BundleUntrusted):
        _verify(other.content(), after)


def test_an_older_bundle_is_a_rollback_and_the_same_one_is_not(supplier: Supplier) -> None:
    old, new = supplier.content(version="1.0"), supplier.content(version="2.0")
    state = _verify(old, _pinned(supplier)).state
    state = _verify(old, state).state
    state = _verify(new, state).state
    with pytest.raises(BundleRolledBack):
        _verify(old, state)
    _verify(new, state)


def test_two_products_do_not_roll_each_other_back(supplier: Supplier) -> None:
    state = _verify(supplier.content(version="9", name="imaging"), _pinned(supplier)).state
    other = supplier.content(version="1", name="coding")
    state = _verify(other, state).state
    assert set(state.seen) == {"imaging", "coding"}


def test_verifying_changes_nothing_until_saved(supplier: Supplier, tmp_path: Path) -> None:
    folder = tmp_path / "trust"
    pin(folder, supplier.repository.fingerprint)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    verified = _verify(supplier.content(), load_state(folder))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    save_state(folder, verified.state)
    assert load_state(folder) == verified.state


def test_expiry_and_a_clock_set_back(supplier: Supplier) -> None:
    now = datetime.now(UTC)
    content = supplier.content(now=now)
    state = _verify(content, _pinned(supplier), now).state
    later = now + timedelta(days=181)
    with pytest.raises(BundleExpired, match="bundle-expired"):
        _verify(content, state, later)
    fresh = supplier.content(version="2.0", now=later)
    state = _verify(fresh, state, later).state
    assert state.clock == later
    with pytest.raises(BundleExpired):  # the clock says it is fine; what was seen says it is not
        _verify(supplier.content(version="3.0", now=now), state, now)


def test_signing_again_keeps_the_bytes_until_half_their_life(supplier: Supplier) -> None:
    now = datetime.now(UTC)
    first = supplier.content(now=now)
    assert supplier.content(now=now + timedelta(days=80)).metadata == first.metadata
    assert supplier.content(now=now + timedelta(days=100)).metadata != first.metadata


def _edit_root(content: BundleContent, edit: Callable[[dict[str, object]], None]) -> BundleContent:
    root = json.loads(content.metadata["1.root.json"])
    edit(root)
    return replace(content, metadata={**content.metadata, "1.root.json": rfc8785.dumps(root)})


def test_one_of_two_root_signatures_is_not_enough(supplier: Supplier) -> None:
    def keep_one(root: dict[str, object]) -> None:
        root["signatures"] = root["signatures"][:1]  # type: ignore[index]

    def repeat_one(root: dict[str, object]) -> None:
        root["signatures"] = root["signatures"][:1] * 2  # type: ignore[index]

    content = supplier.content()
    with pytest.raises(BundleUntrusted):
        _verify(_edit_root(content, keep_one), _pinned(supplier))
    with pytest.raises(BundleTampered):
        _verify(_edit_root(content, repeat_one), _pinned(supplier))


def test_a_lower_threshold_is_another_root(supplier: Supplier) -> None:
    def lower(root: dict[str, object]) -> None:
        root["signed"]["roles"]["root"]["threshold"] = 1  # type: ignore[index]

    with pytest.raises((BundleTampered, BundleUntrusted)):
        _verify(_edit_root(supplier.content(), lower), _pinned(supplier))


def test_rotation_is_followed_and_old_keys_end(supplier: Supplier) -> None:
    old = supplier.content(version="1")
    state = _verify(old, _pinned(supplier)).state
    supplier.repository.rotate_roles()
    rotated = supplier.content(version="2")
    verified = _verify(rotated, state)
    assert verified.root_version == 2
    with pytest.raises(BundleUntrusted):
        _verify(old, verified.state)
    supplier.repository.rotate_root(Threshold(1, 2))
    again = _verify(supplier.content(version="3"), verified.state)
    assert again.root_version == 3
    # A site that pinned the first root, and one that pins the newest, both get there.
    assert _verify(supplier.content(version="3"), TrustState(pin=state.pin)).root_version == 3
    assert _verify(supplier.content(version="3"), _pinned(supplier)).root_version == 3
    assert again.state.pinned_to(supplier.repository.fingerprint).pin == state.pin


def test_a_root_nobody_vouched_for_is_refused(supplier: Supplier, tmp_path: Path) -> None:
    stranger = Supplier.at(tmp_path / "stranger")
    stranger.repository.rotate_roles()
    content = supplier.content()
    forged = {**content.metadata, "2.root.json": stranger.content().metadata["2.root.json"]}
    with pytest.raises(BundleUntrusted):
        _verify(replace(content, metadata=forged), _pinned(supplier))


@pytest.mark.parametrize("name", ["1.root.json", "timestamp.json", "snapshot.json", "targets.json"])
def test_a_missing_part_is_unsigned(supplier: Supplier, name: str) -> None:
    content = supplier.content()
    less = {n: data for n, data in content.metadata.items() if n != name}
    with pytest.raises(BundleUnsigned):
        _verify(replace(content, metadata=less), _pinned(supplier))


def test_members_are_exactly_the_signed_ones(supplier: Supplier) -> None:
    content = supplier.content()
    for changed in (
        replace(content, sbom=b"{}"),
        replace(content, signatures={}),
        replace(content, signatures={**content.signatures, "extra": b"{}"}),
        replace(content, manifest=content.manifest.model_copy(update={"version": "6"})),
    ):
        with pytest.raises(BundleTampered):
            _verify(changed, _pinned(supplier))


def test_a_value_the_library_fills_in_is_not_free(supplier: Supplier) -> None:
    """python-tuf reads a null spec_version as its own, so the signature would still hold."""
    content = supplier.content()
    tree = json.loads(content.metadata["timestamp.json"])
    tree["signed"]["spec_version"] = None
    forged = {**content.metadata, "timestamp.json": rfc8785.dumps(tree)}
    with pytest.raises(BundleTampered):
        _verify(replace(content, metadata=forged), _pinned(supplier))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hostile_metadata_is_refused_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    supplier = _shared(tmp_path_factory)
    content = supplier.content()
    name = data.draw(st.sampled_from(sorted(content.metadata)))
    tree = json.loads(content.metadata[name])
    node = tree
    for _ in range(data.draw(st.integers(0, 5))):
        if not isinstance(node, dict | list) or not node:
            break
        key = data.draw(
            st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))
        )
        parent, node = node, node[key]
    else:
        key, parent = "signed", tree
    junk = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 10**6),
        st.text(max_size=5),
        st.just([]),
        st.just({}),
    )
    if isinstance(parent, dict | list):
        parent[key] = data.draw(junk)
    hostile = rfc8785.dumps(tree)
    if hostile == content.metadata[name]:
        return
    with pytest.raises(ApplianceError):
        changed = {**content.metadata, name: hostile}
        _verify(replace(content, metadata=changed), _pinned(supplier))


_SHARED: list[Supplier] = []


def _shared(factory: pytest.TempPathFactory) -> Supplier:
    if not _SHARED:
        _SHARED.append(Supplier.at(factory.mktemp("shared")))
    return _SHARED[0]


def test_100_000_blobs_verify_quickly(supplier: Supplier) -> None:
    content = supplier.content()
    assert len(content.metadata["targets.json"]) < 4000  # targets do not grow with the blobs


# --- fingerprints, pins and keys ----------------------------------------------------------------


def test_fingerprints_as_people_type_them(supplier: Supplier) -> None:
    fingerprint = supplier.repository.fingerprint
    for text in (str(fingerprint), fingerprint.hex.upper(), f"SHA256:{fingerprint.hex}"):
        assert Fingerprint.parse(text).matches(fingerprint)
    for text in ("", "12ab", fingerprint.hex + "0", "g" * 64):
        with pytest.raises(FingerprintMalformed):
            Fingerprint.parse(text)


def test_a_pin_is_not_replaced_in_passing(tmp_path: Path) -> None:
    one, two = Fingerprint("1" * 64), Fingerprint("2" * 64)
    pin(tmp_path, one)
    pin(tmp_path, one)
    with pytest.raises(TrustPinDiffers):
        pin(tmp_path, two)
    replace_pin(tmp_path, two)
    assert load_state(tmp_path).pin == two


def test_keys_are_private_encrypted_and_never_overwritten(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path, Threshold(2, 3), lambda: b"correct horse")
    for key in (tmp_path / "keys").glob("*.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert b"ENCRYPTED" in key.read_bytes()
    assert repository.sign("b", {"bundle.json": b"{}"})
    with pytest.raises(PassphraseWrong):
        Repository.open(tmp_path, lambda: b"wrong").sign("b", {"bundle.json": b"[]"})
    with pytest.raises(TrustKeysExist):
        Repository.create_demo(tmp_path, Threshold(1, 1))
    with pytest.raises(TrustKeysMissing):
        Repository.open(tmp_path / "nowhere", lambda: b"")
    for needed, keys in ((0, 1), (3, 2)):
        with pytest.raises(TrustThresholdInvalid):
            Threshold(needed, keys)


def test_without_root_keys_bundles_are_still_signed(tmp_path: Path) -> None:
    repository = Repository.create_demo(tmp_path, Threshold(2, 3))
    for key in (tmp_path / "keys").glob("root-*.pem"):
        key.unlink()
    assert repository.sign("b", {"bundle.json": b"{}"})
    with pytest.raises(TrustKeysMissing):
        repository.rotate_roles()


def test_demo_roots_say_so_under_their_signature(tmp_path: Path) -> None:
    repository = Repository.create_demo(tmp_path, Threshold(2, 3))
    root = Metadata[Root].from_bytes(repository.roots()[0])
    assert root.signed.unrecognized_fields["x-sovctl-demo"] is True


def test_a_passphrase_comes_from_a_file_never_from_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.trust.passphrase import VARIABLE, passphrase_source

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(PassphraseNeeded):
        passphrase_source()()
    (tmp_path / "secret").write_text("words\n")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "secret"))
    assert passphrase_source()() == b"words"
