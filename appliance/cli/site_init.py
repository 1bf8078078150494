"""``sovctl site init``: a first site file, from options and from whoever sits at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.errors import SiteFileExists
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.manifests.site_draft import Answers, NewHost

_FILE = click.Path(path_type=Path)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Typed:
    """What was given as options; None and empty: to be asked, or the default."""

    name: str | None
    hosts: tuple[str, ...]
    networks: tuple[str, ...]
    tuning: tuple[str, ...]
    gateway: str | None
    names: tuple[str, ...]
    monitoring: str | None
    storage: str | None
    time_servers: tuple[str, ...]
    user: str | None
    key: Path | None
    gpus: int


@click.command()
@click.option("--out", type=_FILE, default=Path("site.yaml"), show_default=True)
@click.option("--force", is_flag=True, help=_("Replace a file that is there."))
@click.option("--name", help=_("The site's name."))
@click.option(
    "--host", "--hosts", "hosts", multiple=True, metavar="NAME=ADDRESS[+ADDRESS…],…",
    help=_("A machine, the head first: its cluster address, or admin+cluster[+storage[+users]]."),
)  # fmt: skip
@click.option(
    "--network", "networks", multiple=True, metavar="KIND=CIDR",
    help=_("Other than the /24 (IPv6: /64) around the hosts; cluster=10.1.0.0/16."),
)  # fmt: skip
@click.option(
    "--tuning", multiple=True, metavar="HOST",
    help=_("A host of a trust domain of its own for tuning, its head first."),
)  # fmt: skip
@click.option("--gateway", metavar="HOST", help=_("Where callers come in; the first host."))
@click.option(
    "--gateway-name", "names", multiple=True, metavar="NAME",
    help=_("A name that applications use for the gateway; may be given several times."),
)  # fmt: skip
@click.option("--monitoring", metavar="HOST", help=_("Where Prometheus runs; the gateway."))
@click.option(
    "--storage", metavar="local|nfs:SERVER:/EXPORT|mounted:/PATH",
    help=_("What every host sees of data sets, checkpoints and adapters."),
)  # fmt: skip
@click.option(
    "--time-server", "time_servers", multiple=True, metavar="ADDRESS",
    help=_("An NTP server inside; may be given several times."),
)  # fmt: skip
@click.option("--user", help=_("Who logs in over SSH; other than root, with sudo."))
@click.option("--key", type=_FILE, help=_("Private SSH key; without one your agent is asked."))
@click.option("--gpus", type=click.IntRange(0, 16), default=0, help=_("GPUs of every Ray host."))
@with_console
def init(console: Console, out: Path, force: bool, **typed: Any) -> None:
    """Ask for hosts and addresses, and write a site file with comments.

    On a terminal what is not given is asked; elsewhere --host is needed and the rest has defaults.
    """
    from appliance.cluster.files import write_whole
    from appliance.errors import PermissionRefused
    from appliance.manifests.document import parse
    from appliance.manifests.site import Site
    from appliance.manifests.site_draft import draft

    if out.exists() and not force:
        raise SiteFileExists(path=out)
    given = _Typed(**typed)
    somebody = console.interactive and sys.stdin.isatty()
    answers = _asked(given) if somebody else _taken(given)
    text = _checked(draft, answers)
    parse(Site, text.encode(), out)
    try:
        write_whole(out, text.encode())
    except OSError as error:
        action, reason = _("written"), error.strerror or error
        raise PermissionRefused(path=out, action=action, reason=reason) from error
    next_step = _("Next: fill in host_keys, then 'sovctl site check {out}'.").format(out=out)
    console.result({"file": str(out), "hosts": len(answers.hosts)}, f"{out}\n{next_step}")


def _taken(given: _Typed) -> Answers:
    """The answers from options alone."""
    hosts = _hosts(given)
    if not hosts:
        raise click.UsageError(_("Name the hosts: --host n1=10.20.0.11 --host n2=10.20.0.12"))
    return _answers(given, hosts, name=given.name or "site")


def _asked(given: _Typed) -> Answers:
    """The answers from options, and from whoever sits at the terminal for the rest."""
    from appliance.manifests.site_draft import parse_address, parse_storage

    name = given.name or _ask(_("Name of the site"), str, "site")
    hosts = _hosts(given)
    if not hosts:
        hint = _(
            "The hosts, the head first, as NAME=CLUSTER or NAME=ADMIN+CLUSTER[+STORAGE[+USERS]]"
        )
        click.echo(_("{hint}; an empty line ends.").format(hint=hint), err=True)
        while more := _ask(f"  {len(hosts) + 1}", _some_hosts, ""):
            hosts += more
    if not hosts:
        raise click.UsageError(_("A site has at least one host."))
    answered: dict[str, Any] = {"user": given.user}
    answered["user"] = given.user or _ask(_("User for SSH (root, or one with sudo)"), str, "root")
    if len(hosts) > 1:
        if not given.tuning:
            question = _("Hosts only for tuning, its head first, such as n3,n4 (Enter: none)")
            answered["tuning"] = _ask(question, _words, "")
        if given.storage is None:
            question = _("Storage that all see: mounted:/PATH or nfs:SERVER:/EXPORT")
            kept = _ask(question, _same_if(parse_storage), _storage(hosts))
            answered["storage"] = kept
    if not given.names:
        question = _("Names of the gateway, such as ai.hospital.example (Enter: none)")
        answered["names"] = _ask(question, _words, "")
    if not given.time_servers:
        question = _("Addresses of time servers inside (Enter: none)")
        answered["time_servers"] = _ask(
            question, lambda text: tuple(map(parse_address, _words(text))), ""
        )
    return _answers(given, hosts, name=name, **answered)


def _answers(given: _Typed, hosts: tuple[NewHost, ...], **answered: Any) -> Answers:
    from appliance.manifests.site_draft import (
        Answers,
        parse_address,
        parse_network,
        parse_storage,
    )

    storage = given.storage or _storage(hosts)
    _checked(parse_storage, storage)
    known: dict[str, Any] = {
        "networks": dict(_checked(parse_network, text) for text in given.networks),
        "tuning": given.tuning,
        "gateway": given.gateway,
        "names": given.names,
        "monitoring": given.monitoring,
        "storage": storage,
        "time_servers": tuple(_checked(parse_address, text) for text in given.time_servers),
        "user": given.user or "root",
        "key": str(given.key.expanduser().absolute()) if given.key else None,
        "gpus": given.gpus,
    }
    return Answers(hosts=hosts, **{**known, **answered})


def _storage(hosts: tuple[NewHost, ...]) -> str:
    return "mounted:/srv/shared" if len(hosts) > 1 else "local"


def _hosts(given: _Typed) -> tuple[NewHost, ...]:
    return tuple(host for text in given.hosts for host in _checked(_some_hosts, text))


def _some_hosts(text: str) -> tuple[NewHost, ...]:
    from appliance.manifests.site_draft import parse_hosts

    return parse_hosts(text) if text.strip() else ()


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.replace(",", " ").split())


def _same_if(fits: Callable[[str], object]) -> Callable[[str], str]:
    def same(text: str) -> str:
        fits(text)
        return text

    return same


def _ask(question: str, read: Callable[[str], T], default: str) -> T:
    """Ask until ``read`` takes it; an empty ``default`` is not shown."""
    answer: T = click.prompt(
        question, default, value_proc=lambda text: _checked(read, text.strip()),
        show_default=bool(default), err=True,
    )  # fmt: skip
    return answer


def _checked(read: Callable[[Any], T], value: Any) -> T:
    """``read(value)``; the reason why it cannot be read is the operator's to see."""
    try:
        return read(value)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
