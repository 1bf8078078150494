"""How the machine's cores and memory are shared out. :func:`share_out` is pure.

>>> share_out(Machine(cores=2, memory=24 << 30)).ray_cpus
2
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MIB, _GIB = 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Machine:
    """Cores this process may use, and bytes of memory it may use."""

    cores: int
    memory: int


@dataclass(frozen=True, slots=True)
class Shares:
    """``ray_cpus`` are Ray's scheduling slots; threads are OpenMP threads; the rest is bytes."""

    ray_cpus: int
    replica_cpus: int
    replica_threads: int
    tuning_cpus: int
    tuning_threads: int
    object_store: int
    ray_memory: int
    shared_memory: int


def share_out(machine: Machine) -> Shares:
    """Share out ``machine`` so that a serving replica and a tuning worker always both fit.

    Ray's slots of the two never exceed the cores. Tuning gets a thread for every core all the same,
    because a replica is idle most of the time; the tuning worker gives way to it
    (``appliance.tuning.loop`` runs at niceness 10). With one core Ray is told of two slots.
    """
    slots = max(2, machine.cores)
    replica = max(1, slots // 2)
    tuning = slots - replica
    # Ray refuses less than 75 MiB. Little goes through it here: weights are read from files.
    object_store = min(max(machine.memory // 10, 96 * _MIB), 8 * _GIB)
    reserve = min(2 * _GIB, machine.memory // 4)  # Ray's own processes and the gateway
    return Shares(
        ray_cpus=slots,
        replica_cpus=replica,
        replica_threads=min(replica, machine.cores),
        tuning_cpus=tuning,
        tuning_threads=machine.cores,
        object_store=object_store,
        ray_memory=max(machine.memory - object_store - reserve, 512 * _MIB),
        shared_memory=object_store + max(256 * _MIB, object_store // 4),
    )


def measure() -> Machine:
    """This machine, or the smaller limit that a container or service sets on this process."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0))
    group = Path("/sys/fs/cgroup")
    limit = _first_number(group / "memory.max")
    if limit is not None:
        memory = min(memory, limit)
    quota = _read(group / "cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = max(1, min(cores, int(quota[0]) // int(quota[1])))
    return Machine(cores=cores, memory=memory)


def fitting(object_store: int, shared_memory: Path) -> int:
    """``object_store``, or as much of it as there is room for: Ray uses the disk beyond that."""
    state = os.statvfs(shared_memory)
    return max(96 * _MIB, min(object_store, state.f_bavail * state.f_frsize * 9 // 10))


def _first_number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
