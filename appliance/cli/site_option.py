"""``--site NAME_OR_FILE``: the site a command works on, and its gateway.

A name is a site this controller has planned or installed (``sites/<name>``); anything with a slash
or a suffix is a ``site.yaml``. Either way the site's folder is the one of its name.
"""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import NotInstalled, NotRunning
from appliance.i18n import _
from appliance.layout import Home, SitePlace

if TYPE_CHECKING:
    from appliance.cli.gateway_client import GatewayClient
    from appliance.manifests.site import Site


def open_site(name_or_file: str) -> tuple[Site, SitePlace]:
    """The site and where it is kept. Raises :class:`NotInstalled` for a name that is not known."""
    from appliance.manifests.document import load
    from appliance.manifests.site import Site

    home = Home.from_environment()
    given = Path(name_or_file)
    if "/" in name_or_file or given.suffix:
        site = load(Site, given)
        return site, SitePlace(home, site.name)
    place = SitePlace(home, name_or_file)
    if not place.site_file.is_file():
        raise NotInstalled(home=place.root)
    return load(Site, place.site_file), place


def site_gateway(place: SitePlace) -> GatewayClient:
    """A client of the site's gateway, with the operator's key.

    Raises :class:`NotInstalled` where the site is not installed yet.
    """
    import httpx

    from appliance.cli.gateway_client import TIMEOUT, GatewayClient

    if not place.endpoint.is_file():
        raise NotInstalled(home=place.root)
    try:
        endpoint = json.loads(place.endpoint.read_bytes())
        trusted = ssl.create_default_context(cafile=endpoint["ca"])
        key = Path(endpoint["operator_key"]).read_text(encoding="ascii").strip()
        url = str(endpoint["url"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = _("{path} is damaged.").format(path=place.endpoint)
        raise NotRunning(home=place.root, reason=reason) from error
    client = httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"},
        verify=trusted,
        timeout=TIMEOUT,
        trust_env=False,
    )
    return GatewayClient(place.home, client)
