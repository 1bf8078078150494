"""What preflight and Ansible's check mode found, as people read it. Pure: values in, text out.

    print(findings_table(report))
    print(changes_table(report, outcome, bundle))

Of each host all that failed or warns is shown, with its remedy; what passed is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from appliance.i18n import _
from appliance.provision.checks_storage import written

if TYPE_CHECKING:
    from appliance.provision.finding import HostFinding
    from appliance.provision.needs import BundleNeeds
    from appliance.provision.outcome import Outcome
    from appliance.provision.preflight import Report


def findings_table(report: Report) -> str:
    """The findings of every host, in the site's order."""
    lines = [_("Checks of {n} hosts:").format(n=len(report.hosts))]
    width = max(map(len, report.hosts))
    for host in report.hosts:
        found = report.of(host)
        lines.append(f"  {host:<{width}}  {_counted(found)}")
        for finding in found:
            if finding.level != "pass":
                lines.append(f"    {finding.level:<4}  {finding.check:<11} {finding.text}")
                lines.append(f"          → {finding.remedy}")
    return "\n".join(lines)


def _counted(findings: Sequence[HostFinding]) -> str:
    levels = Counter(finding.level for finding in findings)
    texts = (
        (levels["fail"], _("{n} failed")),
        (levels["warn"], _("{n} warn")),
        (levels["pass"], _("{n} passed")),
    )
    return ", ".join(text.format(n=count) for count, text in texts if count)


def changes(
    report: Report, outcome: Outcome | None, bundle: BundleNeeds | None
) -> Mapping[str, dict[str, object]]:
    """What would change on each host, for machines: bytes to write, and tasks by role.

    ``bytes`` is None for a host that did not say what it has, ``tasks`` where check mode did not
    get to it.
    """
    return {
        host: {"bytes": _bytes(report, bundle, host), "tasks": _by_role(outcome, host)}
        for host in report.hosts
    }


def _bytes(report: Report, bundle: BundleNeeds | None, host: str) -> int | None:
    facts = report.facts.get(host)
    return written(bundle, facts) if facts is not None and bundle is not None else None


def _by_role(outcome: Outcome | None, host: str) -> dict[str, int] | None:
    tally = outcome.hosts.get(host) if outcome is not None else None
    if tally is None:
        return None
    return dict(Counter(change.partition(": ")[0] for change in tally.changes))


def changes_table(report: Report, outcome: Outcome | None, bundle: BundleNeeds | None) -> str:
    """The same for people: one host a line."""
    rows = [(_("host"), _("to write"), _("changes"), _("of these"))]
    for host, what in changes(report, outcome, bundle).items():
        size, tasks = what["bytes"], what["tasks"]
        assert isinstance(size, int | None) and isinstance(tasks, dict | None)
        rows.append(
            (
                host,
                _("unknown") if size is None else _size(size),
                _("unknown") if tasks is None else str(sum(tasks.values())),
                ", ".join(f"{role} {count}" for role, count in (tasks or {}).items()),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ("  ".join(f"{cell:<{w}}" for cell, w in zip(r, widths, strict=True)) for r in rows)
    title = _("What would change on the hosts:")
    return "\n".join([title, *(f"  {line.rstrip()}" for line in lines)])


def _size(count: int) -> str:
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} B"


def render(
    report: Report, outcome: Outcome | None = None, bundle: BundleNeeds | None = None
) -> str:
    """Both tables; the second only where there is something to say about changes."""
    if outcome is None and bundle is None:
        return findings_table(report)
    return f"{findings_table(report)}\n\n{changes_table(report, outcome, bundle)}"
