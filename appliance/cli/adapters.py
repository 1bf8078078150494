"""``sovctl adapters``: tuned adapters, from evaluation to service and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.cli.site_option import with_site
from appliance.cli.tables import columns, fields
from appliance.i18n import _
from appliance.layout import Home


@click.group()
def adapters() -> None:
    """Tuned adapters: show, promote, load, unload, retire."""


@adapters.command("import")
@click.argument("bundle", type=click.Path(path_type=Path))
@with_site
@with_console
def import_(console: Console, *, bundle: Path) -> None:
    """Register the adapters that BUNDLE brings, once its signatures are verified.

    They come in as evaluated: read their evaluation, then promote them. An installed release's own
    adapters are registered when it starts and need no import.
    """
    from appliance.cli.gateway_client import GatewayClient
    from appliance.install.additions import bring_in

    home = Home.from_environment()
    with GatewayClient.from_home(home) as gateway:
        release, names = bring_in(bundle, home, console)
        records = [
            gateway.post("/admin/v1/adapters", {"release": release, "name": name}) for name in names
        ]
    text = _("{name} is registered. Look at it with 'sovctl adapters show {name}'.")
    console.result(records, "\n".join(text.format(name=record["name"]) for record in records))


@adapters.command("list")
@with_site
@with_console
def list_(console: Console) -> None:
    """All adapters, and whether each is served now."""
    from appliance.cli.gateway_client import GatewayClient

    with GatewayClient.from_home(Home.from_environment()) as gateway:
        found = gateway.get("/admin/v1/adapters")["data"]
    rows = [
        (each["name"], each["base"], each["status"], _loaded(each), each["created"][:19])
        for each in found
    ]
    headings = (_("NAME"), _("BASE"), _("STATUS"), _("SERVED"), _("CREATED"))
    console.result(found, columns(headings, rows))


@adapters.command()
@click.argument("name")
@with_site
@with_console
def show(console: Console, *, name: str) -> None:
    """One adapter: where it comes from, by digest, and what its evaluation found."""
    from appliance.cli.gateway_client import GatewayClient

    with GatewayClient.from_home(Home.from_environment()) as gateway:
        found = gateway.get(f"/admin/v1/adapters/{quote(name, safe='')}")
    shown = {
        key: value for key, value in found.items() if key not in ("card", "loaded", "replicas")
    }
    shown[_("served")] = _loaded(found)
    text = fields(shown)
    card = found.get("card")
    if card:
        text += f"\n\n{fields(_lineage(card))}\n\n{_evaluation(card)}"
    console.result(found, text)


@adapters.command()
@click.argument("name")
@with_site
@with_console
def promote(console: Console, *, name: str) -> None:
    """Allow the adapter NAME to be served, after checking its files and signature."""
    done = _tell(name, "promote")
    text = _("{name} is promoted. Serve it with 'sovctl adapters load {name}'.")
    console.result(done, text.format(name=done["name"]))


@adapters.command()
@click.argument("name")
@with_site
@with_console
def load(console: Console, *, name: str) -> None:
    """Serve the adapter NAME as BASE:NAME, without a restart."""
    with console.task(_("Verifying and loading {name}").format(name=name), None, "items"):
        done = _tell(name, "load")
    text = _("{base}:{name} is served. Try 'sovctl chat {base}:{name}'.")
    console.result(done, text.format(base=done["base"], name=done["name"]))


@adapters.command()
@click.argument("name")
@with_site
@with_console
def unload(console: Console, *, name: str) -> None:
    """Stop serving the adapter NAME; it can be loaded again."""
    done = _tell(name, "unload")
    console.result(done, _("{name} is no longer served.").format(name=done["name"]))


@adapters.command()
@click.argument("name")
@with_site
@with_console
def retire(console: Console, *, name: str) -> None:
    """Take the adapter NAME out of service; promoting it brings it back."""
    done = _tell(name, "retire")
    console.result(done, _("{name} is retired.").format(name=done["name"]))


def _tell(name: str, verb: str) -> dict[str, Any]:
    from appliance.cli.gateway_client import GatewayClient

    with GatewayClient.from_home(Home.from_environment()) as gateway:
        return gateway.post(f"/admin/v1/adapters/{quote(name, safe='')}/{verb}")


def _loaded(adapter: dict[str, Any]) -> str:
    loaded = adapter.get("loaded")
    replicas = adapter.get("replicas") or {}
    if loaded and replicas.get("of", 1) > 1:
        return _("{0} of {1}").format(replicas["loaded"], replicas["of"])
    return _("unknown") if loaded is None else _("yes") if loaded else _("no")


def _lineage(card: dict[str, Any]) -> dict[str, Any]:
    """What the record does not say: what it was made with, and whether that had a way out."""
    sealed = _("yes, as its process saw it") if card["training"]["no_way_out"] else _("NO")
    return {
        "dataset": card["dataset"]["name"],
        "code": f"{card['code']['version']}  {card['code']['digest']}",
        "config": card["config_digest"],
        _("trained without a way out"): sealed,
    }


def _evaluation(card: dict[str, Any]) -> str:
    """Before and after, side by side: rates as per cent, losses as they are."""
    before, after = card["before"], card["after"]
    rows = [
        (measure, _figure(measure, before.get(measure)), _figure(measure, value))
        for measure, value in after.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return columns((_("HELD-OUT"), _("BASE"), _("ADAPTER")), rows)


def _figure(measure: str, value: object) -> str:
    if not isinstance(value, int | float):
        return "-"
    if "accuracy" in measure:
        return f"{value:.1%}"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
