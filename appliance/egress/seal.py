"""Can this machine hold the seal, and with which command is it made.

The seal is a user, network, mount, process, IPC and UTS namespace made by util-linux ``unshare``,
which every Debian and Ubuntu has and which needs no privilege. Its network namespace is born with a
loopback interface that is down and nothing else. :mod:`appliance.egress.inside` is what it runs
first.

No socket is handed in. A TCP socket belongs for life to the network namespace it was made in, and
a listening one can be turned round: ``connect(AF_UNSPEC)`` ends the listening, the next ``connect``
goes out through the *outer* namespace. So the listener stays outside with
:mod:`appliance.egress.door`, which hands bytes to a Unix socket in the installation's folder.

>>> spec = SealSpec(home=Home(Path("/srv/ai")), python=Path("/srv/ai/current/venv/bin/python"),
...                 command=("-m", "appliance.cluster.supervisor"))
>>> command(spec)[:3]
['/usr/bin/unshare', '--user', '--map-root-user']
"""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import SealUnavailable
from appliance.i18n import _
from appliance.layout import Home

_NAMESPACES = (
    "--user",
    "--map-root-user",
    "--net",
    "--mount",
    "--pid",
    "--fork",
    "--ipc",
    "--uts",
    "--mount-proc",
    "--kill-child",
)
_DEFAULT_SHM_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class SealSpec:
    """What is to run sealed, and what it may see.

    ``python`` is the release's interpreter and ``command`` its arguments. ``visible`` are folders
    outside the installation that stay readable (an interpreter's own libraries); ``hidden`` are
    files of the installation that read as empty in there (the CA's private key). ``protected`` are
    folders of the installation that cannot be written in there (what was signed and verified).
    ``shm_bytes`` bounds ``/dev/shm``, where Ray keeps its objects.
    """

    home: Home
    python: Path
    command: tuple[str, ...]
    visible: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()
    protected: tuple[Path, ...] = ()
    shm_bytes: int = _DEFAULT_SHM_BYTES

    def as_json(self) -> str:
        """The form :mod:`appliance.egress.inside` reads from its argument. Holds no secret."""
        return json.dumps(
            {
                "home": str(self.home.root),
                "visible": [str(path) for path in self.visible],
                "hidden": [str(path) for path in self.hidden],
                "protected": [str(path) for path in self.protected],
                "shm_bytes": self.shm_bytes,
                "argv": [str(self.python), *self.command],
            }
        )


def command(spec: SealSpec) -> list[str]:
    """The argv that makes the seal and runs ``spec.command`` in it as process 1."""
    # -P: a module planted in the working folder must not run before the seal is closed.
    inside = [str(spec.python), "-P", "-m", "appliance.egress.inside", spec.as_json()]
    return [_unshare() or "unshare", *_NAMESPACES, "--", *inside]


def _unshare() -> str | None:
    """The system's own, not one that a folder earlier on PATH offers."""
    return shutil.which("unshare", path="/usr/bin:/bin:/usr/sbin:/sbin")


def interpreter_paths(python: Path) -> tuple[Path, ...]:
    """Folders ``python`` needs to start: its environment, the base it was made from, its code.

    Reads ``pyvenv.cfg`` and ``*.pth`` files and runs nothing; a virtual environment whose base lies
    under a home folder (pyenv, uv) would otherwise lose it when the seal hides home folders.
    """
    environment = python.parent.parent
    found = [environment, python.resolve().parent.parent]
    config = environment / "pyvenv.cfg"
    if config.is_file():
        for line in config.read_text(encoding="utf-8").splitlines():
            key, _equals, value = line.partition("=")
            if key.strip() == "home":
                found.append(Path(value.strip()).resolve().parent)
    for pth in environment.glob("lib/python3.*/site-packages/*.pth"):
        lines = pth.read_text(encoding="utf-8").splitlines()
        found += [Path(line) for line in lines if line.startswith("/") and Path(line).is_dir()]
    return tuple(dict.fromkeys(found))


def check_supported() -> None:
    """Try to make an empty seal. Raises :class:`SealUnavailable` naming what forbids it."""
    unshare = _unshare()
    if unshare is None:
        raise SealUnavailable(
            reason=_("the program 'unshare' is not installed"),
            remedy=_("Install it: 'apt-get install util-linux'"),
        )
    trial = subprocess.run(
        [unshare, *_NAMESPACES, "--", "true"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if trial.returncode != 0:
        raise diagnose(trial.stderr.strip(), _read_switches())


@dataclass(frozen=True, slots=True)
class KernelSwitches:
    """The settings that decide about user namespaces; ``None`` where the kernel has no such one."""

    apparmor_restricts: int | None
    max_user_namespaces: int | None
    unprivileged_clone: int | None
    max_net_namespaces: int | None


def diagnose(stderr: str, switches: KernelSwitches) -> SealUnavailable:
    """Which switch forbids the seal, as an error with the command that changes it. Pure."""
    if switches.max_user_namespaces == 0:
        return SealUnavailable(
            reason=_("this machine allows no user namespaces (user.max_user_namespaces is 0)"),
            remedy=_("As root: 'sysctl -w user.max_user_namespaces=15000'"),
        )
    if switches.max_net_namespaces == 0:
        return SealUnavailable(
            reason=_("this machine allows no network namespaces (user.max_net_namespaces is 0)"),
            remedy=_("As root: 'sysctl -w user.max_net_namespaces=15000'"),
        )
    if switches.unprivileged_clone == 0:
        return SealUnavailable(
            reason=_("ordinary users may not make namespaces (kernel.unprivileged_userns_clone)"),
            remedy=_("As root: 'sysctl -w kernel.unprivileged_userns_clone=1'"),
        )
    if switches.apparmor_restricts == 1:
        return SealUnavailable(
            reason=_("Ubuntu's AppArmor takes all rights from an ordinary user's namespaces"),
            remedy=_("As root: 'sysctl -w kernel.apparmor_restrict_unprivileged_userns=0'"),
        )
    return SealUnavailable(
        reason=_("unshare said: {stderr}").format(stderr=stderr or _("nothing")),
        remedy=_("If this is a container, start it with rights to make user namespaces"),
    )


def _read_switches() -> KernelSwitches:
    def read(name: str) -> int | None:
        try:
            return int((Path("/proc/sys") / name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    return KernelSwitches(
        apparmor_restricts=read("kernel/apparmor_restrict_unprivileged_userns"),
        max_user_namespaces=read("user/max_user_namespaces"),
        unprivileged_clone=read("kernel/unprivileged_userns_clone"),
        max_net_namespaces=read("user/max_net_namespaces"),
    )


def prepare_folders(home: Home) -> None:
    """Make the folders the seal binds: ``tmp`` (mode 0700) and ``run``."""
    for folder, mode in ((home.root, 0o755), (home.run, 0o755), (home.tmp, 0o700)):
        folder.mkdir(parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o022:
            folder.chmod(mode)
