"""Give up every capability, and refuse the system calls that reach round a network namespace.

A network namespace covers the address families that know about namespaces. What it leaves open:

* ``AF_VSOCK`` reaches the hypervisor and is not namespaced; other rare families are attack surface.
* ``io_uring`` opens sockets without a ``socket`` system call, behind the back of a filter.
* ``request_key`` makes the kernel start a program *outside* every namespace, which for a key of
  type ``dns_resolver`` asks the outer DNS.
* A new user namespace would give all capabilities back.

:func:`build_filter` is pure; :func:`drop` applies it. Standard library only.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass
from pathlib import Path

from appliance.egress import syscalls

# linux/socket.h
ALLOWED_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
_CLONE_NEWUSER = 0x10000000
# SECBIT_NOROOT, _NO_SETUID_FIXUP and _NO_CAP_AMBIENT_RAISE set, all four locked: uid 0 is nobody
_SECUREBITS = 0b11101111

# seccomp(2) answers
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
# offsets in struct seccomp_data; both architectures are little-endian, so this is the low word
_NR, _ARCH, _ARG0 = 0, 4, 16
# classic BPF
_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


@dataclass(frozen=True, slots=True)
class Architecture:
    """Audit number and system call numbers of one architecture."""

    audit: int
    socket: int
    socketpair: int
    clone: int
    unshare: int
    refused: tuple[int, ...]  # EPERM
    absent: tuple[int, ...]  # ENOSYS, so that libraries fall back
    first_foreign: int | None  # numbers from here on belong to another ABI


ARCHITECTURES = {
    "x86_64": Architecture(
        audit=0xC000003E,
        socket=41,
        socketpair=53,
        clone=56,
        unshare=272,
        # setns, add_key, request_key, keyctl, bpf, userfaultfd, perf_event_open, ptrace,
        # open_by_handle_at
        refused=(308, 248, 249, 250, 321, 323, 298, 101, 304),
        absent=(425, 426, 427, 435),  # io_uring_setup, _enter, _register, clone3
        first_foreign=0x40000000,  # x32
    ),
    "aarch64": Architecture(
        audit=0xC00000B7,
        socket=198,
        socketpair=199,
        clone=220,
        unshare=97,
        refused=(268, 217, 218, 219, 280, 282, 241, 117, 265),
        absent=(425, 426, 427, 435),
        first_foreign=None,
    ),
}


def _refuse(number: int) -> int:
    return 0x00050000 | number  # SECCOMP_RET_ERRNO


def build_filter(architecture: Architecture) -> bytes:
    """The BPF program, 8 bytes an instruction. Anything of another architecture kills the process.

    Each rule is a short block that either returns or falls through to the next, so no jump crosses
    more than its own block and the 8-bit jump offsets cannot overflow.
    """
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, architecture.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
    ]
    if architecture.first_foreign is not None:
        code += [
            (_GREATER_EQUAL, 0, 1, architecture.first_foreign),
            (_RETURN, 0, 0, _refuse(errno.ENOSYS)),
        ]
    for number in architecture.absent:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _refuse(errno.ENOSYS))]
    for number in architecture.refused:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _refuse(errno.EPERM))]
    for number in (architecture.clone, architecture.unshare):
        code += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, _ARG0),
            (_ANY_BIT, 0, 1, _CLONE_NEWUSER),
            (_RETURN, 0, 0, _refuse(errno.EPERM)),
            (_LOAD, 0, 0, _NR),
        ]
    families = tuple(ALLOWED_FAMILIES.values())
    for number in (architecture.socket, architecture.socketpair):
        code += [(_EQUAL, 0, len(families) + 3, number), (_LOAD, 0, 0, _ARG0)]
        code += [
            (_EQUAL, len(families) - index, 0, family) for index, family in enumerate(families)
        ]
        code += [
            (_RETURN, 0, 0, _refuse(errno.EAFNOSUPPORT)),
            (_LOAD, 0, 0, _NR),
        ]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def drop() -> None:
    """Give up all capabilities for good, then install the filter.

    Raises :class:`OSError` where the kernel refuses and :class:`KeyError` on an architecture
    without a filter: what cannot be shut is not run.
    """
    architecture = ARCHITECTURES[platform.machine()]
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text(encoding="ascii"))
    for capability in range(last + 1):
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    syscalls.prctl(syscalls.PR_SET_SECUREBITS, _SECUREBITS)
    syscalls.clear_capabilities()
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.install_filter(build_filter(architecture))
