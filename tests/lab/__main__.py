"""``python -m tests.lab``: a lab to try things in by hand. ``docs/lab.md`` shows a session."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from tests.lab import leftovers
from tests.lab.lab import Host, Lab, unfit
from tests.lab.root import cache


def _labs() -> list[Lab]:
    """Those that ``up`` made, the newest last."""
    found = []
    for record in leftovers.records():
        with contextlib.suppress(OSError, ValueError):  # half made, or its folder was deleted
            if record.kept:
                found.append(Lab.at(Path(record.folder)))
    return found


def _lab() -> Lab:
    up = _labs()
    if not up:
        raise click.ClickException("no lab is up; type: python -m tests.lab up")
    return up[-1]


def _host(name: str) -> Host:
    lab = _lab()
    try:
        return lab.host(name)
    except KeyError:
        names = ", ".join(host.name for host in lab.hosts)
        raise click.ClickException(f"{name} is no host of this lab; there are {names}") from None


@click.group()
def main() -> None:
    """Real hosts on this machine, in a network that leads nowhere."""
    reason = unfit()
    if reason is not None:
        raise click.ClickException(reason)


@main.command()
@click.option("--hosts", default=3, show_default=True, type=click.IntRange(1, 16))
@click.option("--internet/--no-internet", default=True, show_default=True)
@click.option("--debian", default="bookworm", type=click.Choice(["bookworm", "trixie"]))
@click.option("--disk", default=0, help="GB of disk for each host's installation; 0: this one's.")
def up(hosts: int, internet: bool, debian: str, disk: int) -> None:
    """Boot hosts and leave them running."""
    folder = cache() / "labs" / secrets.token_hex(4)
    click.echo(f"booting {hosts} host{'s' * (hosts > 1)} …", err=True)
    began = time.monotonic()
    try:
        shared = folder / "shared"
        lab = Lab.make(folder, hosts, internet, shared, debian, disk * 10**9, kept=True)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"up after {time.monotonic() - began:.0f} s", err=True)
    _show(lab)
    click.echo("next: python -m tests.lab ssh n1 | run COMMAND … | fault n1 cut | down", err=True)


@main.command()
@click.option("--all", "everything", is_flag=True, help="Also what is left of tests that crashed.")
def down(everything: bool) -> None:
    """Take down the labs that were brought up by hand."""
    for record in leftovers.records():
        if record.kept:
            folder = Path(record.folder)
            leftovers.end(record.id, folder)
            shutil.rmtree(folder, ignore_errors=True)
            click.echo(f"{record.id} is down", err=True)
        elif record.in_use:
            click.echo(f"{record.id} is in use by process {record.maker}: left alone", err=True)
    if everything:
        for lab in leftovers.sweep():
            click.echo(f"{lab} is swept away", err=True)


@main.command("list")
def list_() -> None:
    """Labs that are up, and their hosts."""
    for lab in _labs():
        _show(lab)
    for record in leftovers.records():
        if not record.kept:
            state = f"in use by process {record.maker}" if record.in_use else "crashed: down --all"
            click.echo(f"{record.id}  {record.folder}  {state}")


def _show(lab: Lab) -> None:
    click.echo(f"{lab.id}  {lab.debian}  {lab.folder}  key {lab.key}")
    for host in lab.hosts:
        state = "up" if host.running else "off"
        click.echo(f"  {host.name:<4} {state:<4} {host.admin:<14} {host.cluster:<14} "
                   f"{host.fingerprint}")  # fmt: skip


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(host: str, command: tuple[str, ...]) -> None:
    """Log in to a host as root, or run a command there."""
    machine = _host(host)
    argv = machine.lab.controller.argv([*machine.ssh_argv(), *command])
    sys.exit(subprocess.run(argv, check=False).returncode)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def run(command: tuple[str, ...]) -> None:
    """Run a command as from the operator's machine: in the lab's network only."""
    sys.exit(subprocess.run(_lab().controller.argv(command), check=False).returncode)


# What goes wrong, and under it how it is set right.
FAULTS: dict[str, tuple[str, Callable[[Host], object]]] = {
    "cut": ("its cables are pulled, in every network", lambda host: host.lab.cut(host)),
    "mend": ("they are put back", lambda host: host.lab.mend(host)),
    "kill": ("its power fails", Host.kill),
    "power-off": ("it is shut down in order", Host.power_off),
    "start": ("it boots", Host.start),
    "reboot": ("shut down, then booted", Host.reboot),
    "fill-disk": ("no room below /var/lib/sovctl (up --disk GB)", Host.fill_disk),
    "free-disk": ("room again", Host.free_disk),
    "skew-clock": ("SSH sessions and their sudo live an hour ahead", lambda h: h.skew_clock(3600)),
    "right-clock": ("they live now", lambda host: host.skew_clock(0)),
    "change-host-key": ("it answers with a new SSH host key", Host.change_host_key),
    "take-sudo": ("ops may not become root", Host.take_sudo),
    "give-sudo": ("ops may again", Host.give_sudo),
    "pretend": ("it says it is Ubuntu 24.04", lambda h: h.pretend(ID="ubuntu", VERSION_ID="24.04")),
}


@main.command()
def faults() -> None:
    """What can go wrong with a host."""
    for name, (meaning, _do) in FAULTS.items():
        click.echo(f"{name:<16} {meaning}")


@main.command()
@click.argument("host")
@click.argument("what", type=click.Choice(list(FAULTS)))
def fault(host: str, what: str) -> None:
    """Let something go wrong with a host, or set it right; ``faults`` lists what."""
    _meaning, happen = FAULTS[what]
    try:
        happen(_host(host))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main(prog_name="python -m tests.lab")
