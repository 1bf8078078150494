"""What happens on disks of a few megabytes: run inside ``unshare -rm`` by test_full_disk.py.

    python full_disk_scenes.py SCENE FOLDER

Each scene mounts its own tmpfs below FOLDER, in this process's mount namespace, and asserts. Space
that "another process" takes between the look and the write is taken by a real file, at that moment.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyrage
from bundle_samples import Supplier

from appliance.bundle import load as load_module
from appliance.bundle.build import build
from appliance.bundle.cache import BuildCache
from appliance.bundle.copying import copy, join
from appliance.bundle.encryption import Sealer, decrypt, encrypt, encrypt_hidden
from appliance.bundle.load import load, verify
from appliance.bundle.opening import Opening
from appliance.bundle.reader import BundleReader
from appliance.bundle.split import split
from appliance.errors import ApplianceError, DiskFull
from appliance.progress import Silent
from appliance.store import space
from appliance.store.blobs import Store
from appliance.store.space import Files, FileSystem, look, on_disk, require

PAGE = 4096
FILES = {
    **{f"small-{n}": os.urandom(50_000 + n) for n in range(20)},
    **{f"large-{n}": os.urandom((2 << 20) + n) for n in range(4)},
}
RECIPE = """
name: tiny
version: 1.0.0
platform: {python: "3.11", system: linux, machine: x86_64}
artefacts:
  - {kind: dataset, name: d, version: "1", licence: MIT, source: {type: path, path: data}}
"""


class Scene:
    """A folder to work in, a supplier's bundle and a store on a disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        load_module.RESERVE = 0
        (folder / "supplier").mkdir()
        self.supplier = Supplier.at(folder / "supplier")

    def disk(self, name: str, size: int, inodes: int = 10_000) -> Path:
        """A tmpfs of ``size`` bytes."""
        mount = self.folder / name
        mount.mkdir(exist_ok=True)
        options = f"size={size},nr_inodes={inodes},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", mount], check=True)
        return mount

    def bundle(self) -> Path:
        return self.supplier.write(self.supplier.content(FILES))

    def load(self, bundle: Path, store: Store) -> None:
        load(bundle, store, self.supplier.verifier(), Silent())

    def desk(self, cache: Path, out: Path) -> Callable[[], None]:
        """A build of ``FILES`` into ``out``, with its cache in ``cache``."""
        os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
        (self.folder / "data").mkdir()
        for name, data in FILES.items():
            (self.folder / "data" / name).write_bytes(data)
        recipe = self.folder / "bundle.yaml"
        recipe.write_text(RECIPE)
        repository = self.supplier.repository
        return lambda: (build(recipe, repository, out, BuildCache(cache), Silent()), None)[1]


def refused(work: Callable[[], object]) -> DiskFull:
    """Its error, which must be the one for a full disk."""
    try:
        work()
    except DiskFull as error:
        return error
    except ApplianceError as error:
        raise AssertionError(error.code) from error
    raise AssertionError("it fitted")


@contextmanager
def taken(disk: Path, leave: int) -> Iterator[None]:
    """After the next look at ``disk``, another process takes all of it but ``leave`` bytes."""
    filler = disk / "somebody-elses"

    def lying(folder: Path) -> FileSystem:
        system = look(folder)
        if system.mount == disk and not filler.exists():
            fill(filler, system.free - leave)
        return system

    space.look = lying
    try:
        yield
    finally:
        space.look = look
        filler.unlink()


