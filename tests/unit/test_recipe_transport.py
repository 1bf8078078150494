"""A recipe that says to whom its bundle is encrypted, and a build that writes a delta."""

from __future__ import annotations

from pathlib import Path

import pyrage
import pytest
from test_recipe_build import RECIPE, Desk

from appliance.bundle.build import build
from appliance.bundle.cache import BuildCache
from appliance.bundle.load import verify
from appliance.bundle.opening import Opening
from appliance.bundle.reader import BundleReader
from appliance.errors import IdentityNeeded, ManifestInvalid
from appliance.progress import Silent
from appliance.trust.pin import TrustState
from appliance.trust.repository import Repository, Threshold
from appliance.trust.verifier import Verifier


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    repository = Repository.create_demo(tmp_path / "keys", Threshold(1, 1))
    (tmp_path / "desk").mkdir()
    return Desk(tmp_path / "desk", repository)


@pytest.mark.parametrize("metadata", ["readable", "hidden"])
def test_a_recipe_says_who_may_read(desk: Desk, metadata: str) -> None:
    identity = pyrage.x25519.Identity.generate()
    (desk.root / "identity").write_text(f"{identity}\n")
    wish = f"encryption: {{recipients: [{identity.to_public()}], metadata: {metadata}}}\n"
    desk.recipe.write_text(RECIPE + wish)
    built = desk.build()
    verifier = Verifier(TrustState().pinned_to(desk.repository.fingerprint))
    opening = Opening(identity=desk.root / "identity")
    checked = verify(built.path, verifier, Silent(), opening)
    assert checked.manifest == built.manifest
    if metadata == "hidden":
        with pytest.raises(IdentityNeeded):
            BundleReader(built.path)
    else:
        assert BundleReader(built.path).manifest == built.manifest
        assert bytes(range(256)) not in built.path.read_bytes()
    assert {p.name for p in desk.root.iterdir() if p.name.startswith(".")} == set()
    desk.recipe.write_text(RECIPE + "encryption: {recipients: [nobody]}\n")
    with pytest.raises(ManifestInvalid):
        desk.build()


def test_a_build_against_a_base_is_a_delta_that_is_made_the_same_way_twice(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795000000")
    base = desk.build("old.tar").manifest
    desk.recipe.write_text(RECIPE.replace("1.0.0", "1.1.0"))
    (desk.root / "rows.jsonl").write_text('{"prompt": "c", "completion": "d"}\n')
    cache = BuildCache(desk.root / "cache")
    once, twice = (
        build(desk.recipe, desk.repository, desk.root / name, cache, Silent(), base=base)
        for name in ("one.tar", "two.tar")
    )
    assert once.path.read_bytes() == twice.path.read_bytes()
    with BundleReader(once.path) as reader:
        assert [blob.size for blob in reader.blob_of.values()] == [35]
        assert len(reader.left_out) == 2
    full = desk.build("full.tar")
    assert BundleReader(full.path).metadata == BundleReader(once.path).metadata
