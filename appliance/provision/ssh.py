"""Commands on a site's hosts, through the operator's own OpenSSH client.

    with connections(site, place) as remotes:
        remotes["n1"].run(["uname", "-r"]).text
        remotes["n1"].run(["python3", "-"], stdin=script, sudo=True)

Host keys come from the site's ``known_hosts`` and nowhere else, and are checked strictly; nothing
is asked (BatchMode). The machine's and the user's own configuration is not read, so that a site is
reached in the same way from every controller. Commands to one host share one connection, whose
socket lies in a private temporary folder and ends with the ``with`` block (or, if we are killed, a
minute after its last command).

What ssh says when it fails is turned into an :class:`~appliance.errors.ApplianceError` that names
what to do; a command that ran and ended badly is no error here: see :class:`Completed`.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from appliance.errors import (
    ApplianceError,
    ConnectionLost,
    HostCommandFailed,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    LoginRefused,
    SudoRefused,
)
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.layout import SitePlace
    from appliance.manifests.site import Host, Site

CONNECT_S = 10
"""Seconds a host may take to answer a connection."""

_ALIVE_S = 5
_ALIVE_COUNT = 3
_PERSIST_S = 60
_SSH_FAILED = 255
_LONGEST_CONTROL = 40  # characters; a Unix socket's path has 107, and ssh appends 57


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ran on a host, whatever its status."""

    host: str
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, without its last line break."""
        return self.stdout.decode(errors="replace").rstrip("\n")

    @property
    def complaint(self) -> str:
        """The last line of standard error."""
        lines = self.stderr.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


Stdin = bytes | Path | Iterable[bytes]


class Control:
    """What commands to a site's hosts share: the folder of the connections' sockets, and a list of
    the local processes that are alive, so that all of them can be ended at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._over = False

    def start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a local process with pipes to all three streams.

        In a process group of its own: ^C on the controller's terminal is ours to handle.
        """
        pipe = subprocess.PIPE
        with self._lock:
            if self._over:
                raise RuntimeError("the connections were closed")
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, process_group=0
            )
            self._alive = {each for each in self._alive if each.poll() is None} | {process}
        return process

    def end(self) -> None:
        """End every process that is alive, and every shared connection."""
        with self._lock:
            self._over = True
            for process in self._alive:
                if process.poll() is None:
                    process.kill()
        for socket in self.folder.iterdir():
            # Which host it was no longer matters: ssh wants some name, and uses the socket.
            stop = ["ssh", "-F", "none", "-o", f"ControlPath={socket}", "-O", "exit", "--", "x"]
            subprocess.run(stop, check=False, capture_output=True, timeout=CONNECT_S)


@dataclass(frozen=True, slots=True)
class Remote:
    """One host and how it is reached. ``key`` None: the operator's agent is asked."""

    name: str
    user: str
    address: str
    port: int
    key: Path | None
    known_hosts: Path
    control: Control

    def options(self) -> tuple[str, ...]:
        """The options that make ``ssh`` reach it."""
        identity = ("-i", str(self.key), "-o", "IdentitiesOnly=yes") if self.key else ()
        return (*shared_options(self.known_hosts, self.control), *identity)

    def command(self, argv: Sequence[str], *, sudo: bool = False) -> list[str]:
        """The local command that runs ``argv`` there, as root with ``sudo``."""
        asked = shlex.join(argv)
        if sudo and self.user != "root":
            asked = f"LC_ALL=C sudo -n -- {asked}"
        target = ("-p", str(self.port), "-l", self.user, "--", self.address)
        return ["ssh", *self.options(), "-T", *target, asked]

    def start(self, argv: Sequence[str], *, sudo: bool = False) -> subprocess.Popen[bytes]:
        """Begin ``argv`` there with pipes to all three streams; see :meth:`judge`."""
        return self.control.start(self.command(argv, sudo=sudo))

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: Stdin = b"",
        timeout_s: float = 60,
        sudo: bool = False,
    ) -> Completed:
        """Run ``argv`` there to its end.

        Raises what :meth:`judge` raises, and :class:`ConnectionLost` after ``timeout_s`` seconds.
        """
        process = self.start(argv, sudo=sudo)
        try:
            with _fed(process, stdin) as data:
                out, err = process.communicate(data, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            reason = _("It did not answer within {n} seconds.").format(n=f"{timeout_s:.0f}")
            raise ConnectionLost(host=self.name, address=self.address, reason=reason) from error
        finally:
            end(process)
        problem = self.judge(process.returncode, err, sudo=sudo)
        if problem is not None:
            raise problem
        return Completed(self.name, process.returncode, out, err)

    def check(
        self,
        argv: Sequence[str],
        *,
        stdin: Stdin = b"",
        timeout_s: float = 60,
        sudo: bool = False,
    ) -> Completed:
        """As :meth:`run`; raises :class:`HostCommandFailed` if ``argv`` ended badly."""
        done = self.run(argv, stdin=stdin, timeout_s=timeout_s, sudo=sudo)
        if done.status:
            raise self.failed(argv, done.complaint or _("status {n}").format(n=done.status))
        return done

    def failed(self, argv: Sequence[str], reason: str) -> HostCommandFailed:
        """The error for a command that ended badly."""
        return HostCommandFailed(
            command=argv[0],
            host=self.name,
            reason=reason,
            port=self.port,
            user=self.user,
            address=self.address,
        )

    def judge(self, status: int, stderr: bytes, *, sudo: bool = False) -> ApplianceError | None:
        """Why ssh or sudo did not get as far as the command; None if they did. Pure."""
        text = stderr.decode(errors="replace").strip()
        if status == _SSH_FAILED:
            return self._connection_error(text)
        if status and sudo and self.user != "root":
            lines = [line for line in text.splitlines() if _SUDO.search(line)]
            if lines:
                return SudoRefused(host=self.name, user=self.user, reason=_sentence(lines[-1]))
        return None

    def _connection_error(self, text: str) -> ApplianceError:
        reason = _sentence(text.splitlines()[-1] if text else _("It stopped answering"))
        place = {"host": self.name, "address": self.address}
        if "HOST IDENTIFICATION HAS CHANGED" in text:
            found = _OFFERED.search(text)
            offered = found.group(0) if found else _("another key")
            expected = _("the key in {file}").format(file=self.known_hosts)
            return HostKeyChanged(**place, expected=expected, offered=offered)
        if "Host key verification failed" in text or "host key is known for" in text:
            return HostKeyUnknown(**place, offered=_("a key that is in no list"))
        if "Permission denied" in text or "Too many authentication failures" in text:
            key = self.key or _("a key of the agent")
            return LoginRefused(**place, user=self.user, key=key, port=self.port, reason=reason)
        if _UNREACHED.search(text):
            return HostUnreachable(**place, user=self.user, port=self.port, reason=reason)
        return ConnectionLost(**place, reason=reason)


def shared_options(known_hosts: Path, control: Control) -> tuple[str, ...]:
    """The options that are the same for every host; Ansible gets them too, and with them uses the
    connections that are open already."""
    settings = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "ConnectTimeout": str(CONNECT_S),
        "ServerAliveInterval": str(_ALIVE_S),
        "ServerAliveCountMax": str(_ALIVE_COUNT),
        "ControlMaster": "auto",
        "ControlPath": f"{control.folder}/%C",
        "ControlPersist": f"{_PERSIST_S}s",
        "ClearAllForwardings": "yes",
        "ForwardAgent": "no",
        "LogLevel": "ERROR",
    }
    pairs = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    return ("-F", "none", *pairs)


