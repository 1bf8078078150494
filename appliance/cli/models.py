"""``sovctl models``: the base models of the current release, and what is served of them."""

from __future__ import annotations

from typing import Any

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.cli.site_option import with_site
from appliance.cli.tables import columns, fields
from appliance.errors import RecordMissing
from appliance.i18n import _
from appliance.layout import Home


@click.group()
def models() -> None:
    """Models of the current release, and whether they are served."""


@models.command("list")
@with_site
@with_console
def list_(console: Console) -> None:
    """The models of the release. Adapters are listed by 'sovctl adapters list'."""
    found = _look()
    rows = [
        (each["name"], _("yes") if each["served"] else _("no"), each["release"], each["digest"])
        for each in found
    ]
    headings = (_("NAME"), _("SERVED"), _("RELEASE"), _("DIGEST"))
    console.result(found, columns(headings, rows))


@models.command()
@click.argument("name")
@with_site
@with_console
def show(console: Console, *, name: str) -> None:
    """One model, with the adapters made for it."""
    for each in _look():
        if each["name"] == name:
            shown = {**each, "adapters": ", ".join(each["adapters"]) or _("none")}
            console.result(each, fields(shown))
            return
    raise RecordMissing(kind="model", name=name, group="models")


def _look() -> list[dict[str, Any]]:
    """Each model's record, whether it is served, and its adapters by name."""
    from appliance.cli.gateway_client import GatewayClient

    with GatewayClient.from_home(Home.from_environment()) as gateway:
        status = gateway.get("/admin/v1/status")
    served = (status["serve"] or {}).get("model")
    return [
        {
            **model,
            "served": model["name"] == served,
            "adapters": [a["name"] for a in status["adapters"] if a["base"] == model["name"]],
        }
        for model in status["models"]
    ]
