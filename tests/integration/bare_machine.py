"""A Debian with ``python3`` and nothing else, without a network, for one test at a time.

``debootstrap`` makes it once, from the mirror the machine's own apt sources name; the tarball is
kept in ``~/.cache/sovctl-tests``. A command runs in namespaces of its own with that file tree as
its root (``pivot_root``, as in a container: below ``chroot`` the kernel makes no user namespaces,
and the seal is one), as an ordinary user, with no network interface but a dead ``lo``.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_RELEASE = "bookworm"
_UID = "1000"

# The old root ends up under the new one and is let go of; nothing of it is left to see.
_ENTER = """
set -e
mount --make-rprivate /
mount --bind {root} {root}
cd {root}
mount --rbind /dev dev
mount -t proc proc proc
pivot_root . mnt
exec {python} -c '
import os, subprocess, sys
subprocess.run(["umount", "-l", "/mnt"], check=True)
os.setgroups([]); os.setgid({uid}); os.setuid({uid}); os.chdir("/home/operator")
os.execve(sys.argv[1], sys.argv[1:], dict(
    HOME="/home/operator", PATH="/usr/bin:/bin", LANG="C.UTF-8", USER="operator"))
' {command}
"""


@dataclass(frozen=True)
class BareMachine:
    """The file tree below ``root``; its ordinary user's home folder is ``home``."""

    root: Path

    @property
    def home(self) -> Path:
        return self.root / "home" / "operator"

    @classmethod
    def at(cls, folder: Path) -> BareMachine:
        """Unpack one into ``folder``; skips the test where that cannot be."""
        if os.geteuid() != 0:
            pytest.skip("needs root, for a file tree and namespaces of its own")
        root = folder / "root"
        root.mkdir()
        subprocess.run(["tar", "-xf", _tarball(), "-C", root], check=True)
        machine = cls(root)
        with (root / "etc/passwd").open("a") as users:
            users.write(f"operator:x:{_UID}:{_UID}::/home/operator:/bin/sh\n")
        machine.home.mkdir(parents=True)
        machine.give(machine.home)
        trial = machine.run("true")
        if trial.returncode:
            pytest.skip(f"namespaces cannot be made here: {trial.stderr.strip()}")
        return machine

    def give(self, path: Path) -> None:
        """Make it the ordinary user's."""
        os.chown(path, int(_UID), int(_UID))

    def bring(self, path: Path, name: str) -> None:
        """Carry a file into the user's home folder, as from a stick."""
        shutil.copyfile(path, self.home / name)
        self.give(self.home / name)

    def run(self, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command in there; ``settings`` are added to its environment."""
        words = ["/usr/bin/env", *(f"{k}={v}" for k, v in settings.items()), *command]
        script = _ENTER.format(
            root=shlex.quote(str(self.root)), python="/usr/bin/python3", uid=_UID,
            command=shlex.join(words),
        )  # fmt: skip
        return subprocess.run(
            ["unshare", "--net", "--mount", "--pid", "--ipc", "--fork", "sh", "-c", script],
            capture_output=True, text=True, check=False, timeout=300,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip


def _tarball() -> Path:
    cache = Path.home() / ".cache" / "sovctl-tests"
    final = cache / f"{_RELEASE}-python3.tar"
    if final.exists():
        return final
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed")
    folder = cache / f"{_RELEASE}-python3.{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=python3", _RELEASE, folder, _mirror()],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"debootstrap could not fetch it: {done.stdout[-200:]}")
        fresh = final.with_suffix(f".tar.{os.getpid()}")  # not the folder's own name
        subprocess.run(["tar", "-C", folder, "--exclude=./dev/*", "-cf", fresh, "."], check=True)
        fresh.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return final


def _mirror() -> str:
    """The Debian mirror this machine's apt is set to."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text() for path in sources if path.is_file())
    named = re.findall(r"https?://\S+/debian(?=/?\s)", text)
    return named[0] if named else "http://deb.debian.org/debian"
