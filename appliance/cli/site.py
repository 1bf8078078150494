"""``sovctl site``: the file that describes a site, and its hosts."""

from __future__ import annotations

import click

from appliance.cli.site_hosts import break_lock, host_keys


@click.group()
def site() -> None:
    """A site: its file, its hosts' keys and locks."""


site.add_command(host_keys)
site.add_command(break_lock)
