"""``sovctl start``, ``stop``, ``status``, ``doctor`` and ``logs``."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import Console, amount
from appliance.cli.options import with_console
from appliance.cli.site_option import chosen_site, with_site
from appliance.errors import ExitCode, NoSuchLog, NotInstalled, SiteNotInstalled
from appliance.i18n import _
from appliance.layout import Home, SitePlace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from appliance.install.overview import Overview

_FOLLOW_S = 0.3


@click.command(short_help=_("Start the installed appliance."))
@click.option("--port", type=click.IntRange(1, 65535), help=_("Port on 127.0.0.1."))
@click.option("--unsealed", is_flag=True, help=_("Run without the network seal. Recorded."))
@with_console
def start(console: Console, *, port: int | None, unsealed: bool) -> None:
    """Start the current release and wait until it is healthy. Does nothing if it runs."""
    from appliance.cluster import lifecycle
    from appliance.install import lock
    from appliance.install.embedded import DEFAULT_PORT, damaged
    from appliance.install.preflight import next_free_port
    from appliance.store.releases import Releases

    home = Home.from_environment()
    release = Releases(home).current()
    if release is None:
        raise NotInstalled(home=home.root)
    problem = damaged(release)
    if problem is not None:
        raise problem
    with lock.hold(home, "sovctl start"):
        chosen = port or next_free_port(DEFAULT_PORT) or DEFAULT_PORT
        endpoint = lifecycle.start(home, release.folder, chosen, console, sealed=not unsealed)
    value = {
        "endpoint": endpoint.url,
        "sealed": endpoint.sealed,
        "ca": str(endpoint.ca),
        "release": release.id,
    }
    sealed = _("sealed") if endpoint.sealed else _("NOT sealed")
    text = _("{release} runs at {url}, {sealed}.")
    console.result(value, text.format(release=release.id, url=endpoint.url, sealed=sealed))


@click.command(short_help=_("Stop the running appliance."))
@with_console
def stop(console: Console) -> None:
    """Stop the appliance in order. Does nothing if it does not run."""
    from appliance.cluster import lifecycle
    from appliance.install import lock

    home = Home.from_environment()
    if not home.root.is_dir():
        raise NotInstalled(home=home.root)
    with lock.hold(home, "sovctl stop"):
        ran = lifecycle.state(home).running
        lifecycle.stop(home, console)
    text = _("The appliance is stopped.") if ran else _("The appliance was not running.")
    console.result({"stopped": ran}, text)


@click.command(short_help=_("What runs, what is installed, what it uses."))
@with_site
@with_console
def status(console: Console) -> None:
    """Show releases, models, adapters, jobs, seal, ledger head and disk by area.

    Works when the appliance is stopped too; it then knows less. For a site it shows what the site's
    gateway says.
    """
    from appliance.install.overview import look

    home = Home.from_environment()
    place = chosen_site(home)
    if place is not None:
        _site_status(console, place)
        return
    overview = look(home, lambda: _account(home))
    console.result(overview.as_json(), _status_text(overview))


@click.command(short_help=_("Check this machine and installation; name remedies."))
@with_console
def doctor(console: Console) -> int:
    """Check everything that can be wrong and say how to mend it. Status 8 if something is."""
    from appliance.install.doctor import examine

    home = Home.from_environment()
    findings = examine(home, lambda: _account(home))
    healthy = all(finding.level != "fail" for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"  {finding.level:<5} {finding.check:<14} {finding.text}")
        if finding.remedy:
            lines.append(f"        → {finding.remedy}")
    lines.append(_("All is well.") if healthy else _("Something is wrong; see the arrows."))
    value = {"healthy": healthy, "checks": [asdict(finding) for finding in findings]}
    console.result(value, "\n".join(lines))
    return int(ExitCode.OK if healthy else ExitCode.VERDICT)


@click.command(short_help=_("Show or follow the logs."))
@click.argument("name", required=False, metavar="[COMPONENT]")
@click.option("--follow", "-f", is_flag=True, help=_("Go on showing what is written."))
@click.option("--component", "-c", help=_("One of them: supervisor, gateway, serve, …"))
@click.option("--lines", "-n", type=click.IntRange(0), default=40, show_default=True)
@with_console
def logs(
    console: Console, *, name: str | None, follow: bool, component: str | None, lines: int
) -> None:
    """Show the end of the logs, of one COMPONENT (supervisor, gateway, serve …) or of all."""
    from appliance.install.overview import log_files

    home = Home.from_environment()
    component = component or name
    known = log_files(home)
    if not known and not home.marker.exists():
        raise NotInstalled(home=home.root)
    if component is not None and component not in known:
        names = ", ".join(known) or _("none yet")
        raise NoSuchLog(component=component, known=names)
    chosen = known if component is None else {component: known[component]}
    ends = {name: _end_of(path, lines) for name, path in chosen.items()}
    text = "\n".join(
        _labelled(name, line, len(chosen)) for name, end in ends.items() for line in end
    )
    console.result(ends, text)
    if follow and not console.as_json:
        _follow(chosen)


def _site_status(console: Console, place: SitePlace) -> None:
    """What a site's gateway says of the whole site."""
    from appliance.install.site_endpoint import Endpoint

    endpoint = Endpoint.read(place)
    if endpoint is None:
        raise SiteNotInstalled(site=place.name, path=place.endpoint)
    account = _account(place.home)
    rows = [
        (_("site"), place.name),
        (_("API"), f"{endpoint.url}/v1"),
        (_("release"), endpoint.release or "–"),
    ]
    replicas = (account.get("serve") or {}).get("replicas") or ()
    ready = sum(bool(replica.get("ready")) for replica in replicas)
    proof = _("firewall; 'sovctl egress prove --site {name}' proves it").format(name=place.name)
    rows += [
        (_("seal"), proof),
        (_("replicas"), _("{ready} of {all} ready").format(ready=ready, all=len(replicas))),
    ]
    for title, key in (
        (_("nodes"), "nodes"),
        (_("models"), "models"),
        (_("adapters"), "adapters"),
        (_("jobs"), "jobs"),
    ):
        if key in account:
            rows.append((title, _listed(account[key])))
    value = {"site": place.name, "endpoint": endpoint.url, "release": endpoint.release, **account}
    console.result(value, "\n".join(f"{title:<11} {text}" for title, text in rows))


