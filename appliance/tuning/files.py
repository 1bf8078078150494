"""Files of this room: written whole or not at all, and folders named by what they hold."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import rfc8785

_CHUNK = 1 << 20


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable (fsync of a directory, POSIX.1-2017)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Make files readable (0644) and everything under ``folder``, and itself, durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            path.chmod(0o644)  # some writers choose 0600; nothing published here is secret
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; a reader sees the old file or the new, never a part."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    sync_folder(path.parent)


@contextmanager
def staged_folder(parent: Path) -> Iterator[Path]:
    """A fresh folder in ``parent``, gone after the block unless :func:`publish` renamed it."""
    parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=parent, prefix=".staging-"))
    try:
        yield staging
    finally:
        if staging.exists():
            shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, target: Path) -> None:
    """Rename a complete ``staging`` folder to ``target``, durably.

    If ``target`` is there already it is left alone: folders published here are named by their
    content, so it holds the same.
    """
    sync_tree(staging)
    staging.chmod(0o755)
    if target.exists():
        return
    staging.rename(target)
    sync_folder(target.parent)


def file_digest(path: Path) -> str:
    """``sha256:<hex>`` of a file."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def folder_files(folder: Path) -> dict[str, str]:
    """Relative POSIX path → digest of every file under ``folder``, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def tree_digest(files: Mapping[str, str]) -> str:
    """One digest for a set of files: SHA-256 of the RFC 8785 form of path → ``sha256:<hex>``."""
    return "sha256:" + hashlib.sha256(rfc8785.dumps(dict(files))).hexdigest()
