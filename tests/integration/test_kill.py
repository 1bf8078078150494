"""kill -9 at random points: what is there is whole, and the next run finishes and cleans up."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kill_lab import (
    Lab,
    Operation,
    assert_nothing_unfinished,
    assert_whole_blobs,
    assert_whole_or_absent,
    sha256,
)

from appliance.bundle.build import build
from appliance.bundle.cache import BuildCache
from appliance.bundle.copying import copy, join
from appliance.bundle.load import load, verify
from appliance.bundle.split import split
from appliance.progress import Silent
from appliance.store.blobs import Store
from appliance.trust.pin import TrustState
from appliance.trust.repository import Repository, Threshold
from appliance.trust.verifier import Verifier

KILLS = 220  # over all operations; each takes its share
# Empty, one write, around where O_DIRECT begins, several buffers, odd tails.
SIZES = [0, 1, 512, 70_000, (1 << 20) - 1, (1 << 20) + 1, *[600_000] * 6, 3_000_001, 5 << 20]

RECIPE = """
name: killed
version: 1.0.0
platform: {python: "3.11", system: linux, machine: x86_64}
artefacts:
  - kind: model
    name: m
    version: "1"
    licence: MIT
    source: {type: path, path: m}
"""


class Desk:
    """Sources, keys and a cache: what builds are made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = Repository.create_demo(folder / "keys", Threshold(1, 1))
        self.verifier = Verifier(TrustState().pinned_to(self.repository.fingerprint))
        self.out = folder / "out" / "b.tar"
        self.out.parent.mkdir()
        (folder / "m").mkdir()
        (folder / "bundle.yaml").write_text(RECIPE)
        chance = random.Random(1)
        for number, size in enumerate(SIZES):
            (folder / "m" / f"f{number}").write_bytes(chance.randbytes(size))

    def build(self) -> None:
        cache = BuildCache(self.folder / "cache")
        build(self.folder / "bundle.yaml", self.repository, self.out, cache, Silent())

    def change(self) -> None:
        """Other content, so that the next build has something to do and new metadata to sign."""
        (self.folder / "m" / "f3").write_bytes(os.urandom(70_000))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    os.environ["SOURCE_DATE_EPOCH"] = "1700000000"
    try:
        made = Desk(tmp_path_factory.mktemp("desk"))
        made.build()
        yield made
    finally:
        del os.environ["SOURCE_DATE_EPOCH"]


def building(desk: Desk) -> Operation:
    def whole() -> None:
        verify(desk.out, desk.verifier, Silent())

    def done() -> None:
        whole()
        assert [file.name for file in desk.out.parent.iterdir()] == ["b.tar"]
        assert list((desk.folder / "cache" / "tmp").iterdir()) == []

    # The bundle of the content before stays in its place until the new one is whole.
    return Operation("build", desk.change, desk.build, whole, done)


def loading(desk: Desk) -> Operation:
    store = Store(desk.folder / "home" / "store")

    def done() -> None:
        assert_whole_blobs(store)
        assert_nothing_unfinished(store)
        assert len(list(store.digests())) == len(SIZES)

    return Operation(
        "load",
        lambda: shutil.rmtree(store.root, ignore_errors=True),
        lambda: load(desk.out, store, desk.verifier, Silent()),
        lambda: assert_whole_blobs(store),
        done,
    )


def carrying(name: str, folder: Path, work: Callable[[], object]) -> Operation:
    """An operation that fills ``folder`` and always with the same files, by name and content."""
    right: dict[str, str] = {}

    def reset() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def settled() -> None:
        for path in folder.iterdir():
            if not path.name.startswith("."):
                assert_whole_or_absent(path, right[path.name])

    def done() -> None:
        found = {path.name: sha256(path) for path in folder.iterdir()}
        assert found == (right or found)
        assert not [name for name in found if name.startswith(".")]
        right.update(found)

    return Operation(name, reset, work, settled, done)


PART = 2 << 20


def splitting(desk: Desk) -> Operation:
    folder = desk.folder / "split"
    return carrying(
        "split", folder, lambda: split(desk.out, PART, folder, desk.repository, Silent())
    )


def joining(desk: Desk) -> Operation:
    parts, folder = desk.folder / "parts", desk.folder / "joined"
    parts.mkdir()
    made = split(desk.out, PART, parts, desk.repository, Silent())
    return carrying("join", folder, lambda: join(made.paths[0], folder / "b.tar", Silent()))


def copying(desk: Desk) -> Operation:
    folder = desk.folder / "copied"
    return carrying("copy", folder, lambda: copy(desk.out, folder / "b.tar", Silent()))


OPERATIONS: tuple[Callable[[Desk], Operation], ...] = (
    building,
    loading,
    splitting,
    joining,
    copying,
)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_random_points(desk: Desk, operation: Callable[[Desk], Operation]) -> None:
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))
    wanted = -(-KILLS // len(OPERATIONS))
    report = Lab(seed).run(operation(desk), wanted)  # which asserts what holds after each kill
    assert report.kills == wanted, report
