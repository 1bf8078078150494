"""Asking the hosts, against hosts that answer in every way: none of it is an exception."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from preflight_samples import answer, site

from appliance.errors import HostUnreachable, SudoRefused
from appliance.provision.outcome import Outcome, Tally
from appliance.provision.plan_table import changes_table, findings_table
from appliance.provision.preflight import Report, examine
from appliance.provision.ssh import Completed

FACTS = {"user": {"uid": 0}, "identity": {"hostname": "x", "machine_id": "m"}}
MOUNTED = {
    "asked": "/srv/shared", "exists": True, "mount": "/srv/shared", "type": "nfs4", "source": "s",
    "options": ["rw"], "device": 9, "free": 1 << 40, "block": 4096, "inodes": None,
}  # fmt: skip
ROOT = {**MOUNTED, "asked": "/", "mount": "/", "device": 1}


@dataclass
class Pretended:
    """A host that answers what it is told to; a stand-in for ``ssh``, which others test for real.

    ``disk`` is the set of files on its shared storage: share the set, share the storage.
    """

    name: str
    says: bytes = answer(FACTS)
    disk: set[str] = field(default_factory=set)
    sudo: Callable[[], None] = lambda: None
    away: bool = False
    asked: list[str] = field(default_factory=list)
    greeting: bytes = b""
    leaves: bool = False

    def run(
        self, argv: Sequence[str], *, stdin: Any = b"", timeout_s: float = 60, sudo: bool = False
    ) -> Completed:
        self.asked.append(argv[0])
        if self.away:
            raise HostUnreachable(
                host=self.name, address="198.18.0.9", user="root", port=22, reason="Timed out."
            )
        if sudo and argv[0] == "python3":
            self.sudo()
        return Completed(self.name, *self._does(list(argv)))

    def _does(self, argv: list[str]) -> tuple[int, bytes, bytes]:
        if argv[0] == "mktemp":
            name = argv[1].removeprefix("--tmpdir=") + f"/.sovctl-check-{self.name}"
            self.disk.add(name)
            self.away = self.leaves
            return 0, self.greeting + name.encode() + b"\n", b""
        if argv[0] == "test":
            return int(argv[2] not in self.disk), b"", b""
        if argv[0] == "rm":
            self.disk.discard(argv[3])
        if argv[0] == "python3":
            return 0, self.says, b"Python 2.7 is not new\n"
        if argv[0] == "date":
            return 0, str(time.time_ns()).encode() + b"\n", b""
        return 0, b"198.18.0.2 40000 198.18.0.11 22\n", b""


def looked(*hosts: Pretended, **changes: Any) -> Report:
    return examine(site(**changes), {host.name: host for host in hosts})


def found(report: Report, host: str, check: str) -> list[tuple[str, str]]:
    return [(f.level, f.text) for f in report.of(host) if f.check == check]


def test_a_host_that_is_away_or_talks_nonsense_does_not_hide_the_others() -> None:
    report = looked(
        Pretended("n1", away=True), Pretended("n2", says=b"\xff\x00{"), Pretended("n3")
    )  # fmt: skip
    assert report.failed and set(report.facts) == {"n3"}
    assert found(report, "n1", "reachable")[0][0] == "fail"
    assert "Python 2.7" in found(report, "n2", "reachable")[0][1]
    assert found(report, "n3", "reachable")[0][0] == "pass"
    told = json.loads(json.dumps(report.as_json()))
    assert [host["reached"] for host in told["hosts"]] == [False, False, True]


def test_a_user_without_sudo_is_judged_by_what_a_user_sees() -> None:
    def refuse() -> None:
        raise SudoRefused(host="n2", user="ops", reason="A password is required.")

    tree = site().model_dump(mode="json")
    tree["hosts"][1]["ssh"]["user"] = "ops"
    report = looked(
        Pretended("n1"), Pretended("n2", sudo=refuse), Pretended("n3"), hosts=tree["hosts"]
    )  # fmt: skip
    level, text = found(report, "n2", "sudo")[0]
    assert level == "fail" and "password" in text
    assert "n2" in report.facts


def test_storage_that_is_not_shared_is_found_and_nothing_is_left_on_it() -> None:
    says = answer({**FACTS, "folders": [MOUNTED, ROOT]})
    common: set[str] = set()
    hosts = [Pretended("n1", says, common), Pretended("n2", says), Pretended("n3", says, common)]
    report = looked(*hosts)
    assert ("fail", "/srv/shared is not the file system that n1 has there") in found(
        report, "n2", "storage"
    )
    assert ("pass", "/srv/shared is the same as on n1") in found(report, "n3", "storage")
    assert not common and not hosts[1].disk


def _all_on_one_storage(first: Pretended) -> Report:
    says = answer({**FACTS, "folders": [MOUNTED, ROOT]})
    first.says = says
    return looked(first, Pretended("n2", says, first.disk), Pretended("n3", says, first.disk))


def test_a_host_that_leaves_during_the_check_of_the_storage_is_a_finding() -> None:
    report = _all_on_one_storage(Pretended("n1", leaves=True))
    assert ("pass", "/srv/shared is the same as on n1") in found(report, "n2", "storage")
    [(level, text)] = [(a, b) for a, b in found(report, "n1", "storage") if "check-n1" in b]
    assert level == "warn" and "could not be removed" in text


def test_what_a_login_script_prints_is_not_taken_for_the_file() -> None:
    first = Pretended("n1", greeting=b"Welcome to the clinic!\n")
    report = _all_on_one_storage(first)
    assert ("pass", "/srv/shared is the same as on n1") in found(report, "n3", "storage")
    assert not first.disk


def test_a_file_elsewhere_is_not_removed_however_it_is_named() -> None:
    class Elsewhere(Pretended):
        def _does(self, argv: list[str]) -> tuple[int, bytes, bytes]:
            if argv[0] == "mktemp":
                return 0, b"/srv/shared/../../etc/passwd\n", b""
            return super()._does(argv)

    first = Elsewhere("n1")
    report = _all_on_one_storage(first)
    assert any(level == "fail" for level, _text in found(report, "n1", "storage"))
    assert "rm" not in first.asked


def test_the_tables_name_what_failed_and_what_would_change() -> None:
    report = looked(Pretended("n1", away=True), Pretended("n2"), Pretended("n3"))
    text = findings_table(report)
    assert "n1  1 failed" in text and "→" in text
    tally = Tally(ok=9, changes=("base: users", "base: limits", "store: mount"))
    lines = changes_table(report, Outcome({"n2": tally}, ()), None).splitlines()
    assert lines[3].split() == ["n2", "unknown", "3", "base", "2,", "store", "1"]
    assert lines[2].split() == ["n1", "unknown", "unknown"]
