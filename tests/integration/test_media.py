"""Real file systems on loop devices: blocks that cannot be read, and blocks that can be shared."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bundle_samples import Supplier

from appliance.bundle.load import load, verify
from appliance.bundle.reader import BundleReader
from appliance.errors import BundleTampered, MediumFailed
from appliance.progress import Silent
from appliance.store.blobs import Store

SIZES = {"large": (6 << 20) + 77, "aligned": 4 << 20, "just": 1 << 16, "small": 65_535, "none": 0}
FILES = {name: random.Random(name).randbytes(size) for name, size in SIZES.items()}


@pytest.fixture(scope="module")
def supplier(tmp_path_factory: pytest.TempPathFactory) -> Supplier:
    return Supplier.at(tmp_path_factory.mktemp("supplier"))


@pytest.fixture(scope="module")
def bundle(supplier: Supplier) -> Path:
    return supplier.write(supplier.content(FILES))


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """A loop device over ``image`` that answers reads beyond the image's end with EIO."""
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("needs root and losetup to attach a loop device")
    command = ["losetup", "--find", "--show", "--direct-io=on", image]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device to be had: {made.stderr.strip()}")
    try:
        yield made.stdout.strip()
    finally:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@contextmanager
def mounted(device: str, folder: Path, options: str = "rw") -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-o", options, device, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def file_system(kind: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A fresh file system of that kind: the loop device and its image."""
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run([f"mkfs.{kind}", image], check=True, capture_output=True)
    with attached(image) as device:
        yield device, image


def test_a_read_error_names_the_member_and_the_offset(
    supplier: Supplier, bundle: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    with file_system("ext4", tmp_path) as (device, image):
        with mounted(device, tmp_path / "stick") as stick:
            shutil.copy(bundle, stick / "b.tar")
        end = _last_block_of(device, bundle)
        with image.open("r+b") as file:
            file.truncate(end - (3 << 20))  # the stick loses what lies there
        with mounted(device, tmp_path / "stick", "ro,norecovery") as stick:
            for attempt in (
                lambda: verify(stick / "b.tar", supplier.verifier(), Silent()),
                lambda: load(stick / "b.tar", store, supplier.verifier(), Silent()),
            ):
                with pytest.raises(MediumFailed) as failure:
                    attempt()
                _check_named(stick / "b.tar", failure.value)
    for digest in store.digests():
        store.check(digest)
    assert list((store.root / "tmp").iterdir()) == []
    load(bundle, store, supplier.verifier(), Silent())


def _last_block_of(device: str, bundle: Path) -> int:
    """Where on the device the bundle's last whole page lies, in bytes (found by its content)."""
    last = bundle.read_bytes()[-(1 << 20) : -(1 << 20) + 4096]
    with Path(device).open("rb") as file:
        at = file.read(200 << 20).find(last)
    assert at > 0
    return at + (1 << 20)


def _check_named(path: Path, error: MediumFailed) -> None:
    """The named byte really cannot be read, the page before can, and it is that member's."""
    offset = int(error.values["offset"])
    with BundleReader(path) as reader:
        member = next(m for m in reader.layout.blobs if m.name == error.values["member"])
    assert member.header <= offset < member.end
    with path.open("rb", buffering=0) as file:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pread(file.fileno(), 1, offset)
        assert os.pread(file.fileno(), 1, offset - 4096)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_blocks_are_shared_and_what_lies_in_the_store_is_hashed(
    kind: str, supplier: Supplier, bundle: Path, tmp_path: Path
) -> None:
    with (
        file_system(kind, tmp_path) as (device, _image),
        mounted(device, tmp_path / "disk") as disk,
    ):
        copy, store = disk / "b.tar", Store(disk / "store")
        shutil.copy(bundle, copy)
        load(copy, store, supplier.verifier(), Silent())
        assert {store.path(d).read_bytes() for d in store.digests()} == set(FILES.values())
        shared = {name for name, data in FILES.items() if _is_shared(store, data)}
        assert shared == {"large", "aligned", "just"}
        _flip_in_each_shared_blob(copy, bundle, supplier)


def _is_shared(store: Store, data: bytes) -> bool:
    digest = next(d for d in store.digests() if store.path(d).read_bytes() == data)
    command = ["filefrag", "-v", store.path(digest)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r"\bshared\b", listed) is not None


def _flip_in_each_shared_blob(copy: Path, bundle: Path, supplier: Supplier) -> None:
    with BundleReader(bundle) as reader:
        members = [m for m in reader.layout.blobs if m.size >= 1 << 16]
    for member in members:
        for offset in (member.data, member.data + member.size - 1):
            data = bytearray(bundle.read_bytes())
            data[offset] ^= 4
            copy.write_bytes(data)
            other = Store(copy.parent / "other")
            with pytest.raises(BundleTampered) as refusal:
                load(copy, other, supplier.verifier(), Silent())
            assert refusal.value.values["member"] == member.name
            for digest in other.digests():
                other.check(digest)
            assert list((other.root / "tmp").iterdir()) == []
            shutil.rmtree(other.root)


def test_elsewhere_blocks_are_copied(tmp_path: Path) -> None:
    data = FILES["large"]
    source = tmp_path / "source"
    source.write_bytes(data)
    store = Store(Path("/dev/shm") / tmp_path.name)
    try:
        digest = store.put(data)
        store.remove(digest)
        with source.open("rb") as file, store.writer(digest, len(data)) as blob:
            assert not blob.clone_from(file.fileno(), 0, lambda _count: True)
            blob.write(data)
            blob.commit()
        store.check(digest)
    finally:
        shutil.rmtree(store.root)
