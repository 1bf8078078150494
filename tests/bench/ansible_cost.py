"""What Ansible costs on a site: per run, per task and host, by setting, and from 1 to 4 hosts.

    python tests/bench/ansible_cost.py [--hosts 4] [--rounds 3] [--only settings,modules,growth]

On hosts of the lab (root, systemd-nspawn; docs/lab.md), with the settings of
:mod:`appliance.provision.driver` and one of them changed at a time, against the peer: ``ssh``
running ``true`` as often as the play has tasks, on all hosts at once, over shared connections. Each
contestant runs once a round, and the rounds are medians; nothing changes on a host after the first,
as in the second run of an install.

Prints Markdown. *wall* is what an operator waits; *cpu* is the controller's own processor time (its
Ansible and its ssh clients), which a busy machine blurs less. In the lab the hosts share the
controller's cores, so more hosts cost more wall time than real ones would.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from appliance.layout import Home, SitePlace
from appliance.manifests.site import Site
from appliance.provision import driver, playbooks
from appliance.provision.ssh import Remote, connections
from tests.lab.lab import Lab, unfit
from tests.lab.lab_site import site_of

# What roles are made of: mostly files that are right already, a unit's state, a command that asks.
TASKS: tuple[Mapping[str, Any], ...] = (
    {"ansible.builtin.file": {"path": "/srv/bench", "state": "directory", "mode": "0755"}},
    {"ansible.builtin.copy": {"content": "one\n", "dest": "/srv/bench/one", "mode": "0644"}},
    {"ansible.builtin.copy": {"src": "folder/", "dest": "/srv/bench/folder/", "mode": "0644"}},
    {"ansible.builtin.template": {"src": "t.j2", "dest": "/srv/bench/two", "mode": "0644"}},
    {"ansible.builtin.stat": {"path": "/srv/bench/one"}},
    {"ansible.builtin.command": {"argv": ["true"]}, "changed_when": False},
    {"ansible.builtin.lineinfile": {"path": "/srv/bench/one", "line": "one"}},
    {"ansible.builtin.user": {"name": "bench", "system": True}},
    {"ansible.builtin.systemd_service": {"name": "ssh", "state": "started", "enabled": True}},
    {"ansible.builtin.assert": {"that": ["inventory_hostname is defined"]}},
)
_OUR_FILES = [{"path": f"/srv/bench/ours/f{n}", "content": f"{n}\n" * 50} for n in range(5)]
MODULES: Mapping[str, Mapping[str, Any]] = {
    "command": TASKS[5],
    "stat": TASKS[4],
    "copy of a text": TASKS[1],
    "copy of a folder of 5": TASKS[2],
    "sovctl.host.files, of 5": {"sovctl.host.files": {"files": _OUR_FILES}},
    "template": TASKS[3],
    "assert": TASKS[9],
}
_REPEATS = 5
_APART = ("-o", "ControlMaster=no", "-o", "ControlPath=none")  # ssh takes an option's first value
_FACTS: Mapping[str, Mapping[str, Any]] = {
    "none": {"gather_facts": False},
    "min": {"gather_facts": True, "gather_subset": ["!all", "min"]},
    "all": {"gather_facts": True},
}


@dataclass(frozen=True)
class Play:
    """What is run: tasks, facts, on how many hosts, with what settings changed."""

    tasks: tuple[Mapping[str, Any], ...] = TASKS
    facts: str = "min"
    hosts: int = 0
    """0: all."""
    changed: Mapping[str, str] = field(default_factory=dict)
    """Settings of Ansible instead of the driver's."""
    shared: bool = True
    """Whether tasks share a host's connection."""


@dataclass(frozen=True)
class Cost:
    """Seconds."""

    wall: float
    cpu: float


