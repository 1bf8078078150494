"""Properties of ``bundle.lock``, of the safetensors check, and of the choice of a runtime."""

from __future__ import annotations

import io
import json
import re
import string
from pathlib import Path
from typing import get_args

import pytest
import safetensors
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.bundle.sources.weights import HeaderInvalid, read_header, refusal_of_name
from appliance.manifests.bundle import Platform
from appliance.manifests.bundle_lock import BundleLock, LockedArtefact, LockedFile
from appliance.manifests.document import parse
from appliance.manifests.environment import Host, RuntimeEnvironment, choose
from appliance.manifests.recipe import Recipe, Source

# --- the lock -------------------------------------------------------------------------------------

_HEX = st.binary(min_size=32, max_size=32).map(bytes.hex)
_DIGEST = _HEX.map("sha256:{}".format)
_FILE_NAME = st.from_regex(r"[a-zé0-9 \"']{1,12}", fullmatch=True).map("d/{}".format)
_FILES = st.lists(
    st.builds(
        LockedFile,
        path=_FILE_NAME,
        sha256=_HEX,
        size=st.integers(0, 2**53 - 1),
        origin=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    ),
    max_size=4,
    unique_by=lambda file: file.path,
).map(lambda files: tuple(sorted(files, key=lambda file: file.path)))
_ARTEFACTS = st.lists(
    st.builds(
        LockedArtefact,
        kind=st.sampled_from(["model", "dataset"]),
        name=st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True),
        recipe=_DIGEST,
        inputs=st.dictionaries(
            st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.text(string.printable, max_size=9)
        ),
        files=_FILES,
    ),
    max_size=3,
    unique_by=lambda artefact: (artefact.kind, artefact.name),
).map(lambda found: tuple(sorted(found, key=lambda a: (a.kind, a.name))))
LOCKS = st.builds(
    BundleLock,
    schema_version=st.just(1),
    recipe=_DIGEST,
    created=st.just("2026-11-24T00:00:00Z"),
    artefacts=_ARTEFACTS,
)


@given(LOCKS)
def test_a_lock_is_read_as_it_was_written(lock: BundleLock) -> None:
    text = lock.render()
    assert BundleLock.parse(text) == lock
    files = [file for artefact in lock.artefacts for file in artefact.files]
    lines = [json.loads(line.rstrip(b",")) for line in text.split(b"\n") if b'{"path"' in line]
    assert lines == [file.model_dump() for file in files]  # one file a line, whatever is in it


@given(LOCKS, st.data())
def test_a_lock_that_was_touched_is_refused(lock: BundleLock, data: st.DataObject) -> None:
    text = lock.render()
    at = data.draw(st.integers(0, len(text)))
    spoilt = text[:at] + data.draw(st.sampled_from([b" ", b"\n", b"\t"])) + text[at:]
    try:
        found = BundleLock.parse(spoilt)
    except ValueError:
        return
    assert found.render() == spoilt != text  # inside a text, where a space is content


@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"schema_version": 1e400}')
def test_what_is_no_lock_is_refused(data: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        BundleLock.parse(data)


# --- safetensors ----------------------------------------------------------------------------------


def with_header(header: object, body: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def is_sound(data: bytes) -> bool:
    try:
        read_header(io.BytesIO(data), len(data))
    except HeaderInvalid as error:
        assert str(error).endswith(".")
        return False
    return True


def reference_accepts(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


@st.composite
def _sound(draw: st.DrawFn) -> bytes:
    header: dict[str, object] = {}
    at = 0
    for name in draw(st.lists(st.text(string.ascii_letters, min_size=1), max_size=4, unique=True)):
        dtype, width = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1), ("I64", 8)]))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        count = 1
        for dimension in shape:
            count *= dimension
        offsets = [at, at + count * width]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        at += count * width
    if draw(st.booleans()):
        header["__metadata__"] = {"format": "pt"}
    return with_header(header, at)


@given(_sound())
def test_what_is_safetensors_is_taken(data: bytes) -> None:
    assert is_sound(data)
    assert reference_accepts(data)


