"""``sovctl plan`` and ``install`` with ``--site``: the bundle goes to the hosts of a site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli.console import Console
from appliance.cli.site_hosts import confirm_key
from appliance.errors import ApplianceError, ExitCode, HostUnreachable
from appliance.i18n import _
from appliance.layout import Home, SitePlace

if TYPE_CHECKING:
    from appliance.bundle.opening import Opening
    from appliance.install.plan import Plan
    from appliance.install.site import SiteInstallation
    from appliance.manifests.bundle import BundleManifest
    from appliance.manifests.site import Site
    from appliance.progress import Progress
    from appliance.provision.outcome import Outcome
    from appliance.provision.preflight import Report
    from appliance.provision.ssh import Remote
    from appliance.trust.fingerprint import Fingerprint
    from appliance.trust.verifier import Emergency


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was typed, and what an operator trusts."""

    bundle: Path
    site_file: Path
    site: Site
    opening: Opening
    fingerprint: Fingerprint | None
    emergency: Emergency | None


def plan_site(console: Console, wanted: Wanted) -> int:
    """Say what installing would do on every host; change nothing there. 4 if one is unfit."""
    from appliance.cli.install import plan_json

    try:
        with _opened(console, wanted, "sovctl plan") as (site, installation, preflight):
            report = preflight.look(console)
            decided = installation.plan()
            foretold, trouble = _foretell(installation, console)
    except HostUnreachable as error:
        return _without_plan(console, wanted, error)
    value = {
        **plan_json(decided),
        "site": site.name,
        "preflight": report.as_json(),
        "hosts": _changes_json(foretold),
        "changes": preflight.changes(report, foretold),
        "check_mode_error": trouble.as_json() if trouble else None,
    }
    tables = preflight.tables(report, foretold)
    parts = [_plan_text(site, decided), tables, _trouble_text(trouble)]
    console.result(value, "\n\n".join(part for part in parts if part))
    return int(ExitCode.PRECONDITION if report.failed else ExitCode.OK)


def _without_plan(console: Console, wanted: Wanted, error: HostUnreachable) -> int:
    """One host is away, and its key was never seen: say how the others are all the same."""
    from appliance.provision.plan_table import findings_table
    from appliance.provision.survey import survey

    site = wanted.site
    place = SitePlace(Home.from_environment(), site.name)
    report = survey(site, place.known_hosts, console)
    if not report.failed:
        raise error
    value = {"site": site.name, "preflight": report.as_json(), "error": error.as_json()}
    text = _("There is no plan yet: {what}").format(what=error.sentences()[0])
    console.result(value, f"{findings_table(report)}\n\n{text}")
    return int(ExitCode.PRECONDITION)


def install_site(console: Console, wanted: Wanted) -> None:
    """Install, from wherever an earlier run stopped."""
    with _opened(console, wanted, "sovctl install") as (site, installation, _preflight):
        decided = installation.plan()
        console.say(_plan_text(site, decided))
        installation.carry_out(decided, console)
        value = _outcome_json(site, installation)
    console.result(value, _outcome_text(value))


class _Preflight:
    """Looks at the hosts, for the plan's tables and for the installation's first phase alike."""

    def __init__(self, site: Site, remotes: Mapping[str, Remote], manifest: BundleManifest) -> None:
        from appliance.provision.needs import bundle_needs

        self._site = site
        self._remotes = remotes
        self._needs = bundle_needs(manifest)

    def look(self, progress: Progress) -> Report:
        """Ask every host."""
        from appliance.provision.preflight import examine

        return examine(self._site, self._remotes, self._needs, progress)

    def tables(self, report: Report, foretold: Outcome | None) -> str:
        """The findings, and what would change on each host."""
        from appliance.provision.plan_table import render

        return render(report, foretold, self._needs)

    def changes(self, report: Report, foretold: Outcome | None) -> Mapping[str, Any]:
        """The latter for machines: bytes to write and changed tasks by role, for each host."""
        from appliance.provision.plan_table import changes

        return changes(report, foretold, self._needs)


