"""Look at every host of a site at once, before anything is changed there.

    with connections(site, place) as remotes:
        report = examine(site, remotes, bundle_needs(manifest), progress)
    report.failed, report.findings, report.as_json()

A host that cannot be reached, refuses, or answers nonsense is a finding and not an exception: the
others are judged all the same. Each host is asked for its facts once, by a program that is sent to
it (:mod:`~appliance.provision.host_facts`); what they mean is decided here
(:mod:`~appliance.provision.checks`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from appliance.errors import ApplianceError, SudoRefused
from appliance.i18n import _
from appliance.manifests.site import Host, Site
from appliance.progress import Progress, Silent, Task
from appliance.provision import host_facts
from appliance.provision.checks import CHECKS, judge
from appliance.provision.checks_between import between
from appliance.provision.facts import Address, HostFacts
from appliance.provision.facts_reader import FactsUnreadable, read_facts
from appliance.provision.finding import LEVELS, HostFinding
from appliance.provision.needs import BundleNeeds, asked_of, host_needs
from appliance.provision.several import AT_ONCE
from appliance.provision.subject import Meeting, Subject
from appliance.provision.way import Way

_PROBE_S = 40  # the probe ends itself after 8; a busy host starts Python slowly
_COMMAND_S = 20
_CLOCK_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. ``facts`` has the hosts that answered, ``hosts`` all in the site's order;
    ``milliseconds`` is how long each took."""

    site: str
    hosts: tuple[str, ...]
    findings: tuple[HostFinding, ...]
    facts: Mapping[str, HostFacts] = field(default_factory=dict)
    milliseconds: Mapping[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether any check of any host failed."""
        return any(finding.level == "fail" for finding in self.findings)

    def of(self, host: str) -> tuple[HostFinding, ...]:
        """A host's findings, worst first, else in the order of the checks."""
        mine = [finding for finding in self.findings if finding.host == host]
        return tuple(sorted(mine, key=lambda f: (LEVELS.index(f.level), _ORDER.get(f.check, 99))))

    def as_json(self) -> dict[str, object]:
        """The report for machines."""
        return {
            "site": self.site,
            "failed": self.failed,
            "hosts": [
                {
                    "name": name,
                    "reached": name in self.facts,
                    "milliseconds": self.milliseconds.get(name),
                    "checks": [
                        {key: value for key, value in finding.as_json().items() if key != "host"}
                        for finding in self.of(name)
                    ],
                }
                for name in self.hosts
            ],
        }


_ORDER = {check.name: place for place, check in enumerate(CHECKS)}


@dataclass(frozen=True, slots=True)
class _Seen:
    """One host after it was asked: facts None with the finding that says why."""

    host: Host
    facts: HostFacts | None
    meeting: Meeting
    trouble: HostFinding | None
    milliseconds: int


def examine(
    site: Site,
    remotes: Mapping[str, Way],
    needs: BundleNeeds | None = None,
    progress: Progress | None = None,
) -> Report:
    """Ask all hosts at once and judge them; ``needs`` None judges the site without a bundle."""
    progress = progress or Silent()
    with (
        progress.task(_("Examining the hosts"), len(site.hosts), "items") as task,
        ThreadPoolExecutor(min(AT_ONCE, len(site.hosts))) as threads,
    ):
        seen = list(
            threads.map(lambda host: _see(site, host, remotes[host.name], task), site.hosts)
        )
        known = {each.host.name: each.facts for each in seen if each.facts is not None}
        sealed = frozenset(name for name, facts in known.items() if facts.sealed)
        findings = [finding for each in seen for finding in _judged(site, needs, each, sealed)]
        findings += _same_storage(site, needs, remotes, known, threads)
    findings += between(known)
    return Report(
        site=site.name,
        hosts=tuple(host.name for host in site.hosts),
        findings=tuple(findings),
        facts=known,
        milliseconds={each.host.name: each.milliseconds for each in seen},
    )


def _judged(
    site: Site, needs: BundleNeeds | None, seen: _Seen, sealed: frozenset[str]
) -> Iterator[HostFinding]:
    if seen.trouble is not None:
        yield seen.trouble
    if seen.facts is None:
        return
    name = seen.host.name
    text = _("answered in {n} ms").format(n=seen.milliseconds)
    yield HostFinding(name, "reachable", "pass", text)
    wanted = host_needs(site, seen.host, needs)
    yield from judge(Subject(site, seen.host, wanted, seen.facts, seen.meeting, sealed=sealed))


# --- asking one host ------------------------------------------------------------------------------


def _see(site: Site, host: Host, way: Way, task: Task) -> _Seen:
    begun = time.monotonic()
    meeting = Meeting()
    facts, trouble = None, None
    try:
        meeting = _meet(way)
        facts, refused = _ask(site, host, way)
        meeting = Meeting(meeting.skew_ms, meeting.doubt_ms, meeting.client, refused)
    except ApplianceError as error:
        what, why, fix = error.sentences()
        trouble = HostFinding(host.name, "reachable", "fail", f"{what} {why}", fix)
    except FactsUnreadable as error:
        trouble = HostFinding(
            host.name, "reachable", "fail",
            _("it was reached and did not say what it is like: {reason}").format(reason=error),
            _("Ansible needs a Python 3.9 or newer there: 'apt-get install python3'; also see that "
              "its login scripts print nothing."),
        )  # fmt: skip
    task.advance(1)
    return _Seen(host, facts, meeting, trouble, int((time.monotonic() - begun) * 1000))


def _meet(way: Way) -> Meeting:
    """Open the connection and compare clocks; the quickest round trip tells the most."""
    shell = ["sh", "-c", 'echo "$SSH_CONNECTION"; date +%s%N']
    answer = way.run(shell, timeout_s=_COMMAND_S)
    client = _client(answer.stdout)
    best: tuple[int, int] | None = None
    for _round in range(_CLOCK_ROUNDS):
        before = time.time_ns()
        answer = way.run(["date", "+%s%N"], timeout_s=_COMMAND_S)
        after = time.time_ns()
        last = answer.stdout.split()[-1:] or [b""]
        if not last[0].isdigit() or len(last[0]) > 25:
            continue
        doubt = (after - before) // 2
        if best is None or doubt < best[1]:
            best = (int(last[0]) - (before + after) // 2, doubt)
    if best is None:
        return Meeting(client=client)
    return Meeting(best[0] // 1_000_000, -(-best[1] // 1_000_000), client)


def _client(printed: bytes) -> Address | None:
    for line in printed.decode(errors="replace").splitlines():
        words = line.split()
        if len(words) == 4:
            try:
                return ip_address(words[0].partition("%")[0])
            except ValueError:
                continue
    return None


def program(asked: Mapping[str, object]) -> bytes:
    """The probe with what it is asked, as ``python3 -`` reads it."""
    source = Path(host_facts.__file__).read_text(encoding="utf-8")
    return f"{source}\n\nmain({json.dumps(asked)!r})\n".encode()


def _ask(site: Site, host: Host, way: Way) -> tuple[HostFacts, ApplianceError | None]:
    """The facts as root sees them; as the user does where sudo is refused, with why."""
    sent = program(asked_of(site, host))
    refused: ApplianceError | None = None
    if host.ssh.user != "root":
        try:
            answer = way.run(["python3", "-"], stdin=sent, timeout_s=_PROBE_S, sudo=True)
            return read_facts(answer.stdout), None
        except SudoRefused as error:
            refused = error
        except FactsUnreadable:
            reason = answer.complaint or _("nothing was printed")
            refused = SudoRefused(host=host.name, user=host.ssh.user, reason=reason)
    answer = way.run(["python3", "-"], stdin=sent, timeout_s=_PROBE_S)
    try:
        return read_facts(answer.stdout), refused
    except FactsUnreadable as error:
        raise FactsUnreadable(answer.complaint or str(error)) from error


# --- the shared storage ---------------------------------------------------------------------------


def _same_storage(
    site: Site,
    needs: BundleNeeds | None,
    remotes: Mapping[str, Way],
    known: Mapping[str, HostFacts],
    threads: ThreadPoolExecutor,
) -> list[HostFinding]:
    """One host makes a file on the shared storage; the others must see it. It is removed."""
    users = [host for host in site.hosts if host.name in known and known[host.name].uid == 0]
    users = [host for host in users if host_needs(site, host, needs).shared is not None]
    users = [host for host in users if _mounted(site, host, known)]
    if not users:
        return []
    path = host_needs(site, users[0], needs).shared
    assert path is not None
    first, *others = users
    try:
        made = remotes[first.name].run(
            ["mktemp", "--tmpdir=" + path, ".sovctl-check-XXXXXXXXXX"],
            timeout_s=_COMMAND_S,
            sudo=True,
        )
    except ApplianceError as error:
        return [_storage(first, error.sentences()[1])]
    name = _file_in(path, made.stdout)
    if made.status != 0 or name is None:
        text = _("root cannot write to {path}: {reason}")
        return [_storage(first, text.format(path=path, reason=made.complaint))]

    def look(host: Host) -> HostFinding:
        try:
            found = remotes[host.name].run(["test", "-e", name], timeout_s=_COMMAND_S, sudo=True)
        except ApplianceError as error:
            return _storage(host, error.sentences()[1])
        if found.status != 0:
            text = _("{path} is not the file system that {other} has there")
            return _storage(host, text.format(path=path, other=first.name))
        text = _("{path} is the same as on {other}").format(path=path, other=first.name)
        return HostFinding(host.name, "storage", "pass", text)

    try:
        findings = list(threads.map(look, others))
    finally:
        left = _remove(first, remotes[first.name], name)
    return findings + left


def _file_in(path: str, printed: bytes) -> str | None:
    """The file that mktemp named last, if it is ours and directly in ``path``: it is removed."""
    lines = printed.decode(errors="replace").split("\n")
    name = next((line for line in reversed(lines) if line), "")
    ours = re.fullmatch(re.escape(path.rstrip("/")) + r"/\.sovctl-check-[A-Za-z0-9]+", name)
    return name if ours else None


def _remove(host: Host, way: Way, name: str) -> list[HostFinding]:
    """Remove the file; what is found if that cannot be done."""
    try:
        done = way.run(["rm", "-f", "--", name], timeout_s=_COMMAND_S, sudo=True)
        if done.status == 0:
            return []
        reason = done.complaint
    except ApplianceError as error:
        reason = error.sentences()[1]
    text = _("the empty file {name} could not be removed: {reason}")
    remedy = _("Remove it: 'rm {name}'.").format(name=name)
    return [
        HostFinding(host.name, "storage", "warn", text.format(name=name, reason=reason), remedy)
    ]


def _mounted(site: Site, host: Host, known: Mapping[str, HostFacts]) -> bool:
    needs = host_needs(site, host, None)
    found = known[host.name].folder(needs.shared) if needs.shared else None
    return found is not None and found.exists


def _storage(host: Host, text: str) -> HostFinding:
    remedy = _("Mount the same export on every host; for NFS with 'no_root_squash'.")
    return HostFinding(host.name, "storage", "fail", text, remedy)
