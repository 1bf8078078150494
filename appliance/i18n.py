"""Translation of what an operator reads.

Every sentence meant for a person goes through :func:`_`, and sentences defined at import time are
marked with :func:`N_` and translated where they are shown. Catalogues are gettext ``.mo`` files
under ``appliance/locale``; the language follows ``LANGUAGE``, ``LC_ALL``, ``LC_MESSAGES`` and
``LANG``, as for every other program on the machine.
"""

from __future__ import annotations

import gettext
from functools import cache
from pathlib import Path

_LOCALE = Path(__file__).parent / "locale"


@cache
def _catalogue() -> gettext.NullTranslations:
    return gettext.translation("sovctl", _LOCALE, fallback=True)


def _(message: str) -> str:
    """Return ``message`` in the operator's language."""
    return _catalogue().gettext(message) if message else ""


def N_(message: str) -> str:  # noqa: N802 - the field's name for a deferred translation
    """Mark ``message`` for extraction; it is translated where it is shown."""
    return message
