"""The release's own Python environment, from the bundle's wheels and from nothing else.

A virtual environment names itself in its scripts, so it cannot be built elsewhere and renamed: it
is made in place, and ``venv/.complete`` is written last. An environment without that mark is half
made and is removed and made again; the wheels already unpacked are kept in ``Home.cache`` for that,
and removed when it is done. Files are hard-linked from there: one copy on disk, no copying.

Nothing can come from a network: ``uv`` gets no index, no proxy and no configuration, runs in a
network namespace that has no interface at all where the kernel allows one, and must find every
file's hash in ``wheelhouse/requirements.lock``, which the bundle's signature covers.

A wheelhouse may offer several environments, each with a ``requirements-<name>.lock``; the one for
this machine's Python, processor and accelerator is taken (:mod:`appliance.manifests.environment`
decides), or the one that ``SOVCTL_ENVIRONMENT`` names.

Bytecode is compiled here, once and on all cores, because processes in the seal write none: measured
on 124 wheels (457 MB) it costs 43 s of processor time and 380 MB, and saves each process 1.4 s at
``import torch`` alone (one round of ``tests/bench/install_runtime.py``), at every start.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import (
    DiskFull,
    EnvironmentUnfit,
    InterpreterMissing,
    RuntimeInstallFailed,
)
from appliance.i18n import _
from appliance.install.preflight import free_bytes
from appliance.manifests.bundle import BundleManifest, Platform
from appliance.manifests.environment import (
    Host,
    RuntimeEnvironment,
    choose,
    environments_of,
    names,
)
from appliance.store.blobs import sync_folder

if TYPE_CHECKING:
    from appliance.layout import Home
    from appliance.progress import Progress, Task
    from appliance.store.releases import Release

_MARK = ".complete"
_POLL_S = 0.2
_TAIL = 12


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A CPython outside any virtual environment. ``version`` is "3.11"."""

    path: Path
    version: str


def is_complete(release: Release) -> bool:
    """Whether the release's environment is whole and made from the wheels it has now."""
    try:
        marked = (release.venv / _MARK).read_text(encoding="ascii")
        locks = release.wheelhouse.glob("requirements*.lock")
        known = any(marked == _identity(lock) for lock in locks)
        return known and (release.venv / "bin" / "python").exists()
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class Pick:
    """The environment to install here, and the interpreter for it."""

    environment: RuntimeEnvironment
    interpreter: Interpreter


def pick(manifest: BundleManifest) -> Pick | None:
    """What of a bundle's environments is for this machine; None if no interpreter here fits.

    Raises :class:`EnvironmentUnfit` if ``SOVCTL_ENVIRONMENT`` names one that is not offered or
    cannot run here.
    """
    offered = environments_of(manifest)
    versions = {environment.platform.python for environment in offered}
    found = {version: python for version in versions if (python := find_interpreter(version))}
    environment = _chosen(offered, frozenset(found))
    return Pick(environment, found[environment.platform.python]) if environment else None


