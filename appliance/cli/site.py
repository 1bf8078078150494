"""``sovctl site``: write a site file, check it, trust its hosts' keys."""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.cli.site_hosts import break_lock, host_keys
from appliance.errors import ExitCode, SiteFileExists
from appliance.i18n import _

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.manifests.site import Site
    from appliance.manifests.site_advice import Advice
    from appliance.manifests.site_draft import Answers, NewHost

_FILE = click.Path(path_type=Path)


@click.group()
def site() -> None:
    """Describe a site of several machines, and know its hosts."""


site.add_command(host_keys)
site.add_command(break_lock)


# --- init -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Typed:
    """What was given as options; None and empty: to be asked, or the default."""

    name: str | None
    hosts: tuple[str, ...]
    user: str | None
    key: Path | None
    names: tuple[str, ...]
    shared: str | None
    time_servers: tuple[str, ...]


@site.command()
@click.option("--out", type=_FILE, default=Path("site.yaml"), show_default=True)
@click.option("--force", is_flag=True, help=_("Replace a file that is there."))
@click.option("--name", help=_("The site's name."))
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME=ADDRESS",
    help=_("A machine, the head first; may be given several times."),
)  # fmt: skip
@click.option("--user", help=_("Who logs in over SSH; other than root, with sudo."))
@click.option("--key", type=_FILE, help=_("Private SSH key; without one your agent is asked."))
@click.option(
    "--gateway-name", "names", multiple=True, metavar="NAME",
    help=_("A name that applications use for the gateway; may be given several times."),
)  # fmt: skip
@click.option("--shared", metavar="PATH", help=_("Folder that every host mounts."))
@click.option(
    "--time-server", "time_servers", multiple=True, metavar="ADDRESS",
    help=_("An NTP server inside; may be given several times."),
)  # fmt: skip
@with_console
def init(console: Console, out: Path, force: bool, **typed: Any) -> None:
    """Ask for hosts and addresses, and write a site file with comments.

    On a terminal what is not given is asked; elsewhere --host is needed and the rest has defaults.
    """
    from appliance.cluster.files import write_whole
    from appliance.manifests.document import parse
    from appliance.manifests.site import Site
    from appliance.manifests.site_draft import draft

    if out.exists() and not force:
        raise SiteFileExists(path=out)
    given = _Typed(**typed)
    somebody = console.interactive and sys.stdin.isatty()
    answers = _asked(given) if somebody else _taken(given)
    text = draft(answers)
    parse(Site, text.encode(), out)
    write_whole(out, text.encode())
    next_step = _("Next: fill in host_keys, then 'sovctl site check {out}'.").format(out=out)
    console.result({"file": str(out), "hosts": len(answers.hosts)}, f"{out}\n{next_step}")


def _taken(given: _Typed) -> Answers:
    """The answers from options alone."""
    if not given.hosts:
        raise click.UsageError(_("Name the hosts: --host n1=10.20.0.11 --host n2=10.20.0.12"))
    hosts = tuple(_host(text, given.user or "root") for text in given.hosts)
    return _answers(given, hosts, given.name or "site", given.shared or _shared(hosts))


def _asked(given: _Typed) -> Answers:
    """The answers from options, and from whoever sits at the terminal for the rest."""
    name = given.name or click.prompt(_("Name of the site"), default="site", err=True)
    user = given.user or click.prompt(_("User for SSH (root, or one with sudo)"), "root", err=True)
    hosts = tuple(_host(text, user) for text in given.hosts)
    if not hosts:
        click.echo(_("The hosts as NAME=ADDRESS, the head first; an empty line ends."), err=True)
        while typed := click.prompt(
            f"  {len(hosts) + 1}", default="", show_default=False, err=True
        ):
            hosts = (*hosts, _host(typed, user))
    if not hosts:
        raise click.UsageError(_("A site has at least one host."))
    shared = given.shared
    if shared is None and len(hosts) > 1:
        question = _("Folder that every host mounts (NFS or the like)")
        shared = click.prompt(question, default="/srv/shared", err=True)
    return _answers(given, hosts, name, shared)


def _line(label: str) -> str:
    typed: str = click.prompt(label, default="", show_default=False, err=True)
    return typed.strip()


def _answers(given: _Typed, hosts: tuple[NewHost, ...], name: str, shared: str | None) -> Answers:
    from appliance.manifests.site_draft import Answers, smallest_network

    addresses = tuple(host.address for host in hosts)
    return Answers(
        name=name,
        hosts=hosts,
        network=ipaddress.ip_network(smallest_network(addresses)),
        names=given.names,
        shared=shared,
        time_servers=given.time_servers,
        key=str(given.key.expanduser().absolute()) if given.key else None,
    )


def _shared(hosts: tuple[NewHost, ...]) -> str | None:
    return "/srv/shared" if len(hosts) > 1 else None


def _host(text: str, user: str) -> NewHost:
    from appliance.manifests.site_draft import NewHost

    name, equals, address = text.partition("=")
    try:
        if not equals:
            raise ValueError(text)
        return NewHost(name.strip(), ipaddress.ip_address(address.strip()), user)
    except ValueError as error:
        raise click.BadParameter(_("{text} is not NAME=ADDRESS").format(text=text)) from error


# --- check ----------------------------------------------------------------------------------------


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
