"""Is this machine fit for this bundle: findings, each pass, warn or fail, with its remedy.

:func:`judge` decides from :class:`Machine` (what is) and :class:`Needs` (what must be) and touches
nothing; :func:`look` reads the machine. Space is counted per file system, in whole blocks, because
folders of one installation may lie on different disks.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from appliance.egress.seal import check_supported
from appliance.errors import ApplianceError
from appliance.i18n import _
from appliance.manifests.bundle import Platform
from appliance.store.space import Files, FileSystem, predict
from appliance.store.space import look as look_at

if TYPE_CHECKING:
    from collections.abc import Iterable

Level = Literal["pass", "warn", "fail"]

_MIN_MEMORY = 3 << 30  # Ray's idle head takes 1.8 GB; a small model and its cache the rest
_GOOD_MEMORY = 6 << 30
_CLOCK_SLACK_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's answer. ``remedy`` is a sentence with a command; empty when it passed."""

    check: str
    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a bundle and the operator ask of the machine. ``port`` None: any free one will do."""

    platform: Platform
    created: datetime
    space: tuple[Files, ...]
    port: int | None
    seal_wanted: bool
    may_start: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found. Memory in bytes; ``seal_error`` is None where the seal works;
    ``file_systems`` has one entry for each path of :attr:`Needs.space`, in its order."""

    platform: Platform
    python: Path | None
    memory: int
    cores: int
    cpu_flags: frozenset[str]
    seal_error: ApplianceError | None
    port_free: bool
    now: datetime
    file_systems: tuple[FileSystem, ...]


def judge(needs: Needs, machine: Machine) -> tuple[Finding, ...]:
    """Every check, in the order they matter. Pure."""
    return (
        _judge_platform(needs, machine),
        _judge_interpreter(needs, machine),
        _judge_seal(needs, machine),
        *_judge_space(needs, machine),
        _judge_memory(machine),
        _judge_cpu(machine),
        _judge_port(needs, machine),
        _judge_clock(needs, machine),
    )


def _judge_platform(needs: Needs, machine: Machine) -> Finding:
    wanted, actual = needs.platform, machine.platform
    if (wanted.system, wanted.machine) != (actual.system, actual.machine):
        text = _("the bundle is for {wanted}; this is {actual}").format(
            wanted=f"{wanted.system} {wanted.machine}", actual=f"{actual.system} {actual.machine}"
        )
        return Finding("platform", "fail", text, _("Ask your supplier for a bundle for this one."))
    return Finding("platform", "pass", f"{wanted.system} {wanted.machine}")


def _judge_interpreter(needs: Needs, machine: Machine) -> Finding:
    if machine.python is None:
        version = needs.platform.python
        return Finding(
            "interpreter",
            "fail",
            _("no Python {version} was found").format(version=version),
            _("Install it: 'apt-get install python{v}'").format(v=version),
        )
    return Finding("interpreter", "pass", f"Python {needs.platform.python} ({machine.python})")


def _judge_seal(needs: Needs, machine: Machine) -> Finding:
    if not needs.seal_wanted:
        return Finding(
            "seal",
            "warn",
            _("--unsealed: the appliance will be able to reach the network"),
            _("Leave --unsealed out wherever the kernel allows the seal."),
        )
    if machine.seal_error is None:
        return Finding("seal", "pass", _("user and network namespaces work"))
    _what, why, fix = machine.seal_error.sentences()
    return Finding("seal", "fail", why, fix)


def _judge_space(needs: Needs, machine: Machine) -> Iterable[Finding]:
    for room in predict(list(zip(needs.space, machine.file_systems, strict=True))):
        if room.fits:
            yield Finding("disk", "pass", str(room))
        else:
            remedy = _("Free {count} bytes there, or set SOVCTL_HOME to a larger disk.")
            lacking = max(room.needed - room.system.free, 0)
            yield Finding("disk", "fail", str(room), remedy.format(count=lacking))


def _judge_memory(machine: Machine) -> Finding:
    text = _("{size:.1f} GiB of memory").format(size=machine.memory / 2**30)
    if machine.memory < _MIN_MEMORY:
        return Finding("memory", "fail", text, _("Give this machine at least 3 GiB of memory."))
    if machine.memory < _GOOD_MEMORY:
        return Finding("memory", "warn", text, _("Tuning wants 6 GiB; serving will do with this."))
    return Finding("memory", "pass", text)


def _judge_cpu(machine: Machine) -> Finding:
    text = _("{cores} cores").format(cores=machine.cores)
    if machine.platform.machine == "x86_64" and "avx2" not in machine.cpu_flags:
        return Finding(
            "cpu", "warn", _("{text}, without AVX2").format(text=text),
            _("Models will be slow here; use a processor made after 2015."),
        )  # fmt: skip
    return Finding("cpu", "pass", text)


def _judge_port(needs: Needs, machine: Machine) -> Finding:
    if not needs.may_start or needs.port is None:
        return Finding("port", "pass", _("a free one will be taken"))
    if machine.port_free:
        return Finding("port", "pass", f"127.0.0.1:{needs.port}")
    return Finding(
        "port",
        "fail",
        _("port {port} is in use by another program").format(port=needs.port),
        _("Give another one with --port, or leave --port out."),
    )


def _judge_clock(needs: Needs, machine: Machine) -> Finding:
    behind = (needs.created - machine.now).total_seconds()
    if behind > _CLOCK_SLACK_S:
        text = _("this machine's clock ({now}) is before the bundle was made ({made})").format(
            now=f"{machine.now:%Y-%m-%d}", made=f"{needs.created:%Y-%m-%d}"
        )
        remedy = _("Set the clock ('date -u -s …'); signatures are judged by it.")
        return Finding("clock", "fail", text, remedy)
    return Finding("clock", "pass", f"{machine.now:%Y-%m-%d %H:%M} UTC")


# --- reading the machine --------------------------------------------------------------------------


def look(needs: Needs, python: Path | None) -> Machine:
    """Read what :func:`judge` needs. ``python`` is the interpreter that was found, if any."""
    return Machine(
        platform=Platform.of_this_machine(),
        python=python,
        memory=_memory(),
        cores=len(os.sched_getaffinity(0)),
        cpu_flags=_cpu_flags(),
        seal_error=_seal_error() if needs.seal_wanted else None,
        port_free=needs.port is None or is_port_free(needs.port),
        now=datetime.now(UTC),
        file_systems=tuple(look_at(files.folder) for files in needs.space),
    )


def is_port_free(port: int) -> bool:
    """Whether 127.0.0.1:``port`` can be listened on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def next_free_port(start: int, attempts: int = 100) -> int | None:
    """The first free port from ``start`` on, or None after ``attempts``."""
    candidates = range(start, min(start + attempts, 65536))
    return next((port for port in candidates if is_port_free(port)), None)


def _seal_error() -> ApplianceError | None:
    try:
        check_supported()
    except ApplianceError as error:
        return error
    return None


def _memory() -> int:
    """Bytes this process may use: the machine's, or the control group's if that is less."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return installed
    return min(installed, int(limit)) if limit.isdigit() else installed


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def free_bytes(path: Path) -> int:
    """Bytes an ordinary user may still write below ``path``."""
    return look_at(path).free
