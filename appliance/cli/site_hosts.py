"""``sovctl site host-keys`` and ``break-lock``: trust in a site's hosts, and their locks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.errors import ConfirmationNeeded
from appliance.i18n import _
from appliance.layout import Home, SitePlace

if TYPE_CHECKING:
    from appliance.manifests.site import Site
    from appliance.provision.host_keys import Ask, HostKey

_FILE = click.Path(path_type=Path)


def confirm_key(console: Console) -> Ask | None:
    """Asks on a terminal whether a host's key is the one on its console; None without one."""
    if not (console.interactive and sys.stdin.isatty()):
        return None

    def ask(host: str, offered: tuple[HostKey, ...]) -> HostKey | None:
        console.say(_("Nobody has said which key host {host} has. It offers:").format(host=host))
        for number, key in enumerate(offered, start=1):
            console.say(f"  {number}  {key}")
        console.say(_("Compare with 'ssh-keygen -lf /etc/ssh/ssh_host_…_key.pub' on its console."))
        question = _("Type the last 8 characters of the fingerprint that is the same (Enter: none)")
        typed = click.prompt(question, default="", show_default=False, err=True).strip()
        found = [key for key in offered if len(typed) == 8 and key.fingerprint.endswith(typed)]
        return found[0] if found else None

    return ask


@click.command("host-keys")
@click.argument("site_file", type=_FILE)
@click.option(
    "--accept",
    multiple=True,
    metavar="HOST=SHA256:…",
    help=_("Trust this fingerprint, which you compared on the host's console."),
)
@with_console
def host_keys(console: Console, site_file: Path, accept: tuple[str, ...]) -> None:
    """Write down the host keys of SITE_FILE's machines, so that they can be talked to.

    A key is accepted only if its fingerprint is in SITE_FILE, is given here, or is confirmed on a
    terminal; one that changed is refused unless its new fingerprint is given.
    """
    from appliance.install import lock
    from appliance.install.home import claim
    from appliance.install.site import trust_hosts
    from appliance.manifests.document import load
    from appliance.manifests.site import Site
    from appliance.provision.host_keys import label, parse_accept, read

    site = load(Site, site_file)
    try:
        accepted = parse_accept(accept)
    except ValueError as error:
        raise click.BadParameter(_("{text} is not HOST=SHA256:…").format(text=error)) from error
    _refuse_unknown(site, accepted)
    home = Home.from_environment()
    place = SitePlace(home, site.name)
    claim(home)
    with lock.hold(place, f"sovctl site host-keys {site_file}"):
        fresh = trust_hosts(site, place, accepted, confirm_key(console))
    known = read(place.known_hosts)
    rows = {
        host.name: [
            str(key) for key in known[label(str(site.management_address(host)), host.ssh.port)]
        ]
        for host in site.hosts
    }
    lines = [f"  {name:<14} {', '.join(keys)}" for name, keys in rows.items()]
    new = sorted({each.host for each in fresh})
    lines.append(_("New: {hosts}.").format(hosts=", ".join(new)) if new else _("Nothing is new."))
    console.result({"hosts": rows, "new": new}, "\n".join(lines))


@click.command("break-lock")
@click.argument("site_file", type=_FILE)
@click.argument("hosts", nargs=-1, metavar="[HOST]…")
@click.option("--yes", is_flag=True, help=_("Do not ask."))
@with_console
def break_lock(console: Console, site_file: Path, hosts: tuple[str, ...], *, yes: bool) -> None:
    """Take the lock of HOSTs (or all) away from an operator whose run was killed elsewhere.

    A run that still goes on fails at its next delivery and not before; make sure that it is dead.
    """
    from appliance.install import lock
    from appliance.install.home import claim
    from appliance.install.secrets import record
    from appliance.manifests.document import load
    from appliance.manifests.site import Site
    from appliance.provision.host_lock import break_locks
    from appliance.provision.several import one_error
    from appliance.provision.ssh import connections

    site = load(Site, site_file)
    _refuse_unknown(site, hosts)
    if not yes:
        if not sys.stdin.isatty():
            reason = _("Another operator's run may be under way.")
            raise ConfirmationNeeded(command="sovctl site break-lock", reason=reason)
        click.confirm(_("Is that other run dead?"), abort=True, err=True)
    place = SitePlace(Home.from_environment(), site.name)
    claim(place.home)
    with (
        lock.hold(place, f"sovctl site break-lock {site_file}"),
        connections(site, place) as remotes,
    ):
        chosen = {name: each for name, each in remotes.items() if not hosts or name in hosts}
        had, failures = break_locks(chosen, site.folder)
        for name, held in had.items():
            if held is not None:
                record(place.home, "site.break-lock", {"site": site.name, "host": name})
    if failures:
        raise one_error(failures)
    lines = [f"  {name:<14} {_holder(held)}" for name, held in had.items()]
    console.result(had, "\n".join(lines))


def _holder(held: Mapping[str, Any] | None) -> str:
    if held is None:
        return _("was free")
    return f"{held.get('operator', '?')} {held.get('since', '?')}"


def _refuse_unknown(site: Site, named: Iterable[str]) -> None:
    unknown = sorted(set(named) - {host.name for host in site.hosts})
    if unknown:
        text = _("site {site} has no host {name}").format(site=site.name, name=unknown[0])
        raise click.BadParameter(text)
