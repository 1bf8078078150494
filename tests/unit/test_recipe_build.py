"""Building a bundle from files beside a recipe: end to end, twice, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from appliance.bundle import build as build_module
from appliance.bundle.build import Built, build
from appliance.bundle.cache import BuildCache
from appliance.bundle.load import verify
from appliance.bundle.reader import BundleReader
from appliance.cli.main import main
from appliance.errors import (
    ApplianceError,
    EpochInvalid,
    ManifestInvalid,
    PublisherRefused,
    SourceMissing,
)
from appliance.progress import Silent
from appliance.trust.keys import new_model_key, public_pem
from appliance.trust.pin import TrustState
from appliance.trust.repository import Repository, Threshold
from appliance.trust.verifier import Verifier

RECIPE = """
name: tiny
version: 1.0.0
platform: {python: "3.11", system: linux, machine: x86_64}
artefacts:
  - kind: model
    name: toy
    version: "1"
    licence: Apache-2.0
    source: {type: path, path: toy}
  - kind: dataset
    name: rows
    version: "1"
    licence: CC0-1.0
    source: {type: path, path: rows.jsonl}
"""


class Desk:
    """A folder with a recipe, files, keys and a cache."""

    def __init__(self, root: Path, repository: Repository) -> None:
        self.root = root
        self.repository = repository
        self.recipe = root / "bundle.yaml"
        self.recipe.write_text(RECIPE)
        (root / "toy").mkdir()
        (root / "toy" / "config.json").write_text("{}")
        (root / "toy" / "model.safetensors").write_bytes(bytes(range(256)) * 100)
        (root / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')

    def build(self, name: str = "tiny.tar") -> Built:
        cache = BuildCache(self.root / "cache")
        return build(self.recipe, self.repository, self.root / name, cache, Silent())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.create_demo(tmp_path_factory.mktemp("keys"), Threshold(1, 1))


@pytest.fixture
def desk(tmp_path: Path, keys: Repository, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    return Desk(tmp_path, keys)


def test_a_recipe_becomes_a_bundle_that_reads_back(desk: Desk) -> None:
    built = desk.build()
    manifest = BundleReader(built.path).manifest
    assert manifest == built.manifest
    assert manifest.created == "2023-11-14T22:13:20Z"
    assert [a.folder for a in manifest.artefacts] == ["models/toy", "datasets/rows"]
    assert [f.path for f in manifest.artefacts[0].files] == ["config.json", "model.safetensors"]


def test_the_same_inputs_give_the_same_bytes(desk: Desk) -> None:
    first = desk.build("a.tar").path.read_bytes()
    shutil.rmtree(desk.root / "cache" / "tmp")
    assert desk.build("b.tar").path.read_bytes() == first


def test_a_second_build_hashes_and_writes_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    time.sleep(0.06)  # a file younger than a clock tick is not trusted to be unchanged
    before = desk.build().path.stat()

    def forbidden(*_: object) -> None:
        raise AssertionError("this is work")

    monkeypatch.setattr("appliance.bundle.cache._sha256", forbidden)
    monkeypatch.setattr(build_module, "write", forbidden)
    after = desk.build().path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_changed_file_and_a_changed_bundle_are_noticed(desk: Desk) -> None:
    first = desk.build()
    original = first.path.read_bytes()
    first.path.write_bytes(b"overwritten")
    assert desk.build().path.read_bytes() == original
    (desk.root / "rows.jsonl").write_text('{"prompt": "a", "completion": "c"}\n')
    assert desk.build().manifest.digest != first.manifest.digest


def test_the_bill_of_materials_is_valid_cyclonedx(desk: Desk) -> None:
    bill = BundleReader(desk.build().path).members["sbom.cdx.json"]
    text = bill.decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = {c["name"]: c for c in json.loads(text)["components"]}
    assert components["toy"]["type"] == "machine-learning-model"
    assert components["toy"]["modelCard"]["modelParameters"]["task"] == "text-generation"
    assert components["rows"]["type"] == "data"


def refuse(desk: Desk, old: str, new: str) -> Mapping[str, str]:
    desk.recipe.write_text(RECIPE.replace(old, new))
    with pytest.raises(ApplianceError) as caught:
        desk.build()
    assert isinstance(caught.value, ManifestInvalid | SourceMissing)
    assert not [p for p in desk.root.iterdir() if p.name.endswith((".tar", ".partial"))]
    return {"code": caught.value.code, **caught.value.values}


@pytest.mark.parametrize(
    ("old", "new", "code", "says"),
    [
        ("path: toy}", "path: absent}", "source-missing", "neither a file nor a folder"),
        ("type: path, path: toy", "type: ftp, path: toy", "manifest-invalid", "'ftp'"),
        ("    name: toy", "    nmae: toy", "manifest-invalid", "missing"),
        ('version: "1"\n    licence: A', "version: 1\n    licence: A", "manifest-invalid", "1"),
        ("kind: dataset\n    name: rows", "kind: model\n    name: TOY", "manifest-invalid", "same"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_written(
    desk: Desk, old: str, new: str, code: str, says: str
) -> None:
    found = refuse(desk, old, new)
    assert found["code"] == code
    assert says in found["reason"]


def test_pickles_and_links_are_refused(desk: Desk) -> None:
    pickle = desk.root / "toy" / "weights.bin"
    pickle.write_bytes(b"\x80\x04.")
    assert "pickle" in refuse(desk, "", "")["reason"]
    pickle.unlink()
    pickle.symlink_to("/etc/hostname")
    assert "link" in refuse(desk, "", "")["reason"]


def test_a_date_that_is_none_is_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(EpochInvalid):
        desk.build()


def test_the_command_prints_what_it_built(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOVCTL_CACHE", str(desk.root / "cache"))
    out = desk.root / "made.tar"
    arguments = ["--keys", str(desk.repository.folder), "--out", str(out), "--json"]
    assert main(["bundle", "build", str(desk.recipe), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["size"] == out.stat().st_size
    assert result["digest"] == BundleReader(out).manifest.digest


def test_a_publishers_signature_is_wanted_and_carried(desk: Desk) -> None:
    """Signed with the reference implementation, as a publisher would."""
    from model_signing import hashing, signing

    key, stranger = new_model_key(), new_model_key()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (desk.root / "key.pem").write_bytes(pem)
    (desk.root / "lab.pub").write_bytes(public_pem(key))
    signer = signing.Config().use_elliptic_key_signer(private_key=desk.root / "key.pem")
    signer.set_hashing_config(hashing.Config().use_file_serialization(hashing_algorithm="sha256"))
    signer.sign(desk.root / "toy", desk.root / "toy.sig")
    wanted = (
        "    publisher: {signature: toy.sig, keys: [lab.pub]}\n    source: {type: path, path: toy}"
    )
    recipe = RECIPE.replace("    source: {type: path, path: toy}", wanted)
    desk.recipe.write_text(recipe)

    built = desk.build()
    with BundleReader(built.path) as bundle:
        carried = bundle.members["upstream/toy.oms.json"]
    assert carried == (desk.root / "toy.sig").read_bytes()
    state = TrustState().pinned_to(desk.repository.fingerprint)
    verify(built.path, Verifier(state), Silent())

    (desk.root / "lab.pub").write_bytes(public_pem(stranger))
    with pytest.raises(PublisherRefused):
        desk.build()
    (desk.root / "lab.pub").write_bytes(public_pem(key))
    (desk.root / "toy" / "config.json").write_text('{"changed": true}')
    with pytest.raises(PublisherRefused, match="toy"):
        desk.build()
    desk.recipe.write_text(recipe.replace(", keys: [lab.pub]", ""))
    with pytest.raises(ManifestInvalid):
        desk.build()
