"""``sovctl keys``: API keys of the gateway."""

from __future__ import annotations

import click

from appliance.cli.console import Console
from appliance.cli.options import with_console
from appliance.cli.site_option import with_site
from appliance.cli.tables import columns
from appliance.i18n import _
from appliance.layout import Home

_ROLES = ("user", "tuner", "auditor", "operator")


@click.group()
def keys() -> None:
    """API keys: who may ask models, tune them, audit or operate the appliance."""


@keys.command()
@click.argument("name")
@click.option("--role", type=click.Choice(_ROLES), default="user", show_default=True)
@with_site
@with_console
def create(console: Console, *, name: str, role: str) -> None:
    """Make a key called NAME. It is shown this once and kept nowhere in clear."""
    from appliance.cli.gateway_client import GatewayClient

    with GatewayClient.from_home(Home.from_environment()) as gateway:
        made = gateway.post("/admin/v1/keys", {"name": name, "role": role})
    text = _("{key}\n\nKey {id} for {name} ({role}). It is not shown again.").format(**made)
    console.result(made, text)


@keys.command("list")
@with_site
@with_console
def list_(console: Console) -> None:
    """All keys, revoked ones too."""
    from appliance.cli.gateway_client import GatewayClient

    with GatewayClient.from_home(Home.from_environment()) as gateway:
        found = gateway.get("/admin/v1/keys")["data"]
    rows = [
        (key["id"], key["name"], key["role"], key["created"][:19], (key["revoked"] or "-")[:19])
        for key in found
    ]
    headings = (_("ID"), _("NAME"), _("ROLE"), _("CREATED"), _("REVOKED"))
    console.result(found, columns(headings, rows))


@keys.command()
@click.argument("key_id", metavar="ID")
@with_site
@with_console
def revoke(console: Console, *, key_id: str) -> None:
    """Stop the key ID from working, at once and for good."""
    from urllib.parse import quote

    from appliance.cli.gateway_client import GatewayClient

    with GatewayClient.from_home(Home.from_environment()) as gateway:
        revoked = gateway.delete(f"/admin/v1/keys/{quote(key_id, safe='')}")
    console.result(revoked, _("Key {id} of {name} is revoked.").format(**revoked))