@contextmanager
def _opened(
    console: Console, wanted: Wanted, command: str
) -> Iterator[tuple[Site, SiteInstallation, _Preflight]]:
    """Everything that planning and installing have in common: locks, bundle, keys, connections."""
    from appliance.install import lock
    from appliance.install.bundle_in import admit
    from appliance.install.home import claim
    from appliance.install.site import SiteInstallation, keep_site_file, trust_hosts
    from appliance.provision.ssh import connections

    site = wanted.site
    home = Home.from_environment()
    place = SitePlace(home, site.name)
    claim(home)
    ask = confirm_key(console)
    with (
        lock.hold(place, f"{command} {wanted.bundle} --site {wanted.site_file}"),
        admit(
            wanted.bundle, home, wanted.fingerprint, wanted.opening, wanted.emergency
        ) as admitted,
    ):
        trust_hosts(site, place, {}, ask)
        keep_site_file(place, wanted.site_file)
        with connections(site, place) as remotes:
            preflight = _Preflight(site, remotes, admitted.content.manifest)
            with SiteInstallation(
                site,
                place,
                admitted,
                remotes,
                lambda _remotes, progress: preflight.look(progress).findings,
            ) as installation:
                yield site, installation, preflight


def _foretell(
    installation: SiteInstallation, console: Console
) -> tuple[Outcome | None, ApplianceError | None]:
    """Ansible's check mode; that it cannot look into the future as far as it is no failure."""
    try:
        return installation.foretell(console), None
    except ApplianceError as error:
        return None, error


# --- showing --------------------------------------------------------------------------------------


def _plan_text(site: Site, decided: Plan) -> str:
    """The phases for people."""
    from appliance.cli.install import steps_text

    title = _("Plan for {release} on site {site} ({n} hosts):")
    text = title.format(release=decided.release, site=site.name, n=len(site.hosts))
    return f"{text}\n{steps_text(decided)}"


def _changes_json(foretold: Outcome | None) -> dict[str, Any] | None:
    if foretold is None:
        return None
    return {name: list(tally.changes) for name, tally in foretold.hosts.items()}


def _trouble_text(trouble: ApplianceError | None) -> str:
    if trouble is None:
        return ""
    what, why, _fix = trouble.sentences()
    text = _("What would change on the hosts is known only up to here: {what} {why}")
    return text.format(what=what, why=why)


def _count(changes: Sequence[str]) -> str:
    return _("{n} changes").format(n=len(changes)) if changes else _("nothing")


def _outcome_json(site: Site, installation: SiteInstallation) -> dict[str, Any]:
    from appliance.install.site_endpoint import Endpoint

    endpoint = Endpoint.read(SitePlace(Home.from_environment(), site.name))
    assert endpoint is not None  # carried out whole
    outcome, verdict = installation.outcome, installation.verdict
    hosts = {
        host.name: {
            "ok": tally.ok if tally else 0,
            "changed": list(tally.changes) if tally else [],
            "bytes": installation.sent[host.name].size if host.name in installation.sent else 0,
        }
        for host in site.hosts
        for tally in [outcome.hosts.get(host.name) if outcome else None]
    }
    return {
        "site": site.name,
        "release": installation.release_id,
        "changed": outcome.changed if outcome else 0,
        "hosts": hosts,
        "seal": verdict.answer if verdict else None,
        "endpoint": endpoint.url,
        "ca": str(endpoint.ca),
        "operator_key": str(endpoint.operator_key),
    }


def _outcome_text(value: Mapping[str, Any]) -> str:
    from appliance.cli.console import amount

    text = _("{release} runs on site {site}, sealed.")
    lines = [text.format(release=value["release"], site=value["site"]), ""]
    for name, host in value["hosts"].items():
        size = amount(host["bytes"], "bytes")
        lines.append(f"  {name:<14} {_count(host['changed'])}, {size} {_('copied')}")
    lines += [
        "",
        f"  {_('API'):<14} {value['endpoint']}/v1",
        f"  {_('CA file'):<14} {value['ca']}",
        f"  {_('operator key'):<14} {value['operator_key']}",
        "",
        _("Next: 'sovctl status --site {site}', 'sovctl chat MODEL --site {site}'").format(
            site=value["site"]
        ),
    ]
    return "\n".join(lines)
