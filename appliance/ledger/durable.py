"""Writing so that it is still there after a power cut, and removing what a cut left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from appliance.ledger.files import LedgerFiles
from appliance.ledger.tiles import Tile


def write_all(files: Iterable[tuple[Path, bytes]], root: Path) -> None:
    """Write files that nothing refers to yet, then fsync them and every folder that changed.

    They may be written in place: until the checkpoint moves, nobody reads them.
    """
    descriptors: list[int] = []
    folders: set[Path] = set()
    try:
        for path, data in files:
            folders.update(_make_folders(path.parent, root))
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            descriptors.append(os.open(path, flags, 0o644))
            _write(descriptors[-1], data)
        for descriptor in descriptors:
            os.fsync(descriptor)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    for folder in folders:
        sync_folder(folder)


def publish(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file atomically and durably."""
    temporary = path.with_name(f".{path.name}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, mode)
    try:
        _write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tail(root: Path, size: int) -> None:
    """Remove what lies beyond a log of ``size`` entries: traces of an append that did not end."""
    (root / ".checkpoint.new").unlink(missing_ok=True)
    for name in LedgerFiles(root).paths():
        tile = Tile.parse(name)
        if tile is not None and not tile.within(size):
            (root / name).unlink()


def remove_tree(path: Path) -> None:
    """Remove a folder of partial tiles, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


def _make_folders(folder: Path, root: Path) -> list[Path]:
    """Make ``folder`` under ``root``; returns the folders whose lists of names change by it."""
    changed = [folder]
    while not folder.exists():
        folder = folder.parent
        changed.append(folder)
        if folder == root:
            break
    changed[0].mkdir(parents=True, exist_ok=True)
    return changed


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
