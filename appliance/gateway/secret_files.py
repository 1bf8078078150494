"""Secrets the gateway reads, and makes when they are missing."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def read_secret(path: Path) -> str:
    """The secret in ``path``; empty if it is not there."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def ensure_secret(path: Path) -> str:
    """The secret in ``path``, made (256 bits, mode 0600) if it is missing.

    Two processes that make it at once end with the same one: the first link wins.
    """
    found = read_secret(path)
    if found:
        return found
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
        file.flush()
        os.fsync(descriptor)
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return read_secret(path)
