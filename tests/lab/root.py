"""The file tree that every host of the lab starts from: a minimal Debian with systemd and SSH.

``debootstrap`` makes it once, from the mirror the machine's own apt names, in
``$XDG_CACHE_HOME/sovctl-tests`` (``~/.cache`` by default); hosts are overlays on it. The folder's
name holds a digest of what went in, so a changed list of packages makes a new one.

    python -m tests.lab.root [bookworm|trixie]
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt", "nftables",
    "iproute2", "iputils-ping", "sudo", "ca-certificates", "procps", "kmod", "libfaketime",
)  # fmt: skip
_VERSION = "2"

# Units that make no sense in a container, or wait for a console that nobody sits at.
_MASKED = (
    "systemd-networkd-wait-online.service", "systemd-timesyncd.service", "console-getty.service",
    "systemd-resolved.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer",
    "systemd-firstboot.service", "systemd-remount-fs.service", "fstrim.timer",
    "dpkg-db-backup.timer",
)  # fmt: skip

# nspawn leaves a host that has a network of its own with /proc/sys/net read-only, and with shared
# memory by the size of this machine. The rest of /proc/sys stays read-only: it is this machine's.
_LIKE_A_MACHINE = """[Unit]
Description=Undo what tells a container from a machine
DefaultDependencies=no
Before=systemd-sysctl.service network-pre.target sysinit.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=-/bin/umount -q /proc/sys/net
ExecStart=/bin/mount --bind /proc/sys/net /proc/sys/net
ExecStart=/bin/mount -o remount,bind,rw /proc/sys/net
ExecStart=/bin/mount -o remount,size=2560M /dev/shm
[Install]
WantedBy=sysinit.target
"""


def root(debian: str = "bookworm") -> Path:
    """The tree for a Debian release, made if it is not there. Raises ``RuntimeError`` with why."""
    final = cache() / f"lab-{debian}-{_digest()}"
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with _alone(final.parent / f"lab-{debian}.lock"):
        if not final.is_dir():
            halfway = final.with_name(f"{final.name}.new")
            _remove(halfway)
            _make(halfway, debian)
            halfway.rename(final)
    return final


def cache() -> Path:
    """Where trees are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sovctl-tests"


def _digest() -> str:
    text = "\n".join((_VERSION, *PACKAGES, *_MASKED, _LIKE_A_MACHINE))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _make(folder: Path, debian: str) -> None:
    if shutil.which("debootstrap") is None:
        raise RuntimeError("debootstrap is not installed: apt-get install debootstrap")
    print(f"making the lab's Debian ({debian}); once, about two minutes …", file=sys.stderr)
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", debian, folder,
         _mirror()],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        _remove(folder)
        raise RuntimeError(f"debootstrap could not fetch {debian}: {done.stdout[-300:]}")
    _settle(folder)


def _remove(halfway: Path) -> None:
    """Delete a tree whose making was cut short, but nothing through what is mounted in it."""
    for name in ("proc", "sys"):
        if (halfway / name).is_mount():
            subprocess.run(["umount", "-R", halfway / name], check=True)
    shutil.rmtree(halfway, ignore_errors=True)


def _settle(folder: Path) -> None:
    units = folder / "etc/systemd/system"
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "lab-like-a-machine.service").write_text(_LIKE_A_MACHINE)
    wants = units / "sysinit.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "lab-like-a-machine.service").symlink_to("../lab-like-a-machine.service")
    for key in (folder / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    for package in (folder / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    # Every host gets its own; an empty file makes systemd take the one that nspawn gives.
    (folder / "etc/machine-id").write_text("")
    (folder / "etc/sudoers.d/lab").write_text("ops ALL=(ALL) NOPASSWD: ALL\n")
    (folder / "etc/sudoers.d/lab").chmod(0o440)
    for user in ("ops", "guest"):
        subprocess.run(
            ["chroot", folder, "useradd", "--create-home", "--shell", "/bin/bash", user], check=True
        )
    # Nothing outside answers a host; its own sources would only make apt wait.
    (folder / "etc/resolv.conf").write_text("nameserver 198.51.100.53\n")


def _mirror() -> str:
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text() for path in sources if path.is_file())
    named = re.findall(r"https?://\S+/debian(?=/?\s)", text)
    return named[0] if named else "http://deb.debian.org/debian"


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(root(*sys.argv[1:2]))
