"""Run the playbooks with ansible-runner: events in, progress and an outcome out.

    with connections(site, place) as remotes:
        outcome = run(place, remotes, inventory(site, deployment), progress)
        outcome = run(…, mode=CHECK)                # changes nothing; tells what would

Ansible reads no configuration of the machine or the user: every setting that matters is given here,
and only the part of our own environment that it needs. It uses the SSH connections that are open
already, and the site's ``known_hosts``, strictly.

^C asks Ansible to end, waits for it, and raises ``KeyboardInterrupt``; if we are killed, the kernel
asks it instead (PR_SET_PDEATHSIG). Every task can be run again, so a run that was cut off is put
right by the next. What was said goes to ``ansible/artifacts``, readable by the operator only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from appliance.errors import AnsibleMissing
from appliance.i18n import _
from appliance.provision import outcome, playbooks
from appliance.provision.outcome import Happened, Outcome
from appliance.provision.ssh import CONNECT_S, shared_options

if TYPE_CHECKING:
    from appliance.layout import SitePlace
    from appliance.progress import Progress, Task
    from appliance.provision.ssh import Remote

_MOST_FORKS = 32
_KEPT_RUNS = 10
_POLL_S = 1
_GRACE_S = 15.0  # for Ansible to end its workers, before it is killed
_ENVIRONMENT = ("PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "TMPDIR", "TZ")

# Ends with us however we end: pexpect makes it deaf to the terminal's hangup, and a kill -9 leaves
# nobody to tell it. It writes its process id for a ^C that comes to us alone.
_LEASH = """\
import ctypes, os, signal, sys
parent, file, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(parent):
    sys.exit(1)
with open(file, "w") as out:
    out.write(str(os.getpid()))
os.execv(command[0], command)
"""


@dataclass(frozen=True, slots=True)
class Mode:
    """How the playbooks run: ``tags`` empty means all roles, ``hosts`` empty all hosts."""

    check: bool = False
    tags: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """Arguments of ansible-playbook."""
        return [
            *(["--check", "--diff"] if self.check else []),
            *(["--tags", ",".join(self.tags)] if self.tags else []),
            *(["--limit", ",".join(self.hosts)] if self.hosts else []),
        ]


APPLY = Mode()
CHECK = Mode(check=True)


def run(
    place: SitePlace,
    remotes: Mapping[str, Remote],
    inventory: Mapping[str, Any],
    progress: Progress,
    *,
    mode: Mode = APPLY,
    playbook: Path | None = None,
) -> Outcome:
    """Run ``site.yml`` (or another ``playbook``) over the hosts of ``inventory``.

    Raises what :func:`appliance.provision.outcome.problem` finds, :class:`AnsibleMissing`, and
    ``KeyboardInterrupt`` when it was told to stop.
    """
    if find_spec("ansible_runner") is None or find_spec("ansible") is None:
        raise AnsibleMissing()
    wanted = playbook or playbooks.folder() / "site.yml"
    steps: list[Happened] = []
    title = _("Looking at {n} hosts") if mode.check else _("Configuring {n} hosts")
    with (
        _stop_when_told() as told,
        progress.task(title.format(n=len(mode.hosts) or len(remotes)), None, "steps") as task,
    ):
        status, log = _run(
            place,
            remotes,
            inventory,
            playbook=wanted,
            mode=mode,
            told=told,
            listener=_Listener(steps, task),
        )
    if told():
        raise KeyboardInterrupt
    result = outcome.read(steps)
    timings = {task: round(seconds, 2) for task, seconds in result.seconds.items()}
    _write(log.with_name("seconds.json"), json.dumps(timings, indent=1))
    problem = outcome.problem(result, status, remotes, log)
    if problem is not None:
        raise problem
    return result


class _Listener:
    """Takes events as they come; keeps of each what an outcome needs."""

    def __init__(self, steps: list[Happened], task: Task) -> None:
        self._steps = steps
        self._task = task

    def __call__(self, event: Mapping[str, Any]) -> bool:
        """False: ansible-runner need not write it to a file."""
        step = outcome.happened(event)
        if step is not None:
            self._steps.append(step)
            self._task.advance(1)
            self._task.note(f"{step.host} {step}")
        return False


def _run(
    place: SitePlace,
    remotes: Mapping[str, Remote],
    inventory: Mapping[str, Any],
    *,
    playbook: Path,
    mode: Mode,
    told: Callable[[], bool],
    listener: _Listener,
) -> tuple[int, Path]:
    """The playbook's exit status, and the file with what was said."""
    from ansible_runner import Runner, RunnerConfig

    folder = place.ansible
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    hosts = folder / "hosts.yml"
    _write(hosts, yaml.safe_dump(inventory, sort_keys=False))
    config = RunnerConfig(
        private_data_dir=str(folder),
        project_dir=str(playbook.parent),
        playbook=str(playbook),
        inventory=str(hosts),
        ident=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}-{time.monotonic_ns() % 10**6}",
        rotate_artifacts=_KEPT_RUNS,
        fact_cache_type="",
        quiet=True,
    )
    config.prepare()
    config.pexpect_timeout = _POLL_S
    config.suppress_ansible_output = True
    pid_file = Path(config.artifact_dir) / "pid"
    ansible = [sys.executable, "-m", "ansible", "playbook", *config.command[1:], *mode.arguments()]
    leash = [sys.executable, "-I", "-c", _LEASH, str(os.getpid()), str(pid_file)]
    config.command = [*leash, *ansible]
    config.env = _environment(config.env, folder, playbook.parent, remotes)
    runner = Runner(config=config, event_handler=listener, cancel_callback=_Cancel(told, pid_file))
    runner.run()
    killed = -1  # ansible-runner knows no status of what a signal ended
    return (killed if runner.rc is None else runner.rc), Path(config.artifact_dir) / "stdout"