def has_cuda() -> bool:
    """Whether an NVIDIA driver is here: its control device, or its own program."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _chosen(
    offered: tuple[RuntimeEnvironment, ...], pythons: frozenset[str]
) -> RuntimeEnvironment | None:
    here = Platform.of_this_machine()
    wanted = os.environ.get("SOVCTL_ENVIRONMENT") or None
    chosen = choose(offered, Host(here.system, here.machine, pythons, has_cuda()), wanted)
    if chosen is None and wanted is not None:
        raise EnvironmentUnfit(name=wanted, offered=names(offered), actual=here)
    return chosen


def find_interpreter(version: str) -> Interpreter | None:
    """A CPython of ``version`` ("3.11"): the one ``sovctl`` runs on, or one on the path."""
    named = shutil.which(f"python{version}")
    candidates = [sys.executable, named, f"/usr/bin/python{version}", shutil.which("python3")]
    for candidate in candidates:
        if candidate and (found := _ask(Path(candidate))) and found.version == version:
            return found
    return None


def install_runtime(release: Release, python: Interpreter, home: Home, progress: Progress) -> None:
    """Make ``release.venv``; does nothing if it is complete.

    Raises :class:`RuntimeInstallFailed`, :class:`DiskFull`, :class:`InterpreterMissing` or
    :class:`EnvironmentUnfit`.
    """
    if is_complete(release):
        return
    manifest = release.manifest()
    environment = _chosen(environments_of(manifest), frozenset({python.version}))
    if environment is None:
        raise InterpreterMissing(python=manifest.platform.python)
    if release.venv.exists():
        progress.say(_("Removing a runtime that was not finished"))
        shutil.rmtree(release.venv)
    log = home.logs / "install.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    home.cache.mkdir(parents=True, exist_ok=True)
    wheels = (release.wheelhouse / environment.requirements).read_bytes().count(b"\n")
    with progress.task(_("Installing the runtime, offline"), 2 * wheels, "items") as task:
        _run(_venv_command(release, python), release, home, log, task)
        _run(_install_command(release, environment), release, home, log, task)
    _mark_complete(release, environment)
    shutil.rmtree(home.cache, ignore_errors=True)


def _venv_command(release: Release, python: Interpreter) -> list[str]:
    return [_uv(), "venv", "--no-project", "--python", str(python.path), str(release.venv)]


def _install_command(release: Release, environment: RuntimeEnvironment) -> list[str]:
    return [
        _uv(), "pip", "install",
        "--python", str(release.venv / "bin" / "python"),
        "--no-index", "--find-links", str(release.wheelhouse),
        "--no-deps", "--require-hashes", "--no-build", "--strict",
        "--link-mode", "hardlink", "--compile-bytecode",
        "--requirements", str(release.wheelhouse / environment.requirements),
    ]  # fmt: skip


def _uv() -> str:
    from uv import find_uv_bin

    return find_uv_bin()


def environment(home: Home) -> dict[str, str]:
    """All that ``uv`` sees of the environment: where to find programs, and no way out. Pure."""
    return {
        "PATH": os.defpath,
        "HOME": str(home.cache),
        "TMPDIR": str(home.cache),
        "LC_ALL": "C.UTF-8",
        "UV_CACHE_DIR": str(home.cache / "uv"),
        "UV_OFFLINE": "1",
        "UV_NO_CONFIG": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_PYTHON_PREFERENCE": "only-system",
    }


def _run(command: list[str], release: Release, home: Home, log: Path, task: Task) -> None:
    """Run one ``uv`` command in a namespace without network, telling ``task`` how far it is."""
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            [*_without_network(), *command],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=release.folder,
        )
        done = 0
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                done = _report(release, home, done, task)
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode == 0:
        return
    with log.open("rb") as written:
        written.seek(start)
        tail = written.read().decode(errors="replace").strip().splitlines()[-_TAIL:]
    text = " ".join(line.strip() for line in tail) or f"exit status {process.returncode}"
    if "No space left" in text or "os error 28" in text:
        raise DiskFull(
            path=release.folder,
            needed=_("more"),
            free=_("{n} bytes").format(n=free_bytes(release.folder)),
            reason=_("The disk filled up while the runtime was installed."),
        )
    raise RuntimeInstallFailed(release=release.id, reason=text, log=log)


def _report(release: Release, home: Home, before: int, task: Task) -> int:
    """Advance by the wheels unpacked and installed since ``before``; return how many in all."""
    unpacked = sum(1 for _path in (home.cache / "uv").glob("archive-v*/*"))
    installed = sum(1 for _path in release.venv.glob("lib/python3*/site-packages/*.dist-info"))
    if unpacked + installed > before:
        task.advance(unpacked + installed - before)
    return max(before, unpacked + installed)


def _without_network() -> list[str]:
    """A prefix that runs a command without any network, and ends it if we end (even by -9)."""
    unshare, setpriv = shutil.which("unshare"), shutil.which("setpriv")
    prefix = []
    if unshare and _can_unshare(unshare):
        prefix += [unshare, "--user", "--map-root-user", "--net", "--"]
    if setpriv:
        # After unshare: a change of credentials clears the parent-death signal.
        prefix += [setpriv, "--pdeathsig", "KILL", "--"]
    return prefix


def _can_unshare(unshare: str) -> bool:
    trial = [unshare, "--user", "--map-root-user", "--net", "--", "true"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


def _identity(lock: Path) -> str:
    """What an environment is made from: its lock's digest."""
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def _mark_complete(release: Release, environment: RuntimeEnvironment) -> None:
    # The packages' own files reach the disk before the mark that vouches for them.
    _sync_file_system(release.venv)
    fresh = release.venv / f"{_MARK}.new"
    with fresh.open("w", encoding="ascii") as file:
        file.write(_identity(release.wheelhouse / environment.requirements))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(release.venv / _MARK)
    sync_folder(release.venv)


def _sync_file_system(path: Path) -> None:
    subprocess.run(["sync", "--file-system", str(path)], check=False)


def _ask(candidate: Path) -> Interpreter | None:
    """What ``candidate`` says it is; None unless it is a CPython that starts."""
    if str(candidate) == sys.executable:
        base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Interpreter(base, version) if platform.python_implementation() == "CPython" else None
    question = (
        "import sys, json, platform; print(json.dumps([platform.python_implementation(), "
        "'%d.%d' % sys.version_info[:2], getattr(sys, '_base_executable', sys.executable)]))"
    )
    try:
        answer = subprocess.run(
            [candidate, "-I", "-c", question], capture_output=True, timeout=20, check=True
        )
        implementation, version, base_path = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return Interpreter(Path(base_path).resolve(), version) if implementation == "CPython" else None
