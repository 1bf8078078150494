"""Real hosts on one machine: systemd, SSH, a kernel's network each; nothing leads out of the lab.

    with Lab.up(folder, hosts=3, internet=True) as lab:
        lab.host("n1").ssh("systemctl is-system-running")
        lab.controller.run(["sovctl", "plan", …])     # as from the operator's machine
        lab.cut(lab.host("n2"))                        # somebody trips over a cable

What one host is, and what can happen to it, is in :mod:`tests.lab.host`. A folder holds a lab, so
another process can take it down (``python -m tests.lab down``).

Nothing that the controller runs has CAP_SYS_TIME: time is one for the whole machine, and a test
must not set it.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from tests.lab import leftovers
from tests.lab import root as trees
from tests.lab.host import HOME, SHARED, Host
from tests.lab.network import CONTROLLER, FIRST_HOST, NETWORKS, Fabric, Internet

__all__ = ["HOME", "SHARED", "Controller", "Host", "Lab", "unfit"]

_NEEDED = (
    "systemd-nspawn", "debootstrap", "ip", "nft", "nsenter", "setpriv", "ssh", "ssh-keygen",
    "mkfs.ext4",
)  # fmt: skip


@cache
def unfit() -> str | None:
    """Why no lab can be made on this machine; None if one can."""
    if os.geteuid() != 0:
        return "a lab of real hosts needs root (namespaces, overlay mounts, systemd-nspawn)"
    missing = [name for name in _NEEDED if shutil.which(name, path=_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (.ci/setup dev installs them with apt)"
    trial = f"labtry{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        script = (
            f"ip netns add {trial} && ip netns delete {trial} && cd {shlex.quote(folder)}"
            " && mkdir lower upper work root && mount -t overlay"
            " -o lowerdir=lower,upperdir=upper,workdir=work overlay root && umount root"
        )
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"namespaces or overlay mounts cannot be made here: {done.stderr.strip()}"
    return None


class Controller:
    """The operator's machine: this one's files, in the lab's network and nowhere else."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def argv(self, command: Sequence[str | Path]) -> list[str]:
        """The command as it is run: in the controller's namespace, unable to set the clock."""
        inside = self._lab.fabric.entry("ctl")
        return [*inside, "setpriv", "--bounding-set=-sys_time", "--", *map(str, command)]

    def run(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float | None = 600,
        stdin: str | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; ``env`` is added to this process's own."""
        done = subprocess.run(
            self.argv(command), env={**os.environ, **(env or {})}, capture_output=True, text=True,
            check=False, timeout=timeout, input=stdin or "", cwd=cwd,
        )  # fmt: skip
        if check and done.returncode:
            said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            raise AssertionError(f"{shlex.join(map(str, command))}: {done.returncode}\n{said}")
        return done

    def popen(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start it in a session of its own, so that a test can kill all of it."""
        return subprocess.Popen(
            self.argv(command), env={**os.environ, **(env or {})}, start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **options},
        )  # fmt: skip


class Lab:
    """A lab in a folder. Make one with :meth:`up`, find one that is up with :meth:`at`."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder = folder
        self.id = str(record["id"])
        self.debian = str(record["debian"])
        self.has_internet = bool(record["internet"])
        self.shared = Path(record["shared"]) if record["shared"] else None
        self.disk = int(record["disk"])
        self.fabric = Fabric(self.id)
        self.internet = Internet(self.fabric)
        self.controller = Controller(self)
        self.hosts = tuple(
            Host(self, f"n{index + 1}", FIRST_HOST + index) for index in range(int(record["hosts"]))
        )
        self.processes: list[subprocess.Popen[bytes]] = []

    @classmethod
    @contextmanager
    def up(
        cls,
        folder: Path,
        hosts: int = 3,
        internet: bool = True,
        shared: Path | None = None,
        debian: str = "bookworm",
        disk: int = 0,
    ) -> Iterator[Lab]:
        """A lab for the length of a ``with`` block; nothing of it is left then but the folder's
        ``shared`` if that was outside. ``disk`` in bytes gives each host's installation a file
        system of its own."""
        lab = cls.make(folder, hosts, internet, shared, debian, disk)
        try:
            yield lab
        finally:
            lab.down()

    @classmethod
    def make(
        cls,
        folder: Path,
        hosts: int,
        internet: bool,
        shared: Path | None,
        debian: str,
        disk: int,
        *,
        kept: bool = False,
    ) -> Lab:
        """Make it and boot all its hosts; it stays up until :meth:`down`.

        ``kept``: also when this process ends. Otherwise the next lab sweeps it away then.
        """
        leftovers.sweep()
        tree = trees.root(debian)
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        record = {
            "id": f"lab{secrets.token_hex(2)}", "hosts": hosts, "internet": internet,
            "debian": debian, "shared": str(shared.resolve()) if shared else None, "disk": disk,
        }  # fmt: skip
        (folder / "lab.json").write_text(json.dumps(record, indent=1))
        lab = cls(folder, record)
        try:
            leftovers.Record.mine(lab.id, folder, kept=kept).write()
            lab._build(tree)
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def at(cls, folder: Path) -> Lab:
        """The lab in a folder. Raises ``FileNotFoundError``."""
        return cls(folder, json.loads((folder / "lab.json").read_text()))

    def _build(self, tree: Path) -> None:
        if self.shared is not None:
            self.shared.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", self.key], check=True
        )
        # Whoever makes a mount namespace while the lab is up gets copies of its mounts. Below a
        # shared mount those go when ours go; elsewhere they would keep a host's disk in use.
        hosts = self.folder / "hosts"
        hosts.mkdir()
        subprocess.run(["mount", "--bind", hosts, hosts], check=True)
        subprocess.run(["mount", "--make-shared", hosts], check=True)
        self.fabric.make()
        self.fabric.join("ctl", CONTROLLER, ("admin",))
        if self.has_internet:
            self.processes.append(self.internet.open())
        for host in self.hosts:
            self.fabric.join(host.name, host.number)
            host.make(tree)
        self.write_known_hosts()
        with ThreadPoolExecutor(len(self.hosts) or 1) as pool:
            list(pool.map(Host.start, self.hosts))

    def write_known_hosts(self) -> None:
        """For the lab's own SSH; what is tested keeps a file of its own."""
        lines = [f"{host.admin} {host.public_key}\n" for host in self.hosts]
        self.known_hosts.write_text("".join(lines))

    @cached_property
    def key(self) -> Path:
        """The private SSH key of root, ops and guest on every host."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def host(self, name: str) -> Host:
        """Raises ``KeyError``."""
        found = {host.name: host for host in self.hosts}
        return found[name]

    def cut(self, host: Host, network: str | None = None) -> None:
        """Pull its cable out of one network, or of all."""
        for each in (network,) if network else NETWORKS:
            self.fabric.link(host.name, each, "down")

    def mend(self, host: Host, network: str | None = None) -> None:
        """Put it back."""
        for each in (network,) if network else NETWORKS:
            self.fabric.link(host.name, each, "up")

    def reap(self) -> None:
        """Collect those of our children that ended."""
        self.processes = [process for process in self.processes if process.poll() is None]

    def down(self) -> None:
        """End everything of it and remove it, whoever made it. Safe to repeat."""
        leftovers.end(self.id, self.folder)
        self.reap()
        shutil.rmtree(self.folder / "hosts", ignore_errors=True)
        for name in ("id_ed25519", "id_ed25519.pub", "known_hosts", "lab.json"):
            (self.folder / name).unlink(missing_ok=True)


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
