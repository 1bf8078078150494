"""The exported JSON Schemas: fresh, and judging the shipped manifests as our models do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from appliance.manifests.schemas import FOLDER, MODELS, stale

CHECKOUT = Path(__file__).parents[2]


def test_the_schemas_on_disk_are_fresh() -> None:
    assert stale() == []


@pytest.mark.parametrize("name", MODELS)
def test_a_schema_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(json.loads((FOLDER / f"{name}.schema.json").read_text()))


def test_the_demo_recipe_satisfies_its_schema() -> None:
    schema = json.loads((FOLDER / "recipe.schema.json").read_text())
    recipe = yaml.safe_load((CHECKOUT / "bundles/demo/bundle.yaml").read_text())
    Draft202012Validator(schema).validate(recipe)
    recipe["artefacts"][0]["source"]["type"] = "ftp"
    assert not Draft202012Validator(schema).is_valid(recipe)