class Stand:
    """A lab, a site on it, and ways to run a play or the peer there from the controller."""

    def __init__(self, lab: Lab, place: SitePlace, site: Site, remotes: Mapping[str, Remote]):
        self._lab = lab
        self._remotes = remotes
        self._folder = place.ansible
        self._folder.mkdir(parents=True)
        place.known_hosts.write_bytes(lab.known_hosts.read_bytes())
        (self._folder / "folder").mkdir()
        for number in range(5):
            (self._folder / "folder" / f"f{number}").write_text(f"{number}\n" * 50)
        (self._folder / "t.j2").write_text("{{ inventory_hostname }} {{ groups['all'] | join }}\n")
        self.names = [host.name for host in site.hosts]
        hosts = {
            host.name: {
                "ansible_host": str(site.management_address(host)),
                "ansible_user": "root",
                "ansible_ssh_private_key_file": host.ssh.key,
                "ansible_python_interpreter": "/usr/bin/python3",
            }
            for host in site.hosts
        }
        (self._folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts}}))

    def ansible(self, play: Play) -> Cost:
        """Run a play; it must succeed."""
        used = self.names[: play.hosts] if play.hosts else self.names
        book = self._folder / "play.yml"
        content = {"hosts": used, "tasks": list(play.tasks), **_FACTS[play.facts]}
        book.write_text(yaml.safe_dump([content], sort_keys=False))
        remotes = {name: self._remotes[name] for name in used}
        settings = driver.settings(self._folder, playbooks.folder(), remotes) | dict(play.changed)
        if not play.shared:
            settings["ANSIBLE_SSH_ARGS"] = f"{shlex.join(_APART)} {settings['ANSIBLE_SSH_ARGS']}"
        inventory = str(self._folder / "hosts.yml")
        command = [sys.executable, "-m", "ansible", "playbook", "-i", inventory, str(book)]
        return _timed(lambda: self._lab.controller.run(command, env=settings))

    def ssh(self, times: int, hosts: int = 0, *, shared: bool = True) -> Cost:
        """The peer: ``ssh HOST true`` that often, to all hosts at once."""
        used = self.names[:hosts] if hosts else self.names

        def one(name: str) -> None:
            program, *options = self._remotes[name].command(["true"])
            argv = [program, *([] if shared else _APART), *options]
            loop = f"for i in $(seq {times}); do {shlex.join(argv)} </dev/null || exit 1; done"
            self._lab.controller.run(["sh", "-c", loop])

        def all_at_once() -> None:
            with ThreadPoolExecutor(len(used)) as threads:
                list(threads.map(one, used))

        return _timed(all_at_once)


