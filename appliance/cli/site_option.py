"""``--site NAME_OR_FILE``: the site a command works on, and its gateway.

A name is a site this controller has planned or installed (``sites/<name>``); anything with a slash
or a dot is a ``site.yaml``. Either way the site's folder is the one of its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from appliance.errors import SiteAmbiguous, SiteNotInstalled
from appliance.i18n import _
from appliance.layout import Home, SitePlace

if TYPE_CHECKING:
    from appliance.manifests.site import Site

R = TypeVar("R")
_chosen: ContextVar[str | None] = ContextVar("site", default=None)


def open_site(name_or_file: str) -> tuple[Site, SitePlace]:
    """The site and where it is kept.

    Raises :class:`SiteNotInstalled` for a name that is not known, and what reading a file raises.
    """
    from appliance.manifests.document import load
    from appliance.manifests.site import Site

    home = Home.from_environment()
    if _is_file(name_or_file):
        site = load(Site, Path(name_or_file))
        return site, SitePlace(home, site.name)
    place = SitePlace(home, name_or_file)
    if not place.site_file.is_file():
        raise SiteNotInstalled(site=name_or_file, path=place.site_file)
    return load(Site, place.site_file), place


def _is_file(name_or_file: str) -> bool:
    return "/" in name_or_file or "." in name_or_file


def with_site(command: Callable[..., R]) -> Callable[..., R]:
    """Add ``--site``: which appliance the command asks; see :func:`chosen_site`."""

    def keep(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
        _chosen.set(value)

    return click.option(
        "--site",
        metavar="NAME_OR_FILE",
        expose_value=False,
        callback=keep,
        help=_("The site to ask (also $SOVCTL_SITE), where several are installed from here."),
    )(command)


def named_site() -> str | None:
    """What ``--site`` or ``$SOVCTL_SITE`` says: a name or a file."""
    return _chosen.get() or os.environ.get("SOVCTL_SITE") or None


def chosen_site(home: Home) -> SitePlace | None:
    """The site that commands ask; None for the appliance on this machine.

    It is what ``--site`` or ``$SOVCTL_SITE`` names, or the only site installed from here where this
    machine has no appliance of its own. Raises :class:`SiteAmbiguous` if there are several.
    """
    named = named_site()
    if named is not None:
        return open_site(named)[1] if _is_file(named) else SitePlace(home, named)
    if home.current.is_symlink() or not home.sites.is_dir():
        return None
    found = sorted(folder.name for folder in home.sites.iterdir())
    installed = [name for name in found if SitePlace(home, name).endpoint.is_file()]
    if len(installed) > 1:
        raise SiteAmbiguous(sites=", ".join(installed))
    return SitePlace(home, installed[0]) if installed else None