def _environment(
    made: Mapping[str, str], folder: Path, project: Path, remotes: Mapping[str, Remote]
) -> dict[str, str]:
    """What Ansible gets: little of ours, what ansible-runner ``made``, and every setting."""
    ours = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    runners = {name: value for name, value in made.items() if os.environ.get(name) != value}
    return ours | runners | settings(folder, project, remotes)


def settings(folder: Path, project: Path, remotes: Mapping[str, Remote]) -> dict[str, str]:
    """Ansible's settings, as environment variables. Writes an empty configuration file."""
    empty = folder / "ansible.cfg"
    _write(empty, "")
    some = next(iter(remotes.values()))
    return {
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "ANSIBLE_CONFIG": str(empty),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_ROLES_PATH": str(project / "roles"),
        "ANSIBLE_COLLECTIONS_PATH": str(project / "collections"),
        "ANSIBLE_INVENTORY_ENABLED": "yaml",
        "ANSIBLE_FORKS": str(min(_MOST_FORKS, max(1, len(remotes)))),
        "ANSIBLE_GATHERING": "smart",
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_SSH_ARGS": _words(shared_options(some.known_hosts, some.control)),
        "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_TIMEOUT": str(CONNECT_S),
        "ANSIBLE_RETRY_FILES_ENABLED": "False",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_NOCOWS": "True",
    }


def _words(options: Sequence[str]) -> str:
    """Ansible takes ssh's options as one text and splits it as a shell does."""
    import shlex

    return shlex.join(options)


class _Cancel:
    """Asked about once a second: whether ansible-runner should kill the playbook by force."""

    def __init__(self, told: Callable[[], bool], pid_file: Path) -> None:
        self._told = told
        self._pid_file = pid_file
        self._asked_at: float | None = None

    def __call__(self) -> bool:
        if not self._told():
            return False
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(self._pid_file.read_text()), signal.SIGTERM)
        return time.monotonic() - self._asked_at > _GRACE_S


@contextlib.contextmanager
def _stop_when_told() -> Iterator[Callable[[], bool]]:
    """^C and SIGTERM do not break ansible-runner's loop in the middle; they are asked for."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, _frame: told.append(number)) for n in numbers}
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
