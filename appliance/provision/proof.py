"""Is the seal of a site closed? Ask every host, at once, and judge what they say.

    with connections(site, place) as remotes:
        places = examine(site, remotes)             # {"host n1": results, …}
    verdict = judge({**places, **gateway_places(answer)})

Each host runs :mod:`appliance.egress.host_probe` and answers within seconds. What it says becomes
:class:`~appliance.egress.probe.ProbeResult` like those of a Ray task, so that
:func:`appliance.egress.verdict.judge` has the last word: anything reached or not as it was made is
``open``, anything not known is ``inconclusive``.

What is looked at besides the attempts: that the rules in the kernel are the ones rendered from
``site.yaml``, that the next boot loads the same, that the guard runs, that there is no default
route, and that the firewall counted what was attempted. A host that does not answer is unclear.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from appliance.egress.host_probe import Order, program
from appliance.egress.probe import ProbeResult
from appliance.egress.ruleset import render
from appliance.egress.verdict import Answer, results_from_json
from appliance.errors import ApplianceError
from appliance.manifests.site import Host, Site
from appliance.provision.several import AT_ONCE
from appliance.provision.way import Way

USER: Final = "sovctl"
_SECONDS = 30.0  # half a second on an idle host
_COUNTERS = ("refused_tcp", "refused_udp", "refused_dns", "refused_icmp")
_SHOWN = 300
_NO_REPORT = (ValueError, RecursionError, TypeError, KeyError, AttributeError)


def examine(
    site: Site, remotes: Mapping[str, Way], *, attempts: bool = True, control: bool = False
) -> dict[str, tuple[ProbeResult, ...]]:
    """What each host says, by the name of the place. Blocks for seconds; raises nothing of a host.

    Without ``attempts`` nothing is sent: the firewall is read and compared. ``control`` makes the
    attempts whatever the state of the seal: only for hosts that are known to be unsealed.
    """

    def ask(host: Host) -> tuple[ProbeResult, ...]:
        order = order_for(site, host, attempts=attempts, control=control)
        try:
            done = remotes[host.name].run(
                ["python3", "-"], stdin=program(order), timeout_s=_SECONDS, sudo=True
            )
        except ApplianceError as error:
            return (ProbeResult("ssh", host.name, "unclear", str(error)),)
        if done.status:
            return (ProbeResult("ssh", host.name, "unclear", done.complaint),)
        return results_of(done.stdout, attempts=attempts)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(ask, site.hosts)
        return {f"host {host.name}": each for host, each in zip(site.hosts, found, strict=True)}


def order_for(site: Site, host: Host, *, attempts: bool, control: bool = False) -> Order:
    """What ``host`` is asked. Pure."""
    return Order(
        ruleset=render(site, host),
        addresses=[str(interface.address) for interface in host.interfaces],
        user=USER,
        attempts=attempts,
        control=control,
    )


def results_of(answer: bytes, *, attempts: bool = True) -> tuple[ProbeResult, ...]:
    """A host's report as results. Pure. What is not a report is unclear."""
    try:
        report = json.loads(answer)
        made = results_from_json(report["attempts"])
        return (*_state(report), *(_counted(report) if attempts else ()), *made)
    except _NO_REPORT as error:
        detail = f"{type(error).__name__}: {error}"[:_SHOWN]
        return (ProbeResult("report", "host_probe", "unclear", detail),)


def _state(report: dict[str, Any]) -> tuple[ProbeResult, ...]:
    rules = str(report["ruleset"])
    outcome = {"same": "control-ok", "unknown": "unclear"}.get(rules, "not-sealed")
    detail = "; ".join([rules, *map(str, report["difference"])])[:_SHOWN]
    results = [{"probe": "rules", "target": "kernel", "outcome": outcome, "detail": detail}]

    def state(probe: str, target: str, holds: object, detail: str, otherwise: str) -> None:
        outcome = "control-ok" if holds else otherwise
        results.append({"probe": probe, "target": target, "outcome": outcome, "detail": detail})

    boots = "as rendered from site.yaml" if report["boots"] else "another ruleset, or none"
    state("rules", "next boot", report["boots"], boots, "not-sealed")
    state("guard", "systemd", report["guard"], "active" if report["guard"] else "not", "unclear")
    if report["pending"]:
        state("rules", "trial", False, "applied and not yet confirmed", "unclear")
    routes = report["default_routes"]
    reason = str(report["route_reason"])
    shown = "; ".join(map(str, routes)) or "none"
    if routes and reason:
        shown = f"{shown} ({reason})"
    state("routes", "default", not routes or reason, shown[:_SHOWN], "not-sealed")
    return results_from_json(results)


def _counted(report: dict[str, Any]) -> tuple[ProbeResult, ...]:
    """That the firewall counted the attempts: it was there, and refused them itself."""
    names = (*_COUNTERS, "refused_ipv6") if report["ipv6"] else _COUNTERS
    results = []
    for name in names:
        more = int(report["after"].get(name, 0)) - int(report["before"].get(name, 0))
        outcome = "control-ok" if more > 0 else "control-failed"
        text = f"{more} more packets"
        results.append({"probe": "counter", "target": name, "outcome": outcome, "detail": text})
    return results_from_json(results)


def as_made(places: Mapping[str, Sequence[ProbeResult]]) -> Answer:
    """What an examination without attempts says: ``closed`` if every host is as made. Pure."""
    outcomes = {result.outcome for results in places.values() for result in results}
    if outcomes & {"not-sealed", "reached"}:
        return "open"
    return "closed" if outcomes == {"control-ok"} else "inconclusive"


def gateway_places(answer: Mapping[str, Any]) -> dict[str, tuple[ProbeResult, ...]]:
    """The places of a verdict that the gateway gave. What is not one is unclear. Pure."""
    try:
        return {str(p["name"]): results_from_json(p["results"]) for p in answer["places"]}
    except _NO_REPORT as error:
        return {"gateway": (ProbeResult("seal", "gateway", "unclear", str(error)[:_SHOWN]),)}
