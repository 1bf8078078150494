"""Writing so that it is still there after a power cut, and removing what a cut left behind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from appliance.ledger.tiles import HEIGHT, WIDTH, Level, index_path


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
    """Remove what lies beyond a log of ``size`` entries: the traces of an append that did not end."""
    (root / ".checkpoint.new").unlink(missing_ok=True)
    levels: list[Level] = ["entries", *range(64 // HEIGHT)]
    for level in levels:
        height = 0 if level == "entries" else HEIGHT * level
        index, width = divmod(size >> height, WIDTH)
        if not _remove_beyond(root / f"tile/{level}", index, width):
            if level != "entries":
                return  # no tile beyond here, so none above


def remove_tree(path: Path) -> None:
    """Remove a folder of partial tiles, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


def _remove_beyond(folder: Path, index: int, width: int) -> bool:
    """Remove tiles after ``index`` and partial ones of ``index`` wider than ``width``."""
    removed = False
    while True:
        tile = folder / index_path(index)
        partials = tile.with_name(f"{tile.name}.p")
        found = [tile] if tile.exists() else []
        if partials.is_dir():
            found += [path for path in partials.iterdir() if int(path.name) > width]
        for path in found:
            path.unlink()
        if not found:
            return removed
        removed, index, width = True, index + 1, 0


def _make_folders(folder: Path, root: Path) -> list[Path]:
    """Make ``folder`` under ``root``; the folders whose lists of names that and a new file change."""
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