# --- reading --------------------------------------------------------------------------------------


def _account(home: Home) -> Mapping[str, Any]:
    from appliance.cli.gateway_client import GatewayClient

    with GatewayClient.from_home(home) as gateway:
        return gateway.get("/admin/v1/status")


def _end_of(path: Path, lines: int) -> list[str]:
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=lines)]


def _labelled(name: str, line: str, count: int) -> str:
    return f"{name:<10} | {line}" if count > 1 else line


def _follow(chosen: Mapping[str, Path]) -> None:
    """Print what is appended until ^C; starts again at the top of a log that was rotated."""
    places = {name: path.stat().st_size for name, path in chosen.items()}
    while True:
        for name, path in chosen.items():
            size = path.stat().st_size if path.exists() else 0
            if size < places[name]:
                places[name] = 0
            if size > places[name]:
                with path.open("rb") as file:
                    file.seek(places[name])
                    data = file.read(size - places[name])
                whole = data[: data.rfind(b"\n") + 1]
                places[name] += len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    click.echo(_labelled(name, line, len(chosen)))
        time.sleep(_FOLLOW_S)


# --- showing --------------------------------------------------------------------------------------


def _status_text(overview: Overview) -> str:
    sealed = {True: _("sealed"), False: _("NOT sealed"), None: "–"}[overview.sealed]
    rows = [
        (_("state"), f"{overview.phase} {overview.detail}".strip()),
        (_("API"), f"{overview.endpoint}/v1" if overview.endpoint else "–"),
        (_("seal"), sealed),
        (_("release"), overview.release or "–"),
        (_("previous"), overview.previous or "–"),
        (_("models"), ", ".join(overview.models) or "–"),
    ]
    for title, key in ((_("nodes"), "nodes"), (_("adapters"), "adapters"), (_("jobs"), "jobs")):
        if key in overview.live:
            rows.append((title, _listed(overview.live[key])))
    if overview.ledger is not None:
        head = _("{size} entries, root {root}…")
        text = head.format(size=overview.ledger.size, root=overview.ledger.root[:16])
        rows.append((_("ledger"), text))
    areas = [f"{name} {amount(size, 'bytes')}" for name, size in overview.disk.items() if size]
    rows.append((_("disk"), ", ".join([*areas, f"{amount(overview.free, 'bytes')} " + _("free")])))
    if overview.break_glass:
        text = _("installed past its expiry: {reason}")
        rows.append((_("glass broken"), text.format(reason=overview.break_glass.get("reason"))))
    if overview.busy:
        rows.append((_("busy"), overview.busy))
    if overview.interrupted:
        text = _("the installation of {release}; run it again to go on")
        rows.append((_("broken off"), text.format(release=overview.interrupted)))
    if overview.problem:
        rows.append((_("problem"), overview.problem))
    return "\n".join(f"{title:<11} {text}" for title, text in rows)


def _listed(value: object) -> str:
    """A list of records as their names and states."""
    if not isinstance(value, list):
        return str(value)
    return ", ".join(_one(record) for record in value) or "–"


def _one(record: object) -> str:
    if not isinstance(record, dict):
        return str(record)
    name = next((record[key] for key in ("name", "id", "address", "node_id") if key in record), "?")
    state = record.get("status") or record.get("state")
    return f"{name} ({state})" if state else str(name)