@given(_sound(), st.data())
def test_what_is_taken_after_a_change_the_reference_takes_too(
    data: bytes, drawn: st.DataObject
) -> None:
    at = drawn.draw(st.integers(0, len(data) - 1))
    cut = drawn.draw(st.integers(0, 3))
    spoilt = data[:at] + drawn.draw(st.binary(max_size=3)) + data[at + cut :]
    if is_sound(spoilt):
        assert reference_accepts(spoilt)


@given(st.binary(max_size=300))
def test_any_bytes_are_judged(data: bytes) -> None:
    if is_sound(data):
        assert reference_accepts(data)


def _one(**changes: object) -> dict[str, object]:
    return {"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        (2**63).to_bytes(8, "little") + b"{}",
        with_header(b"[]", 0),
        with_header(_one(), 3),
        with_header(_one(), 5),
        with_header(_one(data_offsets=[1, 5]), 5),
        with_header(_one(data_offsets=[4, 0]), 4),
        with_header(_one(data_offsets=[0.0, 4.0]), 4),
        with_header(_one(data_offsets=[False, 4]), 4),
        with_header(_one(shape=[-4]), 4),
        with_header(_one(shape=[2**62, 2**62]), 4),
        with_header(_one(dtype="PICKLE"), 4),
        with_header({**_one(), "v": _one()["w"]}, 4),
        with_header(b'{"w":1,"w":2}', 0),
        with_header({"__metadata__": {"a": 1}}, 0),
        with_header(b"{" + b'"a":{' * 50_000, 0),
        with_header(
            b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,1' + b"0" * 5000 + b"]}}", 4
        ),
    ],
)
def test_headers_that_lie_are_refused(data: bytes) -> None:
    assert not is_sound(data)


def test_names_that_may_be_pickles_are_refused() -> None:
    refused = ("a.bin", "A.PT", "x/y.ckpt", "m.pkl", "w.npz", "training_args.bin", "m.h5", "m.py")
    assert all(refusal_of_name(name) for name in refused)
    taken = ("model.safetensors", "config.json", "tokenizer.model", "merges.txt", "LICENSE")
    assert not any(refusal_of_name(name) for name in taken)
    assert refusal_of_name("loader.py", "dataset") is None


# --- the runtime for a machine --------------------------------------------------------------------


def environment(name: str, python: str = "3.11", machine: str = "x86_64") -> RuntimeEnvironment:
    platform = Platform(python=python, system="linux", machine=machine)
    return RuntimeEnvironment(name, platform, "cuda" if "cuda" in name else "cpu")


OFFERED = (
    environment("cpu"),
    environment("cuda"),
    environment("cpu-312", "3.12"),
    environment("arm", machine="aarch64"),
)


@pytest.mark.parametrize(
    ("machine", "pythons", "cuda", "wanted", "chosen"),
    [
        ("x86_64", {"3.11"}, False, None, "cpu"),
        ("x86_64", {"3.11"}, True, None, "cuda"),
        ("x86_64", {"3.11", "3.12"}, False, None, "cpu"),
        ("x86_64", {"3.12"}, True, None, "cpu-312"),
        ("x86_64", {"3.13"}, True, None, None),
        ("aarch64", {"3.11"}, True, None, "arm"),
        ("x86_64", {"3.11"}, True, "cpu", "cpu"),
        ("x86_64", {"3.11"}, False, "cuda", "cuda"),
        ("x86_64", {"3.11"}, False, "arm", None),
        ("x86_64", {"3.11"}, False, "other", None),
    ],
)
def test_a_machine_gets_the_runtime_for_it(
    machine: str, pythons: set[str], cuda: bool, wanted: str | None, chosen: str | None
) -> None:
    found = choose(OFFERED, Host("linux", machine, frozenset(pythons), cuda), wanted)
    assert (found.name if found else None) == chosen


# --- the documentation ----------------------------------------------------------------------------


def test_every_source_has_an_example_that_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
    head = (
        "name: hospital\nversion: '1.0'\n"
        "platform: {python: '3.11', system: linux, machine: x86_64}\nartefacts:\n"
    )
    examples = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    recipes = [parse(Recipe, (head + text).encode(), Path("recipes.md")) for text in examples]
    shown = {part.source.type for recipe in recipes for part in recipe.artefacts}
    union = get_args(get_args(Source)[0])
    assert shown == {get_args(model.model_fields["type"].annotation)[0] for model in union}
