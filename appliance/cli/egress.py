"""``sovctl egress``: the state of the seal, and the attempt to get out of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.errors import ExitCode, SealUnknown
from appliance.i18n import _
from appliance.layout import Home

if TYPE_CHECKING:
    from appliance.egress.live import Observation


@click.group()
def egress() -> None:
    """State and prove that nothing gets out."""


@egress.command()
@with_console
def status(console: Console) -> int:
    """Look at the running seal, as recorded and as the kernel shows it now.

    Sends nothing. Exit status 8 if it is not closed.
    """
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
@with_console
def prove(console: Console) -> int:
    """Try to get out, from every place where code of the appliance runs.

    Probes go to documentation addresses only. Exit status 8 unless the verdict is closed.
    """
    from appliance.cli.gateway_client import GatewayClient

    title = _("Probing from gateway, Serve replica, Ray task and Ray job")
    gateway = GatewayClient.from_home(Home.from_environment())
    with gateway, console.task(title, None, "steps"):
        verdict = gateway.post("/admin/v1/egress/prove", {})
    console.result(verdict, _table(verdict))
    return int(ExitCode.OK if verdict.get("answer") == "closed" else ExitCode.VERDICT)


def _table(verdict: dict[str, Any]) -> str:
    """One line a probe, grouped by place, then the answer."""
    lines = []
    for place in verdict.get("places", []):
        lines.append(f"{place['name']}: {place['answer']}")
        for result in place["results"]:
            shown = (result["probe"], result["target"], result["outcome"], result["detail"])
            lines.append("  {:<12} {:<18} {:<14} {}".format(*shown))
    meaning = {
        "closed": _("closed: nothing gets out, and the same probes reach a listener inside."),
        "open": _("OPEN: something got out, or a place is not sealed. Stop the appliance."),
    }
    unclear = _("inconclusive: a probe or its control did not work; this proves nothing.")
    return "\n".join([*lines, "", meaning.get(str(verdict.get("answer")), unclear)])
