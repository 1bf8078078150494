"""``sovctl site check SITE --hosts``: are the machines themselves fit, before there is a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from appliance.cli.console import Console
from appliance.layout import Home, SitePlace

if TYPE_CHECKING:
    from appliance.manifests.site import Site
    from appliance.provision.preflight import Report


def check_hosts(console: Console, site: Site) -> Report:
    """Look at every host of ``site``; nothing is changed there or written down here."""
    from appliance.provision.survey import survey

    place = SitePlace(Home.from_environment(), site.name)
    return survey(site, place.known_hosts, console)
