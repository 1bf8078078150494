"""The demo's bundle for real: published packages in, a valid signed bundle out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from appliance.bundle.build import Built, build
from appliance.bundle.cache import BuildCache
from appliance.bundle.reader import BundleReader
from appliance.progress import Silent
from appliance.trust import model_signature
from appliance.trust.keys import public_pem
from appliance.trust.repository import Repository, Threshold

CHECKOUT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.create_demo(tmp_path_factory.mktemp("keys"), Threshold(2, 3))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's recipe in a copy of the checkout, which nobody edits meanwhile."""
    copy = tmp_path_factory.mktemp("checkout")
    for part in ("appliance", "bundles", "playbooks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / part, copy / part, ignore=ignored)
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / part, copy)
    return copy / "bundles/demo/bundle.yaml"


@pytest.fixture(scope="module")
def built(recipe: Path, repository: Repository, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("demo") / "demo.tar"
    return build(recipe, repository, out, BuildCache.from_environment(), Silent())


def test_it_holds_a_model_its_runtime_and_data(built: Built) -> None:
    model, wheels, data = built.manifest.artefacts
    names = {file.path for file in model.files}
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"} <= names
    torch = [file.path for file in wheels.files if file.path.startswith("torch-")]
    assert len(torch) == 1 and "+cpu" in torch[0]
    assert any(file.path.startswith("sovereign_appliance-") for file in wheels.files)
    assert {file.path for file in data.files} >= {"train.jsonl", "heldout.jsonl", "card.json"}


def test_always_answering_the_same_gains_nothing(built: Built) -> None:
    (card_file,) = (f for f in built.manifest.artefacts[2].files if f.path == "card.json")
    with BundleReader(built.path) as reader:
        (place,) = (p for p in reader.layout.blobs if p.name.endswith(card_file.hex))
        card = json.loads(reader.read(place.data, place.size))
    assert card["baseline"]["letter"]["right"] <= 0.1
    assert card["baseline"]["category"]["right"] <= 0.05


def test_the_weights_are_always_the_same_bytes(built: Built) -> None:
    (weights,) = (f for f in built.manifest.artefacts[0].files if f.path == "model.safetensors")
    assert weights.hex == "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


def test_the_bill_of_materials_accounts_for_every_wheel(built: Built) -> None:
    text = BundleReader(built.path).members["sbom.cdx.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    components = json.loads(text)["components"]
    listed = {c["hashes"][0]["content"] for c in components if c["type"] == "library"}
    wheels = built.manifest.of_kind("wheelhouse")[0].files
    assert listed == {file.hex for file in wheels if file.path.endswith(".whl")}
    assert all(c["licenses"] for c in components)
    assert not [c["name"] for c in components if "GPL" in json.dumps(c["licenses"])]


def test_the_model_is_signed_for_other_tools(built: Built, repository: Repository) -> None:
    model = built.manifest.artefacts[0]
    signature = BundleReader(built.path).members[f"signatures/{model.name}.oms.json"]
    files = {file.path: file.hex for file in model.files}
    key = public_pem(repository.model_key())
    assert model_signature.verify(signature, files, key) == model.name


def test_a_second_build_changes_nothing(built: Built, recipe: Path, repository: Repository) -> None:
    before = built.path.stat()
    again = build(recipe, repository, built.path, BuildCache.from_environment(), Silent())
    after = built.path.stat()
    assert again.manifest == built.manifest
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