def _timed(act: Callable[[], object]) -> Cost:
    before, started = _processor(), time.monotonic()
    act()
    return Cost(time.monotonic() - started, _processor() - before)


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _medians(contestants: Mapping[str, Callable[[], Cost]], rounds: int) -> dict[str, Cost]:
    """Each once a round, in turn, so that what else the machine does falls on all alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            print(f"  round {number + 1}: {name}", file=sys.stderr)
            costs[name].append(run())
    return {
        name: Cost(
            statistics.median(each.wall for each in seen),
            statistics.median(each.cpu for each in seen),
        )
        for name, seen in costs.items()
    }


def settings(stand: Stand, rounds: int) -> None:
    """One setting changed at a time."""
    tasks, count = len(TASKS), len(stand.names)
    peer = "peer: `ssh HOST true` × tasks"
    changes = {
        "as the driver sets it": Play(),
        "pipelining off": Play(changed={"ANSIBLE_PIPELINING": "False"}),
        "forks 1": Play(changed={"ANSIBLE_FORKS": "1"}),
        "forks 2": Play(changed={"ANSIBLE_FORKS": "2"}),
        "forks 5 (Ansible's default)": Play(changed={"ANSIBLE_FORKS": "5"}),
        "no facts": Play(facts="none"),
        "all facts (Ansible's default)": Play(facts="all"),
        "a connection for every task": Play(shared=False),
        "the same without tasks": Play(tasks=()),
        "without tasks or facts": Play(tasks=(), facts="none"),
    }
    contestants: dict[str, Callable[[], Cost]] = {
        name: _bound(stand, play) for name, play in changes.items()
    }
    contestants[peer] = lambda: stand.ssh(tasks)
    contestants["peer, a connection for every command"] = lambda: stand.ssh(tasks, shared=False)
    stand.ansible(Play())
    found = _medians(contestants, rounds)
    ours = found["as the driver sets it"]
    rows = [
        (name, f"{c.wall:.1f}", f"{c.wall / ours.wall:.2f}", f"{c.cpu:.1f}")
        for name, c in found.items()
    ]
    print(f"\n{tasks} tasks on {count} hosts\n")
    _table(("", "wall s", "× ours", "cpu s"), rows)
    bare = found["the same without tasks"]
    each = (ours.wall - bare.wall) / tasks
    against = found[peer].wall / tasks
    fixed = found["without tasks or facts"].wall
    print(
        f"\nA run costs {fixed:.1f} s before its first task, facts {bare.wall - fixed:.1f} s, a "
        f"task on {count} hosts at once {each:.2f} s ({each / count:.2f} s a host): "
        f"**{each / against:.1f}×** an `ssh true`."
    )


def modules(stand: Stand, rounds: int) -> None:
    """What a task costs by its kind, on all hosts at once."""
    count = len(stand.names)
    contestants: dict[str, Callable[[], Cost]] = {
        "none": _bound(stand, Play(tasks=(), facts="none"))
    }
    for name, task in MODULES.items():
        repeated = (task,) * _REPEATS
        contestants[name] = _bound(stand, Play(tasks=repeated, facts="none"))
    stand.ansible(Play())
    found = _medians(contestants, rounds)
    bare = found.pop("none")
    rows = [
        (
            name,
            f"{(c.wall - bare.wall) / _REPEATS:.2f}",
            f"{(c.cpu - bare.cpu) / _REPEATS / count:.3f}",
        )
        for name, c in found.items()
    ]
    print(f"\nOne task on {count} hosts at once\n")
    _table(("", "wall s", "cpu s a host"), rows)


def growth(stand: Stand, rounds: int) -> None:
    """The same play on 1 to all hosts."""
    tasks = len(TASKS)
    contestants: dict[str, Callable[[], Cost]] = {}
    for hosts in range(1, len(stand.names) + 1):
        contestants[f"{hosts} play"] = _bound(stand, Play(hosts=hosts))
        contestants[f"{hosts} bare"] = _bound(stand, Play(tasks=(), facts="none", hosts=hosts))
        contestants[f"{hosts} ssh"] = _peer(stand, tasks, hosts)
    stand.ansible(Play())
    found = _medians(contestants, rounds)
    one = found["1 play"].wall
    rows = []
    for hosts in range(1, len(stand.names) + 1):
        play, bare, peer = (found[f"{hosts} {what}"] for what in ("play", "bare", "ssh"))
        rows.append(
            (
                str(hosts),
                f"{play.wall:.1f}",
                f"{play.wall / one:.2f}",
                f"{play.cpu:.1f}",
                f"{bare.wall:.1f}",
                f"{peer.wall:.1f}",
            )
        )
    print(f"\n{tasks} tasks on 1 to {len(stand.names)} hosts\n")
    _table(("hosts", "wall s", "× one host", "cpu s", "of it before a task", "peer s"), rows)


def _bound(stand: Stand, play: Play) -> Callable[[], Cost]:
    return lambda: stand.ansible(play)


def _peer(stand: Stand, times: int, hosts: int) -> Callable[[], Cost]:
    return lambda: stand.ssh(times, hosts)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"| {' | '.join(headings)} |")
    print(f"| {' | '.join('---' for _each in headings)} |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


_PARTS: Mapping[str, Callable[[Stand, int], None]] = {
    "settings": settings,
    "modules": modules,
    "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(_PARTS))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # lab goes down
    reason = unfit()
    if reason is not None:
        print(f"Left out: no lab can be made here: {reason}")
        return
    with (
        tempfile.TemporaryDirectory(prefix="bench-site-") as name,
        Lab.up(Path(name) / "lab", hosts=given.hosts, internet=False) as lab,
    ):
        site = Site.model_validate(site_of(lab))
        place = SitePlace(Home(Path(name) / "home"), site.name)
        place.root.mkdir(parents=True)
        with connections(site, place) as remotes:
            stand = Stand(lab, place, site, remotes)
            for part in given.only.split(","):
                load = os.getloadavg()[0]
                _PARTS[part](stand, given.rounds)
                print(f"\nLoad average: {load:.1f} before, {os.getloadavg()[0]:.1f} after.")


if __name__ == "__main__":
    main()
