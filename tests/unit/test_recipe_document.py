"""The YAML loader: every fault has a file, a line, a field, a reason and a way to mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from appliance.errors import ApplianceError, FileUnreadable, ManifestInvalid
from appliance.manifests.document import MAX_BYTES, load, parse


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Dog(Strict):
    type: Literal["dog"]
    legs: int = Field(default=4, ge=0)


class Bird(Strict):
    type: Literal["bird"]
    wingspan_cm: float


class Farm(Strict):
    name: str
    owner: str | None = None
    animals: list[Annotated[Dog | Bird, Field(discriminator="type")]] = []
    rate: float = 1.0

    @field_validator("owner")
    @classmethod
    def _has_an_owner(cls, owner: str | None) -> str | None:
        if owner == "nobody":
            raise ValueError("a farm cannot belong to nobody")
        return owner


HERE = Path("farm.yaml")


def fault(text: str | bytes) -> dict[str, str]:
    content = text.encode() if isinstance(text, str) else text
    with pytest.raises(ManifestInvalid) as caught:
        parse(Farm, content, HERE)
    return caught.value.values


@pytest.mark.parametrize(
    ("text", "line", "field", "says"),
    [
        ("", "1", "the file", "name: value"),
        ("- a\n", "1", "the file", "name: value"),
        ("name: a\nname: b\n", "2", "name", "first is on line 1"),
        ("name: a\nanimals:\n  - {type: dog, type: bird}\n", "3", "animals[0].type", "twice"),
        ("name: a\nanimals:\n  - type: dog\n    legs: three\n", "4", "animals[0].legs", "'three'"),
        ("name: a\nanimals:\n  - type: dog\n    legs: -1\n", "4", "animals[0].legs", "-1"),
        ("name: a\nanimals:\n  - type: cat\n", "3", "animals[0]", "'dog', 'bird'"),
        ("name: a\nanimals:\n  - legs: 4\n", "3", "animals[0]", "type"),
        ("name: a\nanimals:\n  - type: bird\n", "3", "animals[0].wingspan_cm", "missing"),
        ("name: a\nanimals:\n  - type: dog\n    leg: 4\n", "4", "animals[0].leg", "'legs'"),
        ("rate: 2\n", "1", "name", "missing"),
        ("name: a\nowner: nobody\n", "2", "owner", "nobody"),
        ("name: [a\n", "2", "the file", "not YAML"),
        ("name: a\n\tb: c\n", "2", "the file", "not YAML"),
        ("name: &x a\nowner: *x\n", "1", "the file", "Anchors"),
        ("name: a\n<<: {owner: b}\n", "2", "<<", "Merge"),
        ("? [a]\n: b\n", "1", "the file", "name"),
        ("name: a\n---\nname: b\n", "2", "the file", "not YAML"),
        ("name: !!python/object:os.system a\n", "1", "the file", "cannot be read"),
        ("name: !!int abc\n", "1", "the file", "cannot be read"),
        ("name: a\nowner: \x00\n", "2", "the file", "character"),
        (b"name: a\nowner: \xff\n", "2", "the file", "UTF-8"),
        (b"name: " + b"a" * MAX_BYTES, "1", "the file", "larger"),
        ("name: " + "[" * 10_000, "1", "the file", "nested"),
    ],
)
def test_a_fault_names_its_line_and_field(
    text: str | bytes, line: str, field: str, says: str
) -> None:
    found = fault(text)
    assert (found["line"], found["field"]) == (line, field)
    assert says in f"{found['reason']} {found['expected']}"


def test_scalars_are_read_as_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "farm.yaml"
    path.write_text("name: yes\nowner: 52:54:00:12:34:56\nrate: 1e-3\n")
    assert load(Farm, path) == Farm(name="yes", owner="52:54:00:12:34:56", rate=0.001)


def test_a_missing_file_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(FileUnreadable) as caught:
        load(Farm, tmp_path / "absent.yaml")
    assert "absent.yaml" in caught.value.values["path"]


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)


@given(
    st.builds(
        Farm,
        name=TEXTS,
        owner=st.none() | TEXTS.filter(lambda t: t != "nobody"),
        animals=st.lists(st.builds(Dog, type=st.just("dog"), legs=st.integers(0, 8)), max_size=3),
        rate=st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_what_yaml_writes_is_read_back(farm: Farm) -> None:
    # A quoted style keeps PyYAML's YAML 1.1 writer from writing 1.1-only plain scalars.
    text = yaml.safe_dump(farm.model_dump(), allow_unicode=True, default_style=None)
    try:
        assert parse(Farm, text.encode(), HERE) == farm
    except ManifestInvalid as error:
        # The one thing YAML 1.1 writes plainly that 1.2 reads otherwise is not a fault of ours.
        pytest.fail(f"{error}\n{text}")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_give_a_model_or_a_diagnosis(content: bytes) -> None:
    try:
        parse(Farm, content, HERE)
    except ApplianceError as error:
        assert int(error.values["line"]) >= 1
