"""``sovctl plan``, ``install`` and ``uninstall``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from appliance.cli.console import Console, amount
from appliance.cli.options import with_console, with_opening
from appliance.errors import (
    ApplianceError,
    ConfirmationNeeded,
    TrustNotPinned,
)
from appliance.i18n import _
from appliance.layout import Home

if TYPE_CHECKING:
    from appliance.bundle.opening import Opening
    from appliance.cli.install_site import Wanted
    from appliance.install.bundle_in import Admitted
    from appliance.install.embedded import Installation
    from appliance.install.plan import Plan
    from appliance.install.preflight import Finding
    from appliance.trust.fingerprint import Fingerprint

_BUNDLE = click.Path(path_type=Path)
_PORTS = click.IntRange(1, 65535)
_break_glass = click.option(
    "--break-glass",
    "reason",
    metavar="REASON",
    help=_("Let an expired bundle in, for this reason. Recorded; forgives nothing else."),
)


@click.command(short_help=_("Show what install would change."))
@click.argument("bundle", type=_BUNDLE)
@click.option("--trust", "fingerprint", help=_("Fingerprint of the supplier's root."))
@click.option("--site", type=_BUNDLE, help=_("site.yaml: plan for its hosts, not this machine."))
@click.option("--port", type=_PORTS, help=_("Port on 127.0.0.1 to plan for."))
@click.option("--unsealed", is_flag=True, help=_("Plan without the network seal."))
@_break_glass
@with_opening
@with_console
def plan(
    console: Console,
    bundle: Path,
    *,
    opening: Opening,
    fingerprint: str | None,
    site: Path | None,
    port: int | None,
    unsealed: bool,
    reason: str | None,
) -> int:
    """Show what installing BUNDLE would do here, and whether this machine is fit for it.

    Verifies the bundle's signatures and changes nothing. Ends with status 4 if a check fails.
    """
    from appliance.cli.install_site import plan_site
    from appliance.install.break_glass import emergency
    from appliance.install.bundle_in import admit
    from appliance.install.embedded import Installation, Request
    from appliance.install.local import LocalCluster

    if site is not None:
        _only_here(port=port is not None, unsealed=unsealed)
        wanted = _site_wanted(
            console, bundle, site, opening, fingerprint=fingerprint, reason=reason
        )
        with _terminated_as_interrupted():
            return plan_site(console, wanted)
    given = emergency(reason)
    home = Home.from_environment()
    trusted = _fingerprint(console, home, bundle, fingerprint, opening)
    request = Request(bundle, port=port, sealed=not unsealed)
    with admit(bundle, home, trusted, opening, given) as admitted:
        cluster = LocalCluster(home, sealed=request.sealed)
        installation = Installation(home, admitted, request, cluster)
        decided = installation.plan()
        findings = installation.findings()
        expired = {name: at.isoformat() for name, at in admitted.verified.expired.items()}
        glass = _glass_text(admitted)
    value = {
        **plan_json(decided),
        "break_glass": {"reason": reason, "expired": expired} if expired else None,
        "checks": [asdict(finding) for finding in findings],
    }
    console.result(value, f"{glass}{_plan_text(decided)}\n\n{_findings_text(findings)}")
    return 4 if any(finding.level == "fail" for finding in findings) else 0


@click.command(short_help=_("Verify a bundle and install it, sealed."))
@click.argument("bundle", type=_BUNDLE)
@click.option("--trust", "fingerprint", help=_("Fingerprint of the supplier's root."))
@click.option("--site", type=_BUNDLE, help=_("site.yaml: install on its hosts over SSH."))
@click.option("--port", type=_PORTS, help=_("Port on 127.0.0.1 (8443, or the next free one)."))
@click.option("--unsealed", is_flag=True, help=_("Run without the network seal. Recorded."))
@_break_glass
@click.option("--no-start", is_flag=True, help=_("Install, and do not start."))
@click.option("--yes", is_flag=True, help=_("Do not ask before replacing a running release."))
@with_opening
@with_console
def install(
    console: Console,
    bundle: Path,
    *,
    opening: Opening,
    fingerprint: str | None,
    site: Path | None,
    port: int | None,
    unsealed: bool,
    reason: str | None,
    no_start: bool,
    yes: bool,
) -> None:
    """Verify BUNDLE while loading it, install its runtime offline, seal it and start it.

    Run it again after any interruption: it goes on where it stopped. What is already here is not
    loaded or installed twice. With --site this happens on every host of that file.
    """
    from appliance.cli.install_site import install_site
    from appliance.install import lock
    from appliance.install.break_glass import emergency
    from appliance.install.bundle_in import admit
    from appliance.install.embedded import Installation, Request
    from appliance.install.local import LocalCluster

    if site is not None:
        _only_here(port=port is not None, unsealed=unsealed, no_start=no_start)
        wanted = _site_wanted(
            console, bundle, site, opening, fingerprint=fingerprint, reason=reason
        )
        with _terminated_as_interrupted():
            install_site(console, wanted)
        return
    given = emergency(reason)
    home = Home.from_environment()
    trusted = _fingerprint(console, home, bundle, fingerprint, opening)
    request = Request(bundle, port=port, sealed=not unsealed, start=not no_start)
    with (
        _terminated_as_interrupted(),
        admit(bundle, home, trusted, opening, given) as admitted,
        lock.hold(home, f"sovctl install {bundle}"),
    ):
        installation = Installation(
            home, admitted, request, LocalCluster(home, sealed=request.sealed)
        )
        decided = installation.plan()
        console.say(f"{_glass_text(admitted)}{_plan_text(decided)}")
        _confirm_replacing(decided, asked=yes)
        installation.carry_out(decided, console)
        value = _outcome(home, installation, decided)
    console.result(value, _outcome_text(home, value))


@click.command(short_help=_("Remove the appliance."))
@click.option("--keep-data", is_flag=True, help=_("Keep data sets, adapters, ledger, registry."))
@click.option("--yes", is_flag=True, help=_("Do not ask."))
@with_console
def uninstall(console: Console, *, keep_data: bool, yes: bool) -> None:
    """Stop the appliance and remove it: releases, models, keys, logs, everything under its folder.

    With --keep-data the data sets, adapters, ledger and registry stay, with the keys to read them.
    """
    from appliance.cluster import lifecycle
    from appliance.install import lock
    from appliance.install import uninstall as away
    from appliance.install.secrets import record

    home = Home.from_environment()
    keep = away.is_data if keep_data else away.is_nothing
    away.plan_removal(home, keep)  # refuses before anything is asked or stopped
    if not yes:
        question = _("Remove the appliance under {home}?").format(home=home.root)
        _confirm(question, "sovctl uninstall", _("It removes models, keys and data."))
    with _terminated_as_interrupted(), lock.hold(home, "sovctl uninstall"):
        lifecycle.stop(home, console)
        try:
            if (home.ledger / "checkpoint").exists():
                record(home, "release.uninstall", {"keep_data": "yes" if keep_data else "no"})
        except ApplianceError as error:
            # A ledger that an interrupted uninstall took half away must not keep the rest here.
            console.say(_("It could not be recorded: {error}").format(error=error))
        checkpoint = away.last_checkpoint(home)
        removal = away.plan_removal(home, keep)
        away.remove(home, removal, console)
    value = {
        "removed": [str(path) for path in removal.remove],
        "kept": [str(path) for path in (*removal.keep, *removal.foreign)],
        "checkpoint": checkpoint,
    }
    console.result(value, _removal_text(home, value))


# --- asking ---------------------------------------------------------------------------------------


def _fingerprint(
    console: Console, home: Home, bundle: Path, given: str | None, opening: Opening
) -> Fingerprint | None:
    """What the operator trusts: as given, as pinned (None), or typed after comparing."""
    from appliance.install.bundle_in import claimed_fingerprint, nothing_pinned
    from appliance.trust.fingerprint import Fingerprint

    if given is not None:
        return Fingerprint.parse(given)
    if not nothing_pinned(home):
        return None
    claimed = claimed_fingerprint(bundle, opening)
    if not (console.interactive and sys.stdin.isatty()):
        raise TrustNotPinned(bundle=bundle)
    console.say(
        _("Nobody is trusted here yet. The bundle says it was signed under the root\n\n  {root}\n")
        .format(root=claimed)
    )  # fmt: skip
    console.say(_("Compare it with what your supplier gave you by another way."))
    typed = click.prompt(_("If it is the same, type its first 8 characters"), err=True)
    if typed.strip().lower() != claimed.hex[:8]:
        raise TrustNotPinned(bundle=bundle)
    return claimed


def _confirm(question: str, command: str, reason: str) -> None:
    if not sys.stdin.isatty():
        raise ConfirmationNeeded(command=command, reason=reason)
    click.confirm(question, abort=True, err=True)


def _confirm_replacing(decided: Plan, *, asked: bool) -> None:
    """On a terminal, ask before a running release is stopped; elsewhere the command is consent."""
    from appliance.install.plan import Phase

    replaces = decided.replaces and any(s.phase is Phase.ACTIVATE for s in decided.pending)
    if replaces and not asked and sys.stdin.isatty():
        question = _("Replace {old} with {new}?").format(old=decided.replaces, new=decided.release)
        click.confirm(question, default=True, abort=True, err=True)


def _site_wanted(
    console: Console,
    bundle: Path,
    site_file: Path,
    opening: Opening,
    *,
    fingerprint: str | None,
    reason: str | None,
) -> Wanted:
    """The site's file is read before anything else."""
    from appliance.cli.install_site import Wanted
    from appliance.install.break_glass import emergency
    from appliance.manifests.document import load
    from appliance.manifests.site import Site

    site = load(Site, site_file)
    given = emergency(reason)
    trusted = _fingerprint(console, Home.from_environment(), bundle, fingerprint, opening)
    return Wanted(bundle, site_file, site, opening, trusted, given)


