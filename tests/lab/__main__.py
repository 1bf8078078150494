"""``python -m tests.lab``: a lab to try things in by hand. ``docs/lab.md`` shows a session."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

from tests.lab.lab import Host, Lab, unfit
from tests.lab.root import cache


def _labs() -> list[Lab]:
    found = sorted((cache() / "labs").glob("*/lab.json"))
    return [Lab.at(record.parent) for record in found]


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
    folder = cache() / "labs" / f"{os.getpid()}"
    click.echo(f"booting {hosts} hosts …", err=True)
    lab = Lab.make(folder, hosts, internet, folder / "shared", debian, disk * 10**9)
    _show(lab)
    click.echo("next: python -m tests.lab ssh n1 | run COMMAND … | fault n1 cut | down", err=True)


@main.command()
def down() -> None:
    """Take every lab down that was left up."""
    for lab in _labs():
        lab.down()
        shutil.rmtree(lab.folder, ignore_errors=True)
        click.echo(f"{lab.id} is down", err=True)


@main.command("list")
def list_() -> None:
    """Labs that are up, and their hosts."""
    for lab in _labs():
        _show(lab)


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


FAULTS = {
    "cut": lambda host: host.lab.cut(host),
    "mend": lambda host: host.lab.mend(host),
    "kill": Host.kill,
    "start": Host.start,
    "power-off": Host.power_off,
    "reboot": Host.reboot,
    "fill-disk": Host.fill_disk,
    "free-disk": Host.free_disk,
    "skew-clock": lambda host: host.skew_clock(3600),
    "right-clock": lambda host: host.skew_clock(0),
    "change-host-key": Host.change_host_key,
    "take-sudo": Host.take_sudo,
}


@main.command()
@click.argument("host")
@click.argument("what", type=click.Choice(sorted(FAULTS)))
def fault(host: str, what: str) -> None:
    """Let something go wrong with a host, or set it right."""
    try:
        FAULTS[what](_host(host))
    except (RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main(prog_name="python -m tests.lab")
