"""``sovctl egress``: the state of the seal, and the attempt to get out of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.cli.site_option import chosen_site, named_site, with_site
from appliance.errors import ExitCode, SealUnknown
from appliance.i18n import _
from appliance.layout import Home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from appliance.egress.live import Observation
    from appliance.egress.probe import ProbeResult
    from appliance.layout import SitePlace


@click.group()
def egress() -> None:
    """State and prove that nothing gets out."""


@egress.command()
@with_site
@with_console
def status(console: Console) -> int:
    """Look at the running seal, as recorded and as the kernel shows it now.

    On a site: at the firewall of every host. Sends nothing. Exit status 8 if it is not closed.
    """
    named = _named()
    if named is not None:
        return _site_verdict(console, named, attempts=False)

    from appliance.cluster import lifecycle
    from appliance.cluster.files import read_object
    from appliance.egress import live

    home = Home.from_environment()
    if not lifecycle.state(home).running:
        raise SealUnknown(home=home.root, reason=_("The appliance is not running."))
    process = lifecycle.seal_process(home)
    if process is None:
        value: dict[str, Any] = {"closed": False, "recorded": None, "live": None}
        console.result(value, _("open: the appliance was started without a seal (--unsealed)"))
        return int(ExitCode.VERDICT)
    recorded = read_object(home.run / "seal.json")
    try:
        seen = live.observe(process)
    except OSError as error:
        raise SealUnknown(home=home.root, reason=str(error)) from error
    apart = seen.namespaces["net"] != live.observe("self").namespaces["net"]
    closed = seen.sealed and apart and recorded.get("namespaces") == seen.namespaces
    value = {"closed": closed, "pid": process, "recorded": recorded, "live": asdict(seen)}
    console.result(value, _describe(seen, recorded, closed=closed))
    return int(ExitCode.OK if closed else ExitCode.VERDICT)


def _describe(seen: Observation, recorded: dict[str, Any], *, closed: bool) -> str:
    mounts = recorded.get("file_system")
    mounts = mounts if isinstance(mounts, dict) else {}
    powerless = all(int(bits, 16) == 0 for bits in seen.capabilities.values())
    rows = [
        (_("seal"), _("closed") if closed else _("NOT CLOSED")),
        (_("since"), str(recorded.get("at", "?"))),
        (_("interfaces"), ", ".join(seen.interfaces)),
        (_("routes out"), "; ".join(seen.routes) or _("none")),
        (_("capabilities"), _("none") if powerless else str(seen.capabilities)),
        (_("socket families"), ", ".join(recorded.get("allowed_families", []))),
        (_("system call filter"), _("on") if seen.seccomp == 2 else _("OFF")),
        (_("writable"), ", ".join(mounts.get("writable", []))),
        (_("but not"), ", ".join(mounts.get("protected", []))),
        (_("hidden"), ", ".join(mounts.get("hidden_folders", []))),
    ]
    if mounts.get("not_read_only"):
        rows.append((_("not read-only"), ", ".join(mounts["not_read_only"])))
    width = max(len(name) for name, _value in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


@egress.command()
@with_site
@with_console
def prove(console: Console) -> int:
    """Try to get out, from every place where code of the appliance runs.

    On a site: from every host as root and as the appliance's user, too. Probes go to
    documentation addresses only. Exit status 8 unless the verdict is closed.
    """
    named = _named()
    if named is not None:
        return _site_verdict(console, named, attempts=True)

    from appliance.cli.gateway_client import GatewayClient

    title = _("Probing from gateway, Serve replica, Ray task and Ray job")
    gateway = GatewayClient.from_home(Home.from_environment())
    with gateway, console.task(title, None, "steps"):
        verdict = gateway.post("/admin/v1/egress/prove", {})
    console.result(verdict, _table(verdict))
    return int(ExitCode.OK if verdict.get("answer") == "closed" else ExitCode.VERDICT)


def _named() -> str | None:
    """The site that is meant, by name or file, as with every other command; None for this machine.

    A proof of its gateway alone would leave out every host's firewall.
    """
    if (named := named_site()) is not None:
        return named
    place = chosen_site(Home.from_environment())
    return None if place is None else place.name


def _site_verdict(console: Console, name_or_file: str, *, attempts: bool) -> int:
    """Ask every host, and for a proof the gateway too, all at once."""
    from concurrent.futures import ThreadPoolExecutor

    from appliance.cli.site_option import open_site
    from appliance.egress.verdict import judge
    from appliance.install.secrets import record
    from appliance.provision import proof
    from appliance.provision.ssh import connections

    site, place = open_site(name_or_file)
    title = _("Probing {n} hosts and what runs on them").format(n=len(site.hosts))
    with (
        console.task(title, None, "steps"),
        connections(site, place) as remotes,
        ThreadPoolExecutor(1) as beside,
    ):
        asked = beside.submit(_gateway_places, place) if attempts else None
        places = proof.examine(site, remotes, attempts=attempts)
        if asked is not None:
            places |= asked.result()
    if not attempts:
        answer = proof.as_made(places)
        hosts = {name: [asdict(result) for result in each] for name, each in places.items()}
        rows = [{"name": name, "results": each} for name, each in hosts.items()]
        value: dict[str, Any] = {"site": site.name, "answer": answer, "places": rows}
        console.result(value, _state(value))
        return int(ExitCode.OK if answer == "closed" else ExitCode.VERDICT)
    verdict = judge(places)
    closed = verdict.answer == "closed"
    subject = {"site": site.name, "verdict": verdict.answer, "places": str(len(places))}
    record(place.home, "egress.prove", subject, "ok" if closed else "failed")
    value = {"site": site.name, **verdict.as_json()}
    console.result(value, _table(value))
    return int(ExitCode.OK if closed else ExitCode.VERDICT)


def _state(value: dict[str, Any]) -> str:
    """One line a fact, grouped by host, then the answer."""
    meaning = {
        "closed": _("closed: every host is as site.yaml says. Nothing was tried; 'prove' does."),
        "open": _("OPEN: a host is not as site.yaml says."),
    }
    unclear = _("inconclusive: something could not be found out.")
    return "\n".join([*_lines(value["places"]), "", meaning.get(value["answer"], unclear)])


def _gateway_places(place: SitePlace) -> dict[str, tuple[ProbeResult, ...]]:
    """What the site's gateway finds in its Ray cluster; unclear where it cannot be asked."""
    from appliance.cli.gateway_client import GatewayClient
    from appliance.egress.probe import ProbeResult
    from appliance.errors import ApplianceError
    from appliance.provision.proof import gateway_places

    try:
        with GatewayClient.from_site(place) as gateway:
            return gateway_places(gateway.post("/admin/v1/egress/prove", {}))
    except ApplianceError as error:
        return {"gateway": (ProbeResult("seal", "gateway", "unclear", str(error)),)}


def _table(verdict: dict[str, Any]) -> str:
    """One line a probe, grouped by place, then the answer."""
    meaning = {
        "closed": _("closed: nothing gets out, and the same probes reach a listener inside."),
        "open": _("OPEN: something got out, or a place is not sealed. Stop the appliance."),
    }
    unclear = _("inconclusive: a probe or its control did not work; this proves nothing.")
    lines = _lines(verdict.get("places", []))
    return "\n".join([*lines, "", meaning.get(str(verdict.get("answer")), unclear)])


def _lines(places: list[dict[str, Any]]) -> Iterator[str]:
    for place in places:
        yield f"{place['name']}: {place['answer']}" if "answer" in place else f"{place['name']}:"
        widths = [
            max((len(result[column]) for result in place["results"]), default=0)
            for column in ("probe", "target", "outcome")
        ]
        for result in place["results"]:
            cells = zip((result["probe"], result["target"], result["outcome"]), widths, strict=True)
            shown = "  ".join(f"{text:<{width}}" for text, width in cells)
            yield f"  {shown}  {result['detail']}"
