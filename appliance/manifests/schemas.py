"""JSON Schemas of the files an operator writes, for editors and for anyone who generates them.

    python -m appliance.manifests.schemas            write manifests/*.schema.json
    python -m appliance.manifests.schemas --check    exit 1 if one of them is not fresh

An editor picks a schema up from a first line such as
``# yaml-language-server: $schema=../../manifests/recipe.schema.json``.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from pydantic import BaseModel

FOLDER = Path(__file__).resolve().parents[2] / "manifests"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

# schema name → where its model is
MODELS = {
    "recipe": "appliance.manifests.recipe:Recipe",
    "site": "appliance.manifests.site:Site",
    "tuning": "appliance.manifests.tuning:TuningSpec",
}


def schema_of(name: str) -> str:
    """The schema called ``name``, as it is written to disk."""
    module, _colon, attribute = MODELS[name].partition(":")
    model: type[BaseModel] = getattr(importlib.import_module(module), attribute)
    schema = {"$schema": DIALECT, **model.model_json_schema(mode="validation")}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def stale() -> list[Path]:
    """Schemas on disk that are not what the models say now."""
    paths = {name: FOLDER / f"{name}.schema.json" for name in MODELS}
    return [
        path
        for name, path in paths.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != schema_of(name)
    ]


def main(arguments: list[str]) -> int:
    """Write the schemas, or with ``--check`` say which are stale."""
    if arguments == ["--check"]:
        for path in stale():
            sys.stderr.write(f"{path.name} is stale: python -m appliance.manifests.schemas\n")
        return 1 if stale() else 0
    for name in MODELS:
        (FOLDER / f"{name}.schema.json").write_text(schema_of(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
