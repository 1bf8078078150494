"""Which folder is an installation of ours: the marker file, made first and removed last.

A folder becomes an installation only if it is new, empty, or holds nothing but what ``sovctl``
itself put there; so ``SOVCTL_HOME=/home/alice`` is refused before anything is written, and
uninstall never has to guess.
"""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from appliance.errors import HomeNotOurs
from appliance.i18n import _
from appliance.store.blobs import sync_folder

if TYPE_CHECKING:
    from appliance.layout import Home

_FORMAT = 1


def is_known(home: Home, name: str) -> bool:
    """Whether ``name``, directly in ``home``, is of those an installation has."""
    places = (
        home.marker, home.trust, home.store, home.releases, home.current, home.previous,
        home.journal, home.lock, home.cache, home.ledger, home.logs, home.secrets, home.tls,
        home.registry.parent, home.datasets, home.runs, home.adapters, home.run, home.tmp,
        home.sites,
    )  # fmt: skip
    halfway = {f".{home.current.name}.new", f".{home.previous.name}.new", f"{home.marker.name}.new"}
    return name in {place.name for place in places} | halfway


def is_ours(home: Home) -> bool:
    """Whether ``home`` carries our marker, as a plain file."""
    return home.marker.is_file() and not home.marker.is_symlink()


def claim(home: Home) -> None:
    """Make ``home`` an installation, if it is not one. Called under the lock.

    Raises :class:`HomeNotOurs` if the folder holds things that are not ours.
    """
    home.root.mkdir(parents=True, exist_ok=True)
    if is_ours(home):
        return
    strangers = sorted(e.name for e in home.root.iterdir() if not is_known(home, e.name))
    if strangers:
        reason = _("It holds other things ({names}) and no mark of sovctl.")
        names = ", ".join(strangers[:3]) + (" …" if len(strangers) > 3 else "")
        raise HomeNotOurs(home=home.root, reason=reason.format(names=names))
    text = json.dumps(
        {"format": _FORMAT, "id": str(uuid.uuid4()), "made": datetime.now(UTC).isoformat()}
    )
    fresh = home.marker.with_name(f"{home.marker.name}.new")
    with fresh.open("w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(home.marker)
    sync_folder(home.root)
