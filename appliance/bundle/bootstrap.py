"""``sovctl.pyz``: ``sovctl`` for a machine that has a Python and nothing else.

    made = prepare(recipe.bootstrap, desk)     # fetch the wheels, for each Python
    written = write(made, out, cache)          # one file, the same bytes for the same inputs

A zip that Python runs (PEP 441): ``__main__.py`` is :mod:`appliance.bundle.bootstrap_main`,
``wheels/`` has our own wheel and those of a lock as they were published, and ``manifest.json`` says
which of them each Python takes and what every file in them is. Nothing in it is compressed anew,
and there are no dates, so it depends on the wheels alone. ``docs/formats.md`` has the prose.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import rfc8785

from appliance.bundle import bootstrap_main
from appliance.bundle.cache import BuildCache
from appliance.bundle.sources import own_wheel
from appliance.bundle.sources.desk import Desk
from appliance.bundle.sources.pins import read_lock
from appliance.bundle.sources.wheels import fetch
from appliance.errors import BootstrapDamaged, BootstrapFolderUnusable, BootstrapPythonUnfit
from appliance.i18n import _
from appliance.manifests.bundle import check_path
from appliance.manifests.recipe import Bootstrap
from appliance.store.blobs import sync_folder

SUFFIX = ".sovctl.pyz"
"""``hospital.tar`` has its ``hospital.sovctl.pyz`` beside it."""

_SHEBANG = b"#!/usr/bin/env python3\n"
_ERRORS = (BootstrapPythonUnfit, BootstrapFolderUnusable, BootstrapDamaged)
_LABEL = "sovctl.pyz"  # what stands for the artefact's name in errors


@dataclass(frozen=True)
class Prepared:
    """What a ``sovctl.pyz`` will hold: wheels by file name, and which of them a Python takes.

    ``machine`` is ``<system> <machine>``, such as ``linux x86_64``.
    """

    machine: str
    wheels: dict[str, Path]
    pythons: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Written:
    """A ``sovctl.pyz`` on disk. ``sha256`` is what ``sha256sum`` prints; ``size`` in bytes."""

    path: Path
    sha256: str
    size: int


def prepare(wanted: Bootstrap, desk: Desk) -> Prepared:
    """The wheels for each Python, fetched where the cache lacks them.

    Raises what ``wheels.fetch``, ``read_lock`` and ``own_wheel.build`` raise.
    """
    pins = read_lock(desk.path(wanted.lock)).pins
    own = own_wheel.build(desk.path(wanted.project), _LABEL, desk)
    wheels = {own.name: own}
    pythons = {}
    for python in wanted.pythons:
        there = replace(
            desk, platform=desk.platform.model_copy(update={"python": python}), local_builds=()
        )
        found = fetch(pins, there).values()
        wheels.update((path.name, path) for path in found)
        pythons[python] = tuple(sorted([own.name, *(path.name for path in found)]))
    machine = f"{desk.platform.system} {desk.platform.machine}"
    return Prepared(machine, dict(sorted(wheels.items())), pythons)


def write(made: Prepared, out: Path, cache: BuildCache) -> Written:
    """Write ``out`` atomically, unless it is there already with that content.

    Raises ``BootstrapDamaged`` if a wheel cannot be unpacked safely.
    """
    manifest = manifest_of(made)
    program = Path(bootstrap_main.__file__).read_bytes()
    identity = hashlib.sha256(b"pyz\0" + program + b"\0" + manifest).hexdigest()
    if not cache.is_output(out, identity):
        fresh = out.with_name(f".{out.name}.partial")
        try:
            with fresh.open("wb") as file:
                file.write(_SHEBANG)
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr(_entry("__main__.py"), program)
                    archive.writestr(_entry("manifest.json"), manifest)
                    for name, path in made.wheels.items():
                        archive.writestr(_entry(f"wheels/{name}"), path.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            fresh.chmod(0o755)
            fresh.replace(out)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(out.parent)
        cache.remember_output(out, identity)
    with out.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Written(out, sha256, out.stat().st_size)


def manifest_of(made: Prepared) -> bytes:
    """``manifest.json``: canonical, so that its own digest can name the content."""
    errors = {
        error.code: {
            "what": error.what,
            "why": error.why,
            "fix": error.fix,
            "exit": int(error.exit_code),
        }
        for error in _ERRORS
    }
    files = {name: _files_of(path) for name, path in made.wheels.items()}
    for names in made.pythons.values():
        _check_apart(names, files)
    tree: dict[str, Any] = {
        "schema_version": 1,
        "machine": made.machine,
        "pythons": {python: list(names) for python, names in made.pythons.items()},
        "wheels": {name: {"files": rows} for name, rows in files.items()},
        "errors": errors,
    }
    return rfc8785.dumps(tree)


_Row = tuple[str, int, str, int, str]


def _files_of(wheel: Path) -> list[_Row]:
    """``[place, size, SHA-256, mode, member]`` of every file a wheel installs.

    ``place`` starts with ``site/`` or ``bin/``; ``member`` is empty where it is the rest of it.
    """
    rows: list[_Row] = []
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            placed = None if info.is_dir() else _place_of(info.filename)
            if placed is None:
                continue
            try:
                check_path(placed)
            except ValueError as error:
                raise BootstrapDamaged(path=wheel, reason=f"{error}.") from error
            data = archive.read(info)
            if placed.startswith("bin/") and data.startswith(b"#!python"):
                continue  # an installer would rewrite it; nothing of ours runs one
            runs = placed.startswith("bin/") or info.external_attr >> 16 & 0o100
            member = "" if placed == f"site/{info.filename}" else info.filename
            digest = hashlib.sha256(data).hexdigest()
            rows.append((placed, len(data), digest, 0o700 if runs else 0o600, member))
    return sorted(rows)


def _place_of(member: str) -> str | None:
    """Where a wheel's member goes (PEP 427), or None if nothing here needs it."""
    top, _slash, rest = member.partition("/")
    if not top.endswith(".data"):
        return f"site/{member}"
    scheme, _slash, path = rest.partition("/")
    if scheme in {"purelib", "platlib"}:
        return f"site/{path}"
    return f"bin/{path}" if scheme == "scripts" else None


def _check_apart(names: Sequence[str], files: dict[str, list[_Row]]) -> None:
    owner: dict[str, str] = {}
    for name in names:
        for row in files[name]:
            if owner.setdefault(row[0], name) != name:
                reason = _("{other} brings {path} as well.").format(
                    other=owner[row[0]], path=row[0]
                )
                raise BootstrapDamaged(path=name, reason=reason)


def _entry(name: str) -> zipfile.ZipInfo:
    """An uncompressed member without a date, readable by all."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = 0o100644 << 16
    return info