def _only_here(**given: bool) -> None:
    """Refuse options that mean this machine and nothing on a site."""
    for name, is_given in given.items():
        if is_given:
            option = f"--{name.replace('_', '-')}"
            text = _("{option} is for an installation on this machine, not for a site.")
            raise click.UsageError(text.format(option=option))


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM and a closed terminal end the command as ^C does: recorded, resumable."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- showing --------------------------------------------------------------------------------------


def plan_json(decided: Plan) -> dict[str, Any]:
    """A plan for machines."""
    return {
        "plan": decided.id,
        "release": decided.release,
        "replaces": decided.replaces,
        "changes": decided.changes,
        "bytes": decided.size,
        "seconds": round(decided.seconds, 1),
        "phases": [
            {
                "phase": str(step.phase),
                "action": step.action,
                "reason": step.reason,
                "bytes": step.size,
                "seconds": round(step.seconds, 1),
            }
            for step in decided.steps
        ],
    }


def _glass_text(admitted: Admitted) -> str:
    """A warning where something expired is let in; else nothing."""
    expired, given = admitted.verified.expired, admitted.verified.emergency
    if given is None or not expired:
        return ""
    text = _("GLASS BROKEN: {members} expired, the first on {since}. Reason: {reason}\n")
    return text.format(
        members=", ".join(expired), since=f"{min(expired.values()):%Y-%m-%d}", reason=given.reason
    )