_SUDO = re.compile(r"^sudo: |not in the sudoers|not allowed to (run|execute)|sudo: not found")
_OFFERED = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_UNREACHED = re.compile(
    r"connect to host|Could not resolve|Connection (refused|timed out)|No route to host"
    r"|Network is unreachable|kex_exchange_identification|banner exchange"
)


def _sentence(text: str) -> str:
    return f"{text.strip().rstrip('.')}."


def end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that a local ``ssh`` is gone and its pipes are closed."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def _fed(process: subprocess.Popen[bytes], stdin: Stdin) -> Iterator[bytes | None]:
    """Feed a file or an iterator from a thread; bytes are left to ``communicate``."""
    if isinstance(stdin, bytes):
        yield stdin
        return
    pipe = process.stdin
    assert pipe is not None
    process.stdin = None  # communicate() must leave it alone
    failures: list[BaseException] = []
    feeder = threading.Thread(target=_feed, args=(pipe, stdin, failures), daemon=True)
    feeder.start()
    try:
        yield None
    finally:
        end(process)
        feeder.join()
    if failures:
        raise failures[0]


def _feed(pipe: IO[bytes], stdin: Path | Iterable[bytes], failures: list[BaseException]) -> None:
    try:
        with pipe:
            if isinstance(stdin, Path):
                with stdin.open("rb") as file:
                    shutil.copyfileobj(file, pipe, 1 << 20)
            else:
                for chunk in stdin:
                    pipe.write(chunk)
    except BrokenPipeError:
        pass  # the other end stopped reading: its status tells why
    except BaseException as error:  # noqa: BLE001 - raised again by who waits
        failures.append(error)


def remote_of(site: Site, host: Host, place: SitePlace, control: Control) -> Remote:
    """How the controller reaches ``host``. Pure."""
    return Remote(
        name=host.name,
        user=host.ssh.user,
        address=str(site.management_address(host)),
        port=host.ssh.port,
        key=Path(host.ssh.key) if host.ssh.key else None,
        known_hosts=place.known_hosts,
        control=control,
    )


@contextlib.contextmanager
def connections(site: Site, place: SitePlace) -> Iterator[Mapping[str, Remote]]:
    """Every host of the site by name; what was connected is closed at the end."""
    with shared_control() as control:
        yield {host.name: remote_of(site, host, place, control) for host in site.hosts}


@contextlib.contextmanager
def shared_control() -> Iterator[Control]:
    """A private folder for the sockets of connections that commands share."""
    base = tempfile.gettempdir()
    folder = base if len(base) <= _LONGEST_CONTROL else "/tmp"  # noqa: S108 - mkdtemp is private
    control = Control(Path(tempfile.mkdtemp(prefix="sovctl-", dir=folder)))
    try:
        yield control
    finally:
        control.end()
        shutil.rmtree(control.folder, ignore_errors=True)
