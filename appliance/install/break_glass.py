"""``--break-glass REASON``: an expired bundle may be installed, and that is written down for good.

Only expiry is forgiven. Before anything of the bundle is loaded the ledger has
``trust.break-glass`` with the reason and what had expired; ``sovctl status`` says so while that
release is in use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from appliance.cluster.files import write_whole
from appliance.errors import BreakGlassUnfit
from appliance.i18n import _
from appliance.trust.verifier import Emergency

if TYPE_CHECKING:
    from pathlib import Path

    from appliance.layout import Home

_LEDGER_VALUE = 256  # characters a field of a ledger entry may have
_PLAIN = "!#$&'()*,-./:;<=>?@[]^_`{|}~"  # printable, and neither space, quote nor backslash


def emergency(reason: str | None) -> Emergency | None:
    """What the operator gave as reason. Raises :class:`BreakGlassUnfit` for one that says nothing
    or is too long for the ledger."""
    if reason is None:
        return None
    text = " ".join(reason.split())
    if len(text) < 3:
        raise BreakGlassUnfit(reason=_("It says nothing."))
    if len(for_ledger(text)) > _LEDGER_VALUE:
        raise BreakGlassUnfit(reason=_("It is too long for an entry of the ledger."))
    return Emergency(text)


def for_ledger(reason: str) -> str:
    """A sentence as one word of the ledger: ``+`` for a blank, the rest percent-encoded."""
    return quote_plus(reason, safe=_PLAIN)


def subject(bundle: str, given: Emergency, expired: Mapping[str, datetime]) -> dict[str, str]:
    """The ledger entry's fields."""
    names = sorted(name.removeprefix("metadata/").removesuffix(".json") for name in expired)
    return {
        "bundle": bundle,
        "reason": for_ledger(given.reason),
        "expired": ",".join(names),
        "since": min(expired.values()).isoformat(),
    }


def remember(home: Home, release: str, given: Emergency, expired: Mapping[str, datetime]) -> None:
    """Note for ``sovctl status`` that a release came in through broken glass."""
    known = _read(_file(home))
    known[release] = {
        "reason": given.reason,
        "expired": {name: at.isoformat() for name, at in expired.items()},
    }
    write_whole(_file(home), json.dumps(known, indent=1).encode(), mode=0o644)


def broken_for(home: Home, release: str | None) -> dict[str, Any] | None:
    """Why, and past what expiry, a release was installed; None: it had not expired."""
    return _read(_file(home)).get(release) if release else None


def _file(home: Home) -> Path:
    return home.journal / "break-glass.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
