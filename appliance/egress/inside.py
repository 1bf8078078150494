"""The first program in the seal: shut what a network namespace leaves open, then run the rest.

``python -m appliance.egress.inside SPEC`` (:meth:`appliance.egress.seal.SealSpec.as_json`) starts
as process 1 of fresh namespaces with every capability in them and none outside, and

1. brings the loopback interface up;
2. hides the machine's folders. A Unix socket with a *path* is found through the file system, so a
   network namespace does not close ``/run/docker.sock`` or D-Bus, and a read-only mount does not
   either. Every top-level folder but ``/usr``, ``/etc`` and their like becomes an empty one; the
   installation and the interpreter come back at their own paths, so a path means the same inside
   and outside wherever the installation lies, ``/tmp``, ``/run`` and a home folder included;
3. makes its own ``/dev`` (root's disk nodes open by owner, without any capability), ``/dev/shm``,
   ``/sys``, and everything read-only but the installation. ``/proc/sys`` too: without that, the
   user who is root outside could write ``kernel.core_pattern``, which runs programs outside;
4. closes inherited descriptors, drops all capabilities, installs the system call filter;
5. writes what it did to ``run/seal.json``, and becomes the supervisor.

Any step that fails ends the start: there is no half seal. Standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from appliance.egress import live, privileges, syscalls
from appliance.egress.syscalls import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

_KEPT = frozenset({"usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc"})
_REBUILT = frozenset({"proc", "sys", "dev", "tmp"})
_PLAIN_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_ACCELERATORS = ("nvidia*", "nvidia-caps/*", "dri/*", "kfd")
# what runc and podman hold read-only or hide in /proc, for the same reasons
_PROC_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs")
# readable by the user who is root outside, and of no use in here
_SYSTEM_SECRETS = (
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/wireguard",
    "/etc/NetworkManager/system-connections",
)
_PROC_HIDDEN = ("kcore", "keys", "timer_list", "sched_debug", "latency_stats")


@dataclass(frozen=True, slots=True)
class Orders:
    """:class:`appliance.egress.seal.SealSpec` as it arrives."""

    home: str
    visible: list[str]
    hidden: list[str]
    protected: list[str]
    shm_bytes: int
    argv: list[str]


@dataclass(slots=True)
class FileSystem:
    """What was done to the mounts: a part of the evidence."""

    hidden_folders: list[str] = field(default_factory=list)
    hidden_files: list[str] = field(default_factory=list)
    visible: list[str] = field(default_factory=list)
    writable: list[str] = field(default_factory=list)
    protected: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    sysfs: str = ""
    read_only_by: str = ""
    not_read_only: list[str] = field(default_factory=list)


def main(arguments: list[str]) -> None:
    """Carry out the orders and exec; returns only by raising."""
    orders = Orders(**json.loads(arguments[0]))
    raise_loopback()
    mounts = shut_file_system(orders)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(orders.home)
    os.umask(0o077)
    privileges.drop()
    # Dropping privileges may clear the death signal that unshare asked for; no parent in here.
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    write_evidence(Path(orders.home) / "run" / "seal.json", mounts)
    os.execv(orders.argv[0], orders.argv)  # noqa: S606 - this is the point


def raise_loopback() -> None:
    """Set IFF_UP on ``lo``, which gives it 127.0.0.1/8 and ::1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0x1)
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def shut_file_system(orders: Orders) -> FileSystem:
    """Steps 2 and 3 of the module's list."""
    done = FileSystem()
    home = Path(orders.home)
    syscalls.mount("", Path("/"), "", MS_REC | MS_PRIVATE)
    # Held open across the hiding: a magic link in /proc/self/fd leads to a covered folder.
    kept = {path: _hold(path) for path in (home, *map(Path, orders.visible))}
    private_tmp = _hold(home / "tmp")
    devices = {path: _hold(path) for path in _devices()}
    cgroup = _hold(Path("/sys/fs/cgroup")) if Path("/sys/fs/cgroup").is_dir() else None

    for folder in sorted(Path("/").iterdir()):
        if folder.is_symlink() or not folder.is_dir() or folder.name in _KEPT | _REBUILT:
            continue
        _empty(folder, "size=1m,mode=0755")
        done.hidden_folders.append(str(folder))
    syscalls.bind(private_tmp, Path("/tmp"))  # noqa: S108 - the private one
    done.hidden_folders.append("/tmp")  # noqa: S108
    if "/var" in done.hidden_folders:
        Path("/var/tmp").symlink_to("/tmp")  # noqa: S108

    _bring_back(kept, home, done)
    _own_dev(devices, orders.shm_bytes)
    done.devices = sorted(str(path) for path in devices)
    done.sysfs = _own_sys(cgroup)
    _pin(home)
    _hide(done, (*orders.hidden, *_SYSTEM_SECRETS))
    done.protected = [name for name in orders.protected if Path(name).is_dir()]
    _guard_proc()
    folders = (str(path) for path in sorted(home.iterdir()) if path.is_dir())
    own = [path for path in folders if path not in done.protected and not Path(path).is_symlink()]
    done.writable = [*own, "/tmp", "/dev/shm"]  # noqa: S108
    _make_read_only(home, done)
    return done


def _hold(path: Path) -> str:
    """Open ``path`` without reading it; the result names it whatever is mounted over it."""
    return f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_CLOEXEC)}"


def _empty(folder: Path, options: str) -> None:
    syscalls.mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, options)