def _plan_text(decided: Plan) -> str:
    if not decided.changes:
        return _("{release} is installed; nothing is to be done.").format(release=decided.release)
    title = _("Plan for {release}:").format(release=decided.release)
    return f"{title}\n{steps_text(decided)}"


def steps_text(decided: Plan) -> str:
    """The phases of a plan, one a line, and what they come to."""
    lines = []
    for step in decided.steps:
        mark = "·" if step.action == "skip" else "→"
        size = f"  {amount(step.size, 'bytes')}" if step.size and step.action == "run" else ""
        time = f"  ~{step.seconds:.0f} s" if step.seconds >= 1 and step.action == "run" else ""
        lines.append(f"  {mark} {step.phase:<11} {step.reason}{size}{time}")
    total = _("  in all: {size} to write, about {seconds:.0f} s")
    lines.append(total.format(size=amount(decided.size, "bytes"), seconds=decided.seconds))
    return "\n".join(lines)


def _findings_text(findings: tuple[Finding, ...]) -> str:
    lines = [_("Checks:")]
    for finding in findings:
        lines.append(f"  {finding.level:<5} {finding.check:<12} {finding.text}")
        if finding.remedy:
            lines.append(f"        → {finding.remedy}")
    return "\n".join(lines)


def _outcome(home: Home, installation: Installation, decided: Plan) -> dict[str, Any]:
    from appliance.cluster import lifecycle

    endpoint = lifecycle.state(home).endpoint
    return {
        "release": installation.release_id,
        "changed": decided.changes,
        "running": endpoint is not None,
        "endpoint": endpoint.url if endpoint else None,
        "sealed": endpoint.sealed if endpoint else None,
        "ca": str(home.tls / "ca.pem"),
        "operator_key": str(home.secrets / "operator.key"),
        "home": str(home.root),
    }


def _outcome_text(home: Home, value: dict[str, Any]) -> str:
    if not value["running"]:
        text = _("{release} is installed under {home}. Start it with 'sovctl start'.")
        return text.format(release=value["release"], home=home.root)
    sealed = _("sealed") if value["sealed"] else _("NOT sealed")
    lines = [
        _("{release} runs, {sealed}.").format(release=value["release"], sealed=sealed),
        "",
        f"  {_('API'):<14} {value['endpoint']}/v1",
        f"  {_('CA file'):<14} {value['ca']}",
        f"  {_('operator key'):<14} {value['operator_key']}",
        f"  {_('dashboard'):<14} {value['endpoint']}/ray/",
        "",
        _("Next: 'sovctl status', 'sovctl chat MODEL', 'sovctl keys create NAME --role user'"),
    ]
    return "\n".join(lines)


def _removal_text(home: Home, value: dict[str, Any]) -> str:
    lines = [_("The appliance under {home} is removed.").format(home=home.root)]
    if value["kept"]:
        lines.append(_("Left there: {paths}").format(paths=", ".join(value["kept"])))
    if value["checkpoint"]:
        lines.append(_("The ledger's last checkpoint; keep it, it proves what the ledger held:"))
        lines.append(f"\n{value['checkpoint'].rstrip()}")
    return "\n".join(lines)
