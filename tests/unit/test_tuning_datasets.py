"""Importing data sets: what a hostile or careless file may do, and what it may not."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import (
    ApplianceError,
    DatasetRowsInvalid,
    DatasetUnusable,
    FileUnreadable,
    NameTaken,
)
from appliance.layout import Home
from appliance.progress import Silent
from appliance.registry import Dataset, Registry
from appliance.tuning.datasets import import_dataset
from appliance.tuning.files import folder_files, tree_digest
from appliance.tuning.rows import MAX_LINE, ChatRow, PromptRow, RowInvalid, parse

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


def row(number: int) -> bytes:
    return json.dumps({"prompt": f"Diagnosis {number}:", "completion": f" A{number:02}"}).encode()


def rows(count: int, first: int = 0) -> bytes:
    return b"".join(row(number) + b"\n" for number in range(first, first + count))


def bring(tmp_path: Path, source: Path, name: str = "icd") -> Dataset:
    home = Home(tmp_path / "home")
    with Registry.open(home) as registry:
        return import_dataset(home, registry, source, name, "operator:test", Silent())


def folder(tmp_path: Path, train: bytes, heldout: bytes) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.jsonl").write_bytes(train)
    (source / "heldout.jsonl").write_bytes(heldout)
    return source


@given(prompt=TEXT, completion=TEXT)
def test_what_json_writes_is_read_back(prompt: str, completion: str) -> None:
    for ascii_only in (True, False):
        line = json.dumps(
            {"prompt": prompt, "completion": completion}, ensure_ascii=ascii_only
        ).encode()
        assert parse(line) == PromptRow(prompt=prompt, completion=completion)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_row_or_a_reason(line: bytes) -> None:
    try:
        parse(line)
    except RowInvalid as error:
        assert str(error)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["prompt", "completion", "messages", "role", "content", "x"]),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_any_json_is_a_row_or_a_reason(value: object) -> None:
    try:
        parsed = parse(json.dumps(value).encode())
    except RowInvalid:
        return
    assert isinstance(parsed, PromptRow | ChatRow)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"prompt": "a", "completion": "\xff"}', "not UTF-8"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "completion|JSON"),
        (b'{"prompt": "a"}', "completion"),
        (b'{"prompt": "a", "completion": ""}', "at least 1"),
        (b'{"prompt": "a", "completion": 7}', "valid string"),
        (b'{"prompt": "a", "completion": "b", "weight": 1}', "weight"),
        (b"[" * 5000, "JSON"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "messages"),
        (
            b'{"messages": [{"role": "assistant", "content": "a"},'
            b' {"role": "user", "content": "b"}]}',
            "alternate",
        ),
        (b"x" * (MAX_LINE + 1), "longer than"),
    ],
)
def test_bad_rows_say_why(line: bytes, reason: str) -> None:
    with pytest.raises(RowInvalid, match=reason):
        parse(line)


def test_a_reason_never_repeats_the_row() -> None:
    with pytest.raises(RowInvalid) as caught:
        parse(b'{"prompt": "Jean Dupont, HIV positive", "completion": 7}')
    assert "Dupont" not in str(caught.value)


def test_every_bad_row_is_named_by_its_line(tmp_path: Path) -> None:
    lines = rows(60).splitlines()
    lines[2] = b"not json"
    lines[40] = b'{"prompt": "a"}'
    source = tmp_path / "data.jsonl"
    source.write_bytes(b"\n".join(lines))
    with pytest.raises(DatasetRowsInvalid) as caught:
        bring(tmp_path, source)
    assert caught.value.values["count"] == "2"
    assert "3, 41" in caught.value.values["lines"]
    assert list((tmp_path / "home" / "datasets").iterdir()) == []


def test_a_folder_is_stored_under_its_digest_and_registered(tmp_path: Path) -> None:
    source = folder(tmp_path, rows(20), rows(5, first=50))
    (source / "card.json").write_text('{"licence": "CC0-1.0"}')
    (source / "LICENSE").write_text("CC0")
    (source / "stray.txt").write_text("not imported")
    record = bring(tmp_path, source)
    stored = Path(record.path)
    files = folder_files(stored)
    assert set(files) == {"train.jsonl", "heldout.jsonl", "card.json", "LICENSE"}
    assert record.digest == tree_digest(files) == f"sha256:{stored.name}"
    assert (record.rows, record.schema) == (20, "prompt")
    assert (stored / "train.jsonl").read_bytes() == rows(20)
    assert bring(tmp_path, source) == record


def test_a_file_is_split_by_the_rows_alone(tmp_path: Path) -> None:
    source = tmp_path / "data.jsonl"
    source.write_bytes(rows(400))
    stored = Path(bring(tmp_path, source).path)
    held = (stored / "heldout.jsonl").read_bytes().splitlines()
    train = (stored / "train.jsonl").read_bytes().splitlines()
    assert sorted(held + train) == sorted(rows(400).splitlines())
    assert held == [r for r in rows(400).splitlines() if hashlib.sha256(r).digest()[0] < 13]
    assert 5 <= len(held) <= 50


def test_a_row_on_both_sides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetRowsInvalid, match="dataset-rows-invalid") as caught:
        bring(tmp_path, folder(tmp_path, rows(20), rows(2, first=7)))
    assert "8: it is also line 1 of heldout.jsonl" in caught.value.values["reason"]


def test_two_forms_do_not_mix(tmp_path: Path) -> None:
    chat = b'{"messages": [{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n'
    with pytest.raises(DatasetRowsInvalid, match="line 21"):
        bring(tmp_path, folder(tmp_path, rows(20) + chat, rows(2, first=50)))


@pytest.mark.parametrize("train", [b"", None])
def test_nothing_to_train_on_is_refused(tmp_path: Path, train: bytes | None) -> None:
    source = folder(tmp_path, train or b"", rows(2))
    if train is None:
        (source / "train.jsonl").unlink()
    with pytest.raises(DatasetUnusable):
        bring(tmp_path, source)


def test_a_pipe_a_device_and_nothing_are_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for source, error in ((pipe, DatasetUnusable), (tmp_path / "none.jsonl", FileUnreadable)):
        with pytest.raises(error):
            bring(tmp_path, source)


def test_a_name_keeps_its_meaning(tmp_path: Path) -> None:
    first = folder(tmp_path, rows(20), rows(5, first=50))
    bring(tmp_path, first)
    (first / "train.jsonl").write_bytes(rows(21))
    with pytest.raises(NameTaken):
        bring(tmp_path, first)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    long = json.dumps({"prompt": "p" * 100_000, "completion": "c"}).encode() + b"\n"
    source = tmp_path / "data.jsonl"
    with source.open("wb") as file:
        file.write(rows(60))
        for _ in range(300):
            file.write(long)
        file.write(b"y" * (20 << 20))  # one endless line: refused without being held
    tracemalloc.start()
    try:
        with pytest.raises(ApplianceError):
            bring(tmp_path, source)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