def _bring_back(kept: dict[Path, str], home: Path, done: FileSystem) -> None:
    """Bind every held folder at its own path, parents first, and under its real name too."""
    bound: list[Path] = []
    for path in sorted(kept, key=lambda each: len(each.parts)):
        for place in dict.fromkeys((Path(os.path.realpath(kept[path])), path)):
            covered = any(place.is_relative_to(parent) for parent in bound)
            system = place.parts[1] in _KEPT
            if path != home and (covered or system):
                continue
            place.mkdir(parents=True, exist_ok=True)
            syscalls.bind(kept[path], place)
            bound.append(place)
    done.visible = [str(place) for place in bound]


def _devices() -> list[Path]:
    dev = Path("/dev")
    plain = [dev / name for name in _PLAIN_DEVICES]
    accelerators = [path for pattern in _ACCELERATORS for path in dev.glob(pattern)]
    return [path for path in plain + accelerators if path.is_char_device()]


def _own_dev(devices: dict[Path, str], shm_bytes: int) -> None:
    dev = Path("/dev")
    _empty(dev, "size=1m,mode=0755")
    for path, held in devices.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        syscalls.bind(held, path)
    for name in ("pts", "shm"):
        (dev / name).mkdir()
    options = "newinstance,ptmxmode=0666,mode=0620"
    syscalls.mount("devpts", dev / "pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    _empty(dev / "shm", f"size={shm_bytes},mode=1777")
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd"}
    links |= {name: f"/proc/self/fd/{n}" for n, name in enumerate(("stdin", "stdout", "stderr"))}
    for name, target in links.items():
        (dev / name).symlink_to(target)


def _own_sys(cgroup: str | None) -> str:
    """A sysfs that shows this network namespace; a container may forbid mounting it."""
    try:
        syscalls.mount("sysfs", Path("/sys"), "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except PermissionError:
        return "the machine's, read-only (the kernel refused a new one)"
    if cgroup is not None:
        syscalls.bind(cgroup, Path("/sys/fs/cgroup"))  # memory and CPU limits are read there
    return "own"


def _pin(home: Path) -> None:
    """Make every folder of the installation a mount of its own.

    A mount point cannot be renamed or removed from inside, so no job can put a link in the place of
    ``tmp`` or ``logs`` for a program *outside* to follow; and each can be read-only or not, while
    ``home`` itself is: nothing inside can point ``current`` elsewhere.
    """
    for folder in home.iterdir():
        if folder.is_dir() and not folder.is_symlink():
            syscalls.bind(str(folder), folder)


def _hide(done: FileSystem, names: Iterable[str]) -> None:
    """Files read as empty, folders are empty; what is not there needs no hiding."""
    for path in map(Path, names):
        if path.is_dir():
            _empty(path, "size=64k,mode=0755")
        elif path.exists():
            syscalls.bind("/dev/null", path)
        else:
            continue
        done.hidden_files.append(str(path))


def _guard_proc() -> None:
    proc = Path("/proc")
    for name in _PROC_READ_ONLY:
        if (proc / name).exists():
            syscalls.bind(str(proc / name), proc / name)
    for name in _PROC_HIDDEN:
        if (proc / name).exists():
            syscalls.bind("/dev/null", proc / name)


def _make_read_only(home: Path, done: FileSystem) -> None:
    """Everything read-only but the few writable places; the innermost rule for a mount holds."""
    writable = [Path("/dev/pts"), Path("/proc"), *map(Path, done.writable)]
    # What was brought back under the private /tmp stays the machine's own.
    guarded = [home, *map(Path, done.visible), *(Path("/proc") / name for name in _PROC_READ_ONLY)]
    guarded += [Path(name) for name in done.protected]
    rules = {Path("/"): True} | dict.fromkeys(writable, False) | dict.fromkeys(guarded, True)
    # Parents first: the installation may lie under /tmp, and its folders lie under it.
    ordered = sorted(rules.items(), key=lambda rule: len(rule[0].parts))
    try:
        for place, read_only in ordered:
            if not place.exists():
                continue
            if read_only:
                attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID
                syscalls.set_mount_attributes(place, add=attributes)
            else:
                syscalls.set_mount_attributes(place, clear=syscalls.MOUNT_ATTR_RDONLY)
        done.read_only_by = "mount_setattr"
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        done.read_only_by = "remounts (this kernel is older than 5.12)"
        done.not_read_only = _remount_each(ordered)
    _check_writable(done)


def _remount_each(rules: list[tuple[Path, bool]]) -> list[str]:
    """Linux before 5.12: one remount each. Returns the mounts the kernel would not change."""
    refused = []
    for mount in live.mounts():
        holding = [read_only for place, read_only in rules if mount.target.is_relative_to(place)]
        if not holding[-1]:
            continue
        flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | MS_RDONLY | MS_NOSUID
        flags |= MS_NODEV if "nodev" in mount.options else 0
        flags |= MS_NOEXEC if "noexec" in mount.options else 0
        try:
            syscalls.mount("", mount.target, "", flags)
        except OSError:
            refused.append(str(mount.target))
    return refused


def _check_writable(done: FileSystem) -> None:
    """A seal in which nothing can be written would start and then fail obscurely."""
    for place in done.writable:
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, "mounted read-only outside the seal", place)


def write_evidence(path: Path, mounts: FileSystem) -> None:
    """Write ``run/seal.json`` from what the kernel says of this process now."""
    evidence = {
        "sealed": True,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "allowed_families": sorted(privileges.ALLOWED_FAMILIES),
        "file_system": asdict(mounts),
        **asdict(live.observe("self")),
    }
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(evidence, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
