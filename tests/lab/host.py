"""One host of a lab: how it is made, booted and reached, and what can go wrong with it.

It is an overlay on one Debian tree (:mod:`tests.lab.root`) which systemd-nspawn boots in a network
namespace of its own. It has no CAP_SYS_TIME: time is one for the whole machine, and a test must not
set it. ``skew_clock`` tells its SSH sessions another time instead.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import cgroups, leftovers
from tests.lab.network import address, address_v6

if TYPE_CHECKING:
    from tests.lab.lab import Lab

HOME = "/var/lib/sovctl"
SHARED = "/srv/shared"
_BOOT_S = 120.0
_FILLER = ".lab-filler"
# There /tmp is the distribution's business, and cgroups have one hierarchy.
_AS_ON_A_MACHINE = {"SYSTEMD_NSPAWN_TMPFS_TMP": "0", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}


@dataclass(frozen=True)
class Host:
    """One machine of the lab."""

    lab: Lab
    name: str
    number: int

    # --- what it is ---

    @property
    def admin(self) -> str:
        return address("admin", self.number)

    @property
    def cluster(self) -> str:
        return address("cluster", self.number)

    @property
    def storage(self) -> str:
        return address("storage", self.number)

    @property
    def admin_v6(self) -> str:
        return address_v6("admin", self.number)

    @property
    def folder(self) -> Path:
        return self.lab.folder / "hosts" / self.name

    @property
    def root(self) -> Path:
        """Its file tree, as seen from here; write to it while it is up or down."""
        return self.folder / "root"

    @property
    def public_key(self) -> str:
        """Its SSH host key: ``ssh-ed25519 AAAA…``."""
        line = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        return " ".join(line.split()[:2])

    @property
    def fingerprint(self) -> str:
        """``SHA256:…``, as ``ssh-keygen -l`` prints it."""
        done = subprocess.run(
            ["ssh-keygen", "-lf", "-"], input=self.public_key, text=True, capture_output=True,
            check=True,
        )  # fmt: skip
        return done.stdout.split()[1]

    def ssh(
        self, command: str, *, user: str = "root", check: bool = True, timeout: float = 120,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a shell command there, over SSH from the controller."""
        return self.lab.controller.run(
            [*self.ssh_argv(user), command], check=check, timeout=timeout, stdin=stdin
        )

    def ssh_argv(self, user: str = "root") -> list[str]:
        """The ``ssh`` command line up to the command that is to be run."""
        settings = (
            f"UserKnownHostsFile={self.lab.known_hosts}", "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes", "BatchMode=yes", "ConnectTimeout=5", "LogLevel=ERROR",
        )  # fmt: skip
        options = [word for setting in settings for word in ("-o", setting)]
        return ["ssh", "-F", "none", "-i", str(self.lab.key), *options, f"{user}@{self.admin}"]

    # --- its power switch ---

    @property
    def running(self) -> bool:
        return self._pid is not None

    @property
    def _pid(self) -> int | None:
        """Of its nspawn, if that is still what the folder says."""
        try:
            pid = int((self.folder / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        return pid if state != "Z" and str(self.root).encode() in command else None

    def start(self) -> None:
        """Boot, and return once SSH lets root in and systemd has settled; nothing if it runs."""
        if self.running:
            return
        if self.lab.has_internet:
            self.lab.fabric.lead_out(self.name)
        argv = [
            "systemd-nspawn", "--quiet", f"--directory={self.root}", "--boot", "--register=no",
            "--keep-unit", f"--network-namespace-path=/run/netns/{self.namespace}",
            f"--machine={self.namespace}", f"--hostname={self.name}", "--resolv-conf=off",
            "--timezone=off", "--link-journal=no", "--kill-signal=SIGRTMIN+3", "--capability=all",
            "--drop-capability=CAP_SYS_TIME", "--console=pipe",
        ]  # fmt: skip
        if self.lab.shared is not None:
            argv.append(f"--bind={self.lab.shared}:{SHARED}")
        if self._disk.is_dir():
            argv.append(f"--bind={self._disk}:{HOME}")
        with (self.folder / "console.log").open("ab") as log:
            process = subprocess.Popen(
                cgroups.enter(self.namespace, argv),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **_AS_ON_A_MACHINE},
            )  # fmt: skip
        self.lab.processes.append(process)
        (self.folder / "pid").write_text(str(process.pid))
        self._await_boot(process)

    def power_off(self) -> None:
        """Shut down in order."""
        self._end(signal.SIGTERM, 90)

    def kill(self) -> None:
        """Cut the power: everything on it ends at once, nothing is flushed by its programs."""
        pid = self._pid
        if pid is not None:
            for child in leftovers.children(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        self._end(signal.SIGKILL, 20)

    def reboot(self) -> None:
        self.power_off()
        self.start()

    @property
    def namespace(self) -> str:
        return self.lab.fabric.namespace(self.name)

    def _end(self, number: signal.Signals, seconds: float) -> None:
        pid = self._pid
        if pid is None:
            return
        os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while self._pid is not None:
            self.lab.reap()
            if time.monotonic() > deadline:
                if number is signal.SIGKILL:
                    raise RuntimeError(f"{self.name} cannot be ended")
                self.kill()
                return
            time.sleep(0.05)
        (self.folder / "pid").unlink(missing_ok=True)

    def _await_boot(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _BOOT_S
        said = ""
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            done = self.ssh("systemctl is-system-running", check=False)
            said = done.stdout.strip() or done.stderr.strip()
            if said in ("running", "degraded"):
                return
            time.sleep(0.2)
        console = (self.folder / "console.log").read_text(errors="replace")[-2000:]
        if "Too many open files" in console:
            console += "\ntoo many hosts at once: see fs.inotify.max_user_instances"
        raise RuntimeError(f"{self.name} did not boot ({said}):\n{console}")

    # --- what goes wrong with it ---

    def fill_disk(self, free: int = 0) -> None:
        """Leave ``free`` bytes to its installation; for a lab whose hosts have a ``disk``."""
        if not self._disk.is_dir():
            raise ValueError("this lab's hosts share this machine's disk: Lab.up(…, disk=bytes)")
        with (self._disk / _FILLER).open("ab") as file:
            # What is asked for at once may lack room for its own bookkeeping: halve, go on.
            step = _free(self._disk)
            while (left := _free(self._disk) - free) > 0 and step:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), min(left, step))
                except OSError:
                    step //= 2

    def free_disk(self) -> None:
        """Take back what :meth:`fill_disk` took."""
        (self._disk / _FILLER).unlink(missing_ok=True)

    def skew_clock(self, seconds: int) -> None:
        """Tell its SSH sessions, and what they start with sudo, another time; 0: the right one.

        Sessions that are open, and what systemd starts, keep this machine's time.
        """
        session = self.root / "etc/ssh/sshd_config.d/lab-clock.conf"
        through_sudo = self.root / "etc/sudoers.d/lab-clock"
        variables = self.root / "etc/lab-clock"
        if seconds:
            library = next(self.root.glob("usr/lib/*/faketime/libfaketimeMT.so.1"))
            settings = (
                f"LD_PRELOAD=/{library.relative_to(self.root)}", f"FAKETIME={seconds:+d}s",
                "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1",
            )  # fmt: skip
            variables.write_text("".join(f"{each}\n" for each in settings))
            # The linker drops LD_PRELOAD for sudo itself; sudo gives it to what it starts.
            through_sudo.write_text("Defaults env_file=/etc/lab-clock\n")
            session.write_text(f"SetEnv {' '.join(settings)}\n")
        else:
            for path in (session, through_sudo, variables):
                path.unlink(missing_ok=True)
        self.ssh("systemctl restart ssh")

    def change_host_key(self) -> None:
        """Another machine answers at its address, or it was installed anew."""
        self._make_host_key()  # sshd reads it again for every connection
        self.lab.write_known_hosts()

    def take_sudo(self) -> None:
        """``ops`` may not become root any more."""
        (self.root / "etc/sudoers.d/lab").unlink(missing_ok=True)

    def give_sudo(self) -> None:
        """It may again."""
        rule = self.root / "etc/sudoers.d/lab"
        rule.write_text("ops ALL=(ALL) NOPASSWD: ALL\n")
        rule.chmod(0o440)

    def pretend(self, **fields: str) -> None:
        """Say other things in ``/etc/os-release``: ``pretend(ID="ubuntu", VERSION_ID="24.04")``."""
        release = self.root / "usr/lib/os-release"
        kept = [
            line for line in release.read_text().splitlines() if line.split("=")[0] not in fields
        ]
        added = [f"{name}={shlex.quote(value)}" for name, value in fields.items()]
        release.write_text("\n".join([*kept, *added, ""]))

    # --- making it ---

    @property
    def _disk(self) -> Path:
        return self.folder / "disk"

    def make(self, tree: Path) -> None:
        """Lay out its file tree. Its namespace is there already."""
        for name in ("root", "upper", "work"):
            (self.folder / name).mkdir(parents=True)
        layers = f"lowerdir={tree},upperdir={self.folder}/upper,workdir={self.folder}/work"
        subprocess.run(
            ["mount", "-t", "overlay", self.namespace, "-o", layers, self.root], check=True
        )
        etc = self.root / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {self.name}\n")
        (etc / "machine-id").write_text(secrets.token_hex(16) + "\n")
        (etc / "ssh/sshd_config.d/lab.conf").write_text(
            "HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\nMaxStartups 100\n"
        )
        self._make_host_key()
        authorized = self.lab.key.with_suffix(".pub").read_text()
        for home in ("root", "home/ops", "home/guest"):
            keys = self.root / home / ".ssh"
            keys.mkdir(mode=0o700, exist_ok=True)
            (keys / "authorized_keys").write_text(authorized)
            owner = (self.root / home).stat()
            for path in (keys, keys / "authorized_keys"):
                os.chown(path, owner.st_uid, owner.st_gid)
        if self.lab.disk:
            self._make_disk(self.lab.disk)

    def _make_host_key(self) -> None:
        for name in ("ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"):
            (self.root / "etc/ssh" / name).unlink(missing_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name,
             "-f", self.root / "etc/ssh/ssh_host_ed25519_key"],
            check=True,
        )  # fmt: skip

    def _make_disk(self, size: int) -> None:
        image = self.folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        self._disk.mkdir()
        subprocess.run(["mount", "-o", "loop", image, self._disk], check=True)
        (self._disk / "lost+found").rmdir()


def _free(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize
