"""Loading: one read into the store, whatever stops it on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundle_samples import FILES, Supplier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.bundle.load import load, require_platform
from appliance.bundle.reader import BundleReader
from appliance.errors import (
    ApplianceError,
    BundleTampered,
    DiskFull,
    ReleaseDamaged,
    ReleaseInUse,
    ReleaseUnknown,
    StoreDamaged,
    WrongPlatform,
)
from appliance.layout import Home
from appliance.manifests.bundle import Platform
from appliance.progress import Silent
from appliance.store import space
from appliance.store.blobs import BlobMismatch, Store
from appliance.store.releases import Releases
from appliance.store.space import FileSystem


@pytest.fixture
def supplier(tmp_path: Path) -> Supplier:
    (tmp_path / "supplier").mkdir()
    return Supplier.at(tmp_path / "supplier")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_a_bundle_becomes_a_release(supplier: Supplier, home: Home) -> None:
    store, releases = Store(home.store), Releases(home)
    bundle = supplier.write(supplier.content())
    loaded = load(bundle, store, supplier.verifier(), Silent())
    assert loaded.written == sum(map(len, FILES.values()))
    assert loaded.verified.demo
    release = releases.materialise(loaded.content, store, Silent())
    for path, data in FILES.items():
        assert (release.model("m") / path).read_bytes() == data
        assert (release.model("m") / path).stat().st_mode & 0o777 == 0o444
    for name in ("bundle.json", "sbom.cdx.json", "metadata/1.root.json", "signatures/m.oms.json"):
        assert (release.folder / name).is_file()
    again = load(bundle, store, supplier.verifier(), Silent())
    assert (again.written, again.skipped) == (0, loaded.written)
    assert releases.materialise(again.content, store, Silent()) == release


def test_releases_switch_and_go_back(supplier: Supplier, home: Home) -> None:
    store, releases = Store(home.store), Releases(home)
    made = []
    for version in ("1.0", "2.0"):
        bundle = supplier.write(supplier.content(version=version))
        loaded = load(bundle, store, supplier.verifier(), Silent())
        made.append(releases.materialise(loaded.content, store, Silent()))
        releases.activate(made[-1].id)
    old, new = made
    assert (releases.current(), releases.previous()) == (new, old)
    with pytest.raises(ReleaseInUse):
        releases.remove(new.id)
    releases.activate(old.id)
    assert (releases.current(), releases.previous()) == (old, new)
    releases.remove(new.id)
    assert releases.list() == (old,)
    assert releases.previous() is None
    with pytest.raises(ReleaseUnknown):
        releases.activate("../../etc")
    (old.folder / "bundle.json").write_text("{}")
    with pytest.raises(ReleaseDamaged):
        old.manifest()


def test_an_interrupted_release_is_completed(supplier: Supplier, home: Home) -> None:
    store, releases = Store(home.store), Releases(home)
    loaded = load(supplier.write(supplier.content()), store, supplier.verifier(), Silent())
    partial = home.releases / f".partial-{loaded.manifest.release_id}"
    (partial / "models/m").mkdir(parents=True)
    (partial / "models/m/config.json").write_bytes(b"not what was signed")
    (partial / "sbom.cdx.json").write_bytes(b"torn")
    assert releases.list() == ()
    release = releases.materialise(loaded.content, store, Silent())
    assert (release.model("m") / "config.json").read_bytes() == FILES["config.json"]
    assert (release.folder / "sbom.cdx.json").read_bytes() == loaded.content.sbom
    assert not partial.exists()


def test_tampering_names_the_member_and_leaves_the_store_whole(
    supplier: Supplier, home: Home
) -> None:
    files = {f"f{n}": os.urandom(50_000) for n in range(8)}
    bundle = supplier.write(supplier.content(files))
    with BundleReader(bundle) as reader:
        victim = reader.layout.blobs[4]
    with bundle.open("r+b") as file:
        file.seek(victim.data + 777)
        file.write(b"\xff\x00\xff")
    store = Store(home.store)
    with pytest.raises(BundleTampered) as refusal:
        load(bundle, store, supplier.verifier(), Silent())
    assert victim.name in refusal.value.sentences()[1]
    for digest in store.digests():
        store.check(digest)
    assert list((home.store / "tmp").iterdir()) == []
    assert f"sha256:{Path(victim.name).name}" not in set(store.digests())


def test_too_little_space_is_said_before_anything_is_written(
    supplier: Supplier, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = supplier.write(supplier.content())
    full = FileSystem(1, home.root, free=1000, block=512)
    monkeypatch.setattr(space, "look", lambda _path: full)
    with pytest.raises(DiskFull):
        load(bundle, Store(home.store), supplier.verifier(), Silent())
    assert not home.store.exists()


def test_the_wrong_platform_is_refused(supplier: Supplier) -> None:
    manifest = supplier.content().manifest
    require_platform(manifest, manifest.platform)
    other = Platform(python="3.11", system="linux", machine="riscv64")
    with pytest.raises(WrongPlatform, match="wrong-platform"):
        require_platform(manifest, other)


_LOADER = """
import sys
from pathlib import Path
from appliance.bundle.load import load
from appliance.progress import Silent
from appliance.store.blobs import Store
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.pin import TrustState
from appliance.trust.verifier import Verifier
verifier = Verifier(TrustState().pinned_to(Fingerprint.parse(sys.argv[3])))
print("loading", flush=True)
load(Path(sys.argv[1]), Store(Path(sys.argv[2])), verifier, Silent())
"""


def test_kill_9_while_loading_then_again(supplier: Supplier, home: Home) -> None:
    files = {f"f{n}": os.urandom(4 << 20) for n in range(10)}
    bundle = supplier.write(supplier.content(files))
    store = Store(home.store)
    arguments = [str(bundle), str(home.store), supplier.repository.fingerprint.hex]
    for delay in (0.0, 0.02, 0.06):
        with subprocess.Popen(
            [sys.executable, "-c", _LOADER, *arguments], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        for digest in store.digests():
            store.check(digest)
    loaded = load(bundle, store, supplier.verifier(), Silent())
    assert len(set(store.digests())) == len(files)
    assert loaded.written + loaded.skipped == 10 * (4 << 20)
    assert list((home.store / "tmp").iterdir()) == []
    assert store.clean() == 0


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(chance=st.randoms(use_true_random=False), flips=st.integers(0, 3))
def test_nothing_is_written_outside_the_store(
    supplier: Supplier, home: Home, chance: object, flips: int
) -> None:
    bundle = supplier.write(supplier.content())
    data = bytearray(bundle.read_bytes())
    for _ in range(flips):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)  # type: ignore[attr-defined]
    bundle.write_bytes(data)
    before = _tree(home.root.parent, home.store)
    try:
        load(bundle, Store(home.store), supplier.verifier(), Silent())
    except ApplianceError as error:
        assert flips, error
    after = _tree(home.root.parent, home.store)
    assert before.keys() - {home.root} == after.keys() - {home.root}
    assert {p: s for p, s in before.items() if p.is_file()} == {
        p: s for p, s in after.items() if p.is_file()
    }
    shutil.rmtree(home.root, ignore_errors=True)


def _tree(root: Path, but: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path != but and but not in path.parents
    }


def test_the_store_keeps_only_what_was_announced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put(b"right")
    assert store.has(digest, 5)
    assert not store.has(digest, 6)
    other = "sha256:" + "0" * 64
    with pytest.raises(BlobMismatch), store.writer(other, 5) as blob:
        blob.write(b"wrong")
        blob.commit()
    with pytest.raises(BlobMismatch), store.writer(other, 2) as blob:
        blob.write(b"long")
    with store.writer(other, 5) as blob:
        blob.write(b"right")  # and never committed
    assert list(store.digests()) == [digest]
    assert list((tmp_path / "tmp").iterdir()) == []
    for malformed in ("sha256:../../x", "md5:" + "0" * 32, "0" * 64):
        with pytest.raises(ValueError, match="digest"):
            store.path(malformed)
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(b"wrong")
    with pytest.raises(StoreDamaged):
        store.check(digest)


def test_clean_spares_a_writer_at_work(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put(b"x")
    store.remove(digest)
    with store.writer(digest, 1) as blob:
        assert store.clean() == 0
        blob.write(b"x")
        blob.commit()
    assert store.has(digest, 1)


@pytest.mark.parametrize("size", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9_000_001])
def test_any_size_is_written_whole(tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    store = Store(tmp_path / "store")
    digest, counted = store.add(source)
    assert counted == size
    assert store.path(digest).read_bytes() == source.read_bytes()
    store.check(digest)
