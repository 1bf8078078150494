"""Carrying a bundle: cut and joined, copied and cut off, thinned to a delta."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyrage
import pytest
from bundle_samples import FILES, Supplier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.bundle import parts
from appliance.bundle.copying import copy, join
from appliance.bundle.delta import delta, read_base
from appliance.bundle.encryption import Sealer, encrypt
from appliance.bundle.load import load, verify
from appliance.bundle.opening import Opening
from appliance.bundle.parts import Wanted, read_part
from appliance.bundle.reader import BundleReader
from appliance.bundle.split import split
from appliance.errors import (
    BaseMissing,
    BundleTampered,
    BundleUntrusted,
    DeltaBaseIsTarget,
    PartMissing,
    PartRefused,
    PartSizeInvalid,
    TargetTaken,
)
from appliance.progress import Silent
from appliance.store.blobs import Store

QUIET = Silent()


@pytest.fixture(scope="module")
def supplier(tmp_path_factory: pytest.TempPathFactory) -> Supplier:
    return Supplier.at(tmp_path_factory.mktemp("supplier"))


@pytest.fixture(scope="module")
def bundle(supplier: Supplier) -> Path:
    files = {**FILES, **{f"f{n}": os.urandom(60_000) for n in range(5)}}
    return supplier.write(supplier.content(files, name="carried"), "carried.tar")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    return tmp_path / "parts"


# --- parts --------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(part_size=st.integers(24_000, 400_000))
def test_cut_and_joined_it_is_the_same_file(
    supplier: Supplier, bundle: Path, folder: Path, part_size: int
) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    made = split(bundle, part_size, folder, supplier.repository, QUIET)
    sizes = [path.stat().st_size for path in made.paths]
    assert set(sizes[:-1]) <= {part_size}
    assert 0 < sizes[-1] <= part_size
    assert sorted(folder.iterdir()) == sorted(made.paths)
    joined = join(made.paths[-1], folder / "joined.tar", QUIET)
    assert joined.path.read_bytes() == bundle.read_bytes()
    verify(made.paths[0], supplier.verifier(), QUIET)


def test_a_size_too_small_for_a_header_is_refused(
    supplier: Supplier, bundle: Path, folder: Path
) -> None:
    with pytest.raises(PartSizeInvalid):
        split(bundle, 4096, folder, supplier.repository, QUIET)
    assert list(folder.iterdir()) == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_a_part_is_refused(
    supplier: Supplier, bundle: Path, folder: Path, data: st.DataObject
) -> None:
    if not any(folder.iterdir()):
        split(bundle, 100_000, folder, supplier.repository, QUIET)
    made = sorted(folder.glob("*.part*"))
    victim = data.draw(st.sampled_from(made))
    header = 8192 if data.draw(st.booleans()) else victim.stat().st_size
    at = data.draw(st.integers(0, min(header, victim.stat().st_size) - 1))
    before = victim.read_bytes()
    changed = bytearray(before)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(changed)
    other = made[0] if victim != made[0] else made[1]
    try:
        # In a key's id it is a signature by somebody unknown; as in a bundle that is one file.
        with pytest.raises((PartRefused, PartMissing, BundleTampered, BundleUntrusted)):
            verify(other, supplier.verifier(), QUIET)
    finally:
        victim.write_bytes(before)


def test_installing_from_disks_that_are_inserted_one_after_the_other(
    supplier: Supplier, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    made = split(bundle, 100_000, folder, supplier.repository, QUIET)
    drive = tmp_path / "drive"
    drive.mkdir()
    asked: list[int] = []

    def insert(wanted: Wanted) -> None:
        asked.append(wanted.number)
        for old in drive.iterdir():
            old.unlink()
        shutil.copy(made.paths[wanted.number - 1], drive)

    first = shutil.copy(made.paths[0], drive)
    store = Store(tmp_path / "store")
    opening = Opening(parts=(tmp_path / "nowhere", drive), ask=insert)
    loaded = load(Path(first), store, supplier.verifier(), QUIET, opening)
    assert asked == list(range(2, len(made.paths) + 1))  # each disk once, in order
    assert loaded.written == sum(blob.size for blob in loaded.manifest.blobs())
    for digest in store.digests():
        store.check(digest)
    asked.clear()
    shutil.copy(made.paths[0], drive)
    load(Path(first), store, supplier.verifier(), QUIET, opening)
    assert asked in ([], [2])  # what is in the store needs no disk; the front may lie on two


def test_a_part_that_is_missing_is_named_with_its_set(
    supplier: Supplier, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    made = split(bundle, 100_000, folder, supplier.repository, QUIET)
    set_id = made.index.set_id[:12]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    away = Path(shutil.move(made.paths[2], elsewhere))
    with pytest.raises(PartMissing) as missing:
        verify(made.paths[0], supplier.verifier(), QUIET)
    what, why, _fix = missing.value.sentences()
    assert "Part 3 of " in what
    assert set_id in what
    assert str(folder) in why
    verify(made.paths[0], supplier.verifier(), QUIET, Opening(parts=(elsewhere,)))
    # a stale part under the right name (zarf#3266), and one that was cut short (zarf#2326)
    other = supplier.write(supplier.content({"x": os.urandom(400_000)}, name="other"), "o.tar")
    stale = tmp_path / "stale"
    stale.mkdir()
    others = split(other, 100_000, stale, supplier.repository, QUIET)
    shutil.copy(others.paths[2], made.paths[2])
    with pytest.raises(PartMissing, match="part-missing") as missing:
        verify(made.paths[0], supplier.verifier(), QUIET)
    assert others.index.set_id[:12] in missing.value.sentences()[1]
    assert str(made.paths[2]) in missing.value.sentences()[1]
    made.paths[2].write_bytes(away.read_bytes()[:-1])
    with pytest.raises(PartMissing) as missing:
        verify(made.paths[0], supplier.verifier(), QUIET)
    assert str(made.paths[2]) in missing.value.sentences()[1]


def test_parts_of_another_set_are_not_mixed_in(
    supplier: Supplier, bundle: Path, folder: Path
) -> None:
    split(bundle, 100_000, folder, supplier.repository, QUIET)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TargetTaken):
        split(bundle, 120_000, folder, supplier.repository, QUIET)
    again = split(bundle, 100_000, folder, supplier.repository, QUIET)
    assert again.kept == len(again.paths)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_index_must_be_signed_by_who_is_trusted(
    supplier: Supplier, bundle: Path, folder: Path, tmp_path: Path
) -> None:
    stranger = Supplier.at(tmp_path / "stranger")
    made = split(bundle, 100_000, folder, stranger.repository, QUIET)
    with pytest.raises(BundleTampered, match="bundle-tampered") as refusal:
        verify(made.paths[0], supplier.verifier(), QUIET)
    assert "index of its parts" in refusal.value.sentences()[1]


def test_a_damaged_source_is_not_cut(supplier: Supplier, bundle: Path, folder: Path) -> None:
    with BundleReader(bundle) as reader:
        victim = reader.layout.blobs[-1]
    damaged = folder.parent / "carried.tar"
    shutil.copy(bundle, damaged)
    _overwrite(damaged, victim.data, b"oops")
    with pytest.raises(BundleTampered) as refusal:
        split(damaged, 100_000, folder, supplier.repository, QUIET)
    assert victim.name in refusal.value.sentences()[1]
    assert list(folder.iterdir()) == []


# --- copies -------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_copy_that_was_cut_goes_on(bundle: Path, folder: Path, data: st.DataObject) -> None:
    target = folder / "copy.tar"
    target.unlink(missing_ok=True)
    whole = bundle.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    torn = bytearray(whole[:cut])
    hole = data.draw(st.integers(0, len(whole) - 1))
    if 200_000 < hole < cut:
        torn[hole : hole + 5000] = bytes(len(torn[hole : hole + 5000]))
    target.write_bytes(torn)
    copied = copy(bundle, target, QUIET)
    assert target.read_bytes() == whole
    assert copied.kept + copied.written == copied.size == len(whole)
    assert [path.name for path in folder.iterdir()] == ["copy.tar"]
    if cut > 300_000:
        assert copied.kept > 0


def test_a_copy_overwrites_nothing_else(bundle: Path, folder: Path) -> None:
    target = folder / "copy.tar"
    target.write_bytes(b"someone else's")
    with pytest.raises(TargetTaken):
        copy(bundle, target, QUIET)
    with pytest.raises(TargetTaken):
        copy(bundle, bundle, QUIET)
    assert target.read_bytes() == b"someone else's"
    damaged = folder / "damaged.tar"
    shutil.copy(bundle, damaged)
    _overwrite(damaged, bundle.stat().st_size - 70_000, b"oops")
    with pytest.raises(BundleTampered):
        copy(damaged, folder / "new.tar", QUIET)
    assert not (folder / "new.tar").exists()


def test_a_part_is_copied_like_a_bundle(supplier: Supplier, bundle: Path, folder: Path) -> None:
    made = split(bundle, 100_000, folder, supplier.repository, QUIET)
    away = folder / "away"
    away.mkdir()
    (away / made.paths[1].name).write_bytes(made.paths[1].read_bytes()[:50_000])
    copied = copy(made.paths[1], away, QUIET)
    assert copied.path.read_bytes() == made.paths[1].read_bytes()
    assert read_part(copied.path).number == 2


# --- deltas -------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(kept=st.integers(0, 4), new=st.integers(0, 4), dropped=st.integers(0, 4), bare=st.booleans())
def test_a_delta_on_its_base_is_the_full_bundle(
    supplier: Supplier, tmp_path: Path, kept: int, new: int, dropped: int, bare: bool
) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    same = {"config.json": b"{}", **{f"kept{n}": b"kept%d" % n * 900 for n in range(kept)}}
    gone = {f"gone{n}": b"gone%d" % n * 900 for n in range(dropped)}
    added = {f"new{n}": os.urandom(5000) for n in range(new)}
    old = supplier.write(supplier.content({**same, **gone}, "1.0", "thin"), "old.tar")
    full = supplier.write(supplier.content({**same, **added}, "2.0", "thin"), "full.tar")
    base = old
    if bare:
        base = tmp_path / "bundle.json"
        base.write_bytes(BundleReader(old).members["bundle.json"])
    thin = tmp_path / "thin.tar"
    made = delta(full, read_base(base), thin, supplier.repository, QUIET)
    assert made.left_out == len(same)
    with BundleReader(thin) as reader, BundleReader(full) as whole:
        assert reader.manifest.release_id == whole.manifest.release_id
        assert reader.metadata == whole.metadata
        assert len(reader.layout.blobs) == len(set(added.values()))
    verify(thin, supplier.verifier(), QUIET)
    store = Store(tmp_path / "store")
    with pytest.raises(BaseMissing) as missing:
        load(thin, store, supplier.verifier(), QUIET)
    assert "thin-1.0-" in missing.value.sentences()[0]
    assert BundleReader(old).manifest.digest in missing.value.sentences()[1]
    load(old, store, supplier.verifier(), QUIET)
    loaded = load(thin, store, supplier.verifier(), QUIET)
    assert loaded.written == sum(map(len, added.values()))
    again = load(full, store, supplier.verifier(), QUIET)
    assert again.written == 0
    assert again.content == loaded.content
    with pytest.raises(DeltaBaseIsTarget):
        delta(full, read_base(full), thin, supplier.repository, QUIET)


def test_a_delta_is_signed_and_thinned_and_hidden_at_once(
    supplier: Supplier, tmp_path: Path
) -> None:
    old = supplier.write(supplier.content({"a": b"a" * 9000}, "1.0", "odd"), "old.tar")
    full = supplier.write(
        supplier.content({"a": b"a" * 9000, "b": b"b" * 9000}, "2.0", "odd"), "full.tar"
    )
    thin = tmp_path / "thin.tar"
    delta(full, read_base(old), thin, Supplier.at(tmp_path / "stranger").repository, QUIET)
    with pytest.raises(BundleTampered) as refusal:
        verify(thin, supplier.verifier(), QUIET)
    assert "delta.dsse.json" in refusal.value.sentences()[1]
    delta(full, read_base(old), thin, supplier.repository, QUIET)
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "identity").write_text(str(identity))
    sealed = tmp_path / "sealed.tar"
    encrypt(thin, sealed, Sealer((str(identity.to_public()),), supplier.repository), QUIET)
    store = Store(tmp_path / "store")
    load(old, store, supplier.verifier(), QUIET)
    opening = Opening(identity=tmp_path / "identity")
    assert load(sealed, store, supplier.verifier(), QUIET, opening).written == 9000


_WORKER = """
import sys
from pathlib import Path
from appliance.bundle.copying import copy, join
from appliance.bundle.split import split
from appliance.progress import Silent
from appliance.trust.repository import Repository
verb, source, target, keys = sys.argv[1:5]
print("ready", flush=True)
if verb == "split":
    split(Path(source), 9_000_000, Path(target), Repository.open(Path(keys), lambda: b""), Silent())
