"""Run inside a seal by ``test_egress_seal.py``: try every way out we know of.

``python seal_attacks.py ORDERS`` with ``{"home", "sockets", "abstract", "outer_pid", "writes"}``;
leaves ``{attack: outcome}`` in ``HOME/run/attacks.json``, an outcome being the name of the kernel's
refusal or ``done``. Standard library only: it runs under the system's interpreter too.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"


def outcome(attack: Callable[[], object]) -> str:
    try:
        attack()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def call(number: int, *arguments: object) -> None:
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def family(number: int) -> Callable[[], object]:
    return lambda: socket.socket(number, socket.SOCK_STREAM).close()


def attacks(orders: dict[str, object]) -> dict[str, Callable[[], object]]:
    outer = int(str(orders["outer_pid"]))
    found: dict[str, Callable[[], object]] = {
        "tcp": lambda: socket.create_connection(("192.0.2.1", 80), 2),
        "tcp6": lambda: socket.create_connection(("2001:db8::1", 80), 2),
        "udp": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9)),
        "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "vsock": family(40),
        "packet": family(17),
        "alg": family(38),
        "bluetooth": family(31),
        "io_uring": lambda: call(425, 8, ctypes.create_string_buffer(256)),
        "request_key": lambda: call(249 if X86 else 218, b"dns_resolver", b"a.invalid", b"", -3),
        "user namespace": lambda: call(272 if X86 else 97, 0x10000000),
        "ptrace": lambda: call(101 if X86 else 117, 16, outer, 0, 0),
        "kill": lambda: os.kill(outer, 0),
        "remount": lambda: call(
            165 if X86 else 40, None, str(orders["home"] + "/store").encode(), None, 0x1020, None
        ),
        "replace folder": lambda: Path(f"{orders['home']}/tmp").rename(f"{orders['home']}/old"),
        "move": lambda: Path(f"{orders['home']}/store").rename(f"{orders['home']}/stolen"),
        "umount": lambda: call(166 if X86 else 39, b"/run", 2),
        "mount": lambda: call(165 if X86 else 40, b"none", b"/mnt", b"tmpfs", 0, None),
        "point current elsewhere": lambda: Path(f"{orders['home']}/current").symlink_to("/tmp"),
        "core pattern": lambda: write("/proc/sys/kernel/core_pattern"),
        "sysrq": lambda: write("/proc/sysrq-trigger"),
        "disk": lambda: os.open("/dev/vda", os.O_RDONLY),
        "hostname": lambda: socket.sethostname("x"),
        "abstract socket": lambda: unix("\0" + str(orders["abstract"])),
        "write home": lambda: write(str(orders["home"]) + "/run/written"),
        "write tmp": lambda: write("/tmp/written"),
        "write shm": lambda: write("/dev/shm/written"),
    }
    sockets, writes = orders["sockets"], orders["writes"]
    assert isinstance(sockets, list) and isinstance(writes, list)
    found |= {f"socket {path}": lambda path=path: unix(path) for path in sockets}
    found |= {f"write {path}": lambda path=path: write(path) for path in writes}
    return found


def descriptors() -> list[str]:
    """What was handed in: every open descriptor beyond the three standard ones."""
    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 4096)
    return [str(Path(f"/proc/self/fd/{n}").readlink()) for n in range(3, limit) if _is_open(n)]


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    orders = json.loads(sys.argv[1])
    report = {name: outcome(attack) for name, attack in attacks(orders).items()}
    seen = {
        "attacks": report,
        "descriptors": descriptors(),
        "pid": os.getpid(),
        "processes": sorted(int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()),
        "hidden": Path(orders["hidden"]).read_text(),
        "readable": Path(orders["home"], "secrets/kept").read_text(),
    }
    Path(orders["home"], "run/attacks.json").write_text(json.dumps(seen))