def fill(path: Path, size: int) -> None:
    """Write until ``size`` bytes are taken, or the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while size > 0:
                size -= file.write(b"x" * min(size, 1 << 20))
        except OSError as error:
            assert error.errno == errno.ENOSPC


def check_store(store: Store) -> int:
    """Whole blobs and nothing else; return how many."""
    count = 0
    for digest in store.digests():
        store.check(digest)
        count += 1
    assert not (store.root / "tmp").exists() or list((store.root / "tmp").iterdir()) == []
    return count


def load_is_predicted_to_the_byte(scene: Scene) -> None:
    bundle = scene.bundle()
    folders = len({Store(scene.folder).path("sha256:" + n.hex).parent for n in blobs(bundle)})
    exact = sum(on_disk(len(data), PAGE) for data in FILES.values()) + (folders + 2) * PAGE
    small = scene.disk("small", exact - PAGE)
    store = Store(small / "store")
    error = refused(lambda: scene.load(bundle, store))
    # The store's own folder is one more that has to be made.
    assert error.values["needed"] == f"{exact + PAGE} bytes", (error.values, exact)
    assert error.values["free"] == f"{exact - PAGE} bytes"
    assert error.values["path"] == str(small)
    assert list(small.iterdir()) == [], "nothing was written"
    enough = scene.disk("enough", exact + PAGE)
    scene.load(bundle, Store(enough / "store"))
    used = exact + PAGE - look(enough).free
    assert exact - (folders + 2) * PAGE <= used <= exact + PAGE  # a tmpfs's folders are free


def blobs(bundle: Path) -> list:  # type: ignore[type-arg]
    with BundleReader(bundle) as reader:
        return list(reader.manifest.blobs())


def load_filled_by_another_is_undone(scene: Scene) -> None:
    bundle = scene.bundle()
    disk = scene.disk("disk", 16 << 20)
    store = Store(disk / "store")
    for leave in (0, 100_000, 700_000, 3 << 20, 5 << 20):
        with taken(disk, leave):
            error = refused(lambda: scene.load(bundle, store))
            assert error.values["path"] == str(disk)
            check_store(store)
    scene.load(bundle, store)
    assert check_store(store) == len(FILES)


def inodes_are_counted(scene: Scene) -> None:
    bundle = scene.bundle()
    disk = scene.disk("disk", 64 << 20, inodes=30)
    error = refused(lambda: scene.load(bundle, Store(disk / "store")))
    assert "inodes free" in error.sentences()[1], error.sentences()
    assert list(disk.iterdir()) == []


def build_is_predicted_to_the_byte(scene: Scene) -> None:
    work = scene.desk(scene.folder / "cache", scene.folder / "elsewhere.tar")
    work()
    size = (scene.folder / "elsewhere.tar").stat().st_size
    exact = on_disk(size, PAGE)
    small = scene.disk("small", exact - PAGE)
    recipe = scene.folder / "bundle.yaml"

    def into(out: Path) -> None:
        build(recipe, scene.supplier.repository, out, BuildCache(scene.folder / "cache"), Silent())

    error = refused(lambda: into(small / "b.tar"))
    assert error.values["needed"] == f"{exact} bytes"
    assert error.values["free"] == f"{exact - PAGE} bytes"
    assert list(small.iterdir()) == []
    enough = scene.disk("enough", exact)
    into(enough / "b.tar")
    assert look(enough).free == 0


def build_filled_by_another_is_undone(scene: Scene) -> None:
    disk = scene.disk("disk", 40 << 20)
    out = disk / "b.tar"
    work = scene.desk(scene.folder / "cache", out)
    work()
    before = out.read_bytes()
    (scene.folder / "data" / "small-1").write_bytes(os.urandom(50_000))
    for leave in (0, 300_000, 2 << 20):
        with taken(disk, leave):
            refused(work)
            assert out.read_bytes() == before
            names = {path.name for path in disk.iterdir()}
            assert names == {"b.tar", "somebody-elses"}, names
    work()
    assert out.read_bytes() != before
    verify(out, scene.supplier.verifier(), Silent())
    assert [path.name for path in disk.iterdir()] == ["b.tar"]


def a_full_cache_is_named(scene: Scene) -> None:
    disk = scene.disk("cache", 1 << 20)
    os.environ["SOVCTL_CACHE"] = str(disk / "c")
    filler = disk / "filler"
    fill(filler, 1 << 20)
    out = scene.folder / "b.tar"
    work = scene.desk(disk / "c", out)
    error = refused(lambda: (BuildCache.from_environment(), work()))
    assert error.values["path"] == str(disk)
    filler.unlink()
    work()
    verify(out, scene.supplier.verifier(), Silent())


def several_disks_are_each_named(scene: Scene) -> None:
    one, other = scene.disk("one", 1 << 20), scene.disk("other", 2 << 20)
    wanted = [Files(one / "a/b", [600_000, 600_000]), Files(other, [1]), Files(other, [3 << 20])]
    error = refused(lambda: require(wanted, "Both are small."))
    assert error.values["path"] == str(one)
    assert error.values["needed"] == f"{2 * on_disk(600_000, PAGE)} bytes"
    assert (
        f"{(3 << 20) + PAGE} bytes needed in {other}, {2 << 20} bytes free"
        in (error.values["reason"])
    )


def copies_joins_and_splits_are_predicted(scene: Scene) -> None:
    bundle = scene.bundle()
    size = bundle.stat().st_size
    disk = scene.disk("disk", on_disk(size, PAGE) - PAGE)
    parts = scene.folder / "parts"
    parts.mkdir()
    made = split(bundle, 4 << 20, parts, scene.supplier.repository, Silent())
    for work in (
        lambda: copy(bundle, disk / "b.tar", Silent()),
        lambda: join(made.paths[0], disk / "b.tar", Silent()),
        lambda: split(bundle, 4 << 20, disk, scene.supplier.repository, Silent()),
    ):
        error = refused(work)
        assert int(error.values["needed"].split()[0]) >= size
        left = {path.name: path.stat().st_size for path in disk.iterdir()}
        assert not any(left.values()), left  # a name to go on from at most, and not a byte


def an_encryption_cut_short_is_undone(scene: Scene) -> None:
    """Readable, hidden and back: predicted, undone where another took the space meanwhile."""
    bundle = scene.bundle()
    disk = scene.disk("out", 64 << 20)
    own = pyrage.x25519.Identity.generate()
    identity = scene.folder / "identity.txt"
    identity.write_text(f"{own}\n")
    recipients = (str(own.to_public()),)
    sealer = Sealer(recipients, scene.supplier.repository)
    readable = scene.folder / "readable.tar"
    encrypt(bundle, readable, sealer, Silent())
    out = disk / "b"
    works: tuple[Callable[[], object], ...] = (
        lambda: encrypt(bundle, out, sealer, Silent()),
        lambda: encrypt_hidden(bundle, out, recipients, Silent()),
        lambda: decrypt(readable, out, Silent(), Opening(identity=identity)),
    )
    for work in works:
        for leave in (0, 100_000, 3 << 20):
            with taken(disk, leave):
                refused(work)
            assert list(disk.iterdir()) == []
        fill(disk / "other", (64 << 20) - (1 << 20))
        error = refused(work)  # not meanwhile but beforehand
        assert int(error.values["needed"].split()[0].replace(",", "")) > 8 << 20, error.values
        (disk / "other").unlink()
        assert list(disk.iterdir()) == []
        work()
        out.unlink()


SCENES = {
    scene.__name__: scene
    for scene in (
        load_is_predicted_to_the_byte,
        load_filled_by_another_is_undone,
        an_encryption_cut_short_is_undone,
        inodes_are_counted,
        build_is_predicted_to_the_byte,
        build_filled_by_another_is_undone,
        a_full_cache_is_named,
        several_disks_are_each_named,
        copies_joins_and_splits_are_predicted,
    )
}

if __name__ == "__main__":
    SCENES[sys.argv[1]](Scene(Path(sys.argv[2])))