else:
    {"copy": copy, "join": join}[verb](Path(source), Path(target), Silent())
print("done", flush=True)
"""


@pytest.mark.parametrize("verb", ["split", "join", "copy"])
def test_kill_9_then_again(supplier: Supplier, tmp_path: Path, verb: str) -> None:
    files = {f"f{n}": os.urandom(5 << 20) for n in range(8)}
    bundle = supplier.write(supplier.content(files, name="large"), "large.tar")
    source, target = bundle, tmp_path / "out.tar"
    (tmp_path / "parts").mkdir()
    if verb == "join":
        made = split(bundle, 9_000_000, tmp_path / "parts", supplier.repository, QUIET)
        source = made.paths[0]
    if verb == "split":
        target = tmp_path / "parts"
    keys = supplier.folder / "keys"
    arguments = [sys.executable, "-c", _WORKER, verb, *map(str, (source, target, keys))]
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1):
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        if verb == "split":
            for part in target.glob("large.tar.part*"):
                read_part(part)  # whatever has its name is whole
        elif target.exists():
            assert target.read_bytes() == bundle.read_bytes()
    subprocess.run(arguments, check=True, capture_output=True)
    if verb == "split":
        first = target / "large.tar.part0001"
        assert sorted(p.name for p in target.iterdir()) == [
            f"large.tar.part{n:04d}" for n in range(1, len(read_part(first).index.parts) + 1)
        ]
        target = join(first, tmp_path / "joined.tar", QUIET).path
    assert target.read_bytes() == bundle.read_bytes()


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_great_many_parts_are_read_one_at_a_time(
    supplier: Supplier, bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_MAX_OPEN", 3)
    made = split(bundle, 50_000, folder, supplier.repository, QUIET)
    assert len(made.paths) > 3
    before = len(list(Path("/proc/self/fd").iterdir()))
    with BundleReader(made.paths[2]) as reader:
        assert reader.sequential
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    load(made.paths[2], Store(tmp_path / "store"), supplier.verifier(), QUIET)
