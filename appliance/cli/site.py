"""``sovctl site``: write a site file, check it, trust its hosts' keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.cli.site_hosts import break_lock, host_keys
from appliance.cli.site_init import init
from appliance.errors import ExitCode
from appliance.i18n import _

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.manifests.site import Site
    from appliance.manifests.site_advice import Advice

_FILE = click.Path(path_type=Path)


@click.group()
def site() -> None:
    """Describe a site of several machines, and know its hosts."""


site.add_command(init)
site.add_command(host_keys)
site.add_command(break_lock)


@site.command()
@click.argument("site_file", type=_FILE)
@click.option("--hosts", "ask_hosts", is_flag=True, help=_("Look at the hosts too, over SSH."))
@with_console
def check(console: Console, site_file: Path, *, ask_hosts: bool) -> int:
    """Read SITE_FILE, say what it means and what had better be otherwise.

    With --hosts every host is looked at too, as before an install but without a bundle. Exit status
    4 if a host is unfit.
    """
    from appliance.egress.policy import flow_matrix
    from appliance.manifests.document import load
    from appliance.manifests.site import Site
    from appliance.manifests.site_advice import advise

    known = load(Site, site_file)
    advice = advise(known)
    flows = flow_matrix(known)
    value: dict[str, Any] = {
        "site": known.name,
        "hosts": {host.name: _host_json(known, host.name) for host in known.hosts},
        "flows": len(flows),
        "advice": [each.as_json() for each in advice],
    }
    count = _("{n} flows are allowed between hosts and to others; everything else is refused.")
    parts = [_hosts_text(known), count.format(n=len(flows)), _advice_text(advice)]
    failed = False
    if ask_hosts:
        text, report, failed = _examined(console, known)
        value["preflight"] = report
        parts.append(text)
    console.result(value, "\n\n".join(part for part in parts if part))
    return int(ExitCode.PRECONDITION) if failed else int(ExitCode.OK)


def _examined(console: Console, known: Site) -> tuple[str, Mapping[str, Any], bool]:
    from appliance.layout import Home, SitePlace
    from appliance.provision.plan_table import findings_table
    from appliance.provision.survey import survey

    place = SitePlace(Home.from_environment(), known.name)
    report = survey(known, place.known_hosts, console)
    return findings_table(report), report.as_json(), report.failed


def _host_json(known: Site, name: str) -> dict[str, Any]:
    host = known.host(name)
    return {
        "roles": sorted(host.roles),
        "domain": host.domain,
        "addresses": {each.network: str(each.address) for each in host.interfaces},
        "gpus": host.gpus.count,
    }


def _hosts_text(known: Site) -> str:
    from appliance.cli.tables import columns

    rows = [
        (
            host.name,
            ", ".join(sorted(host.roles)),
            host.domain or "-",
            ", ".join(f"{each.network} {each.address}" for each in host.interfaces),
            host.gpus.count or "-",
        )
        for host in known.hosts
    ]
    return columns((_("HOST"), _("ROLES"), _("DOMAIN"), _("ADDRESSES"), _("GPUS")), rows)


def _advice_text(advice: tuple[Advice, ...]) -> str:
    if not advice:
        return _("Nothing to advise.")
    lines = [_("Advice:")]
    for each in advice:
        lines.append(f"  {each.subject}: {each.what} {each.why}")
        lines.append(f"        → {each.fix}")
    return "\n".join(lines)
