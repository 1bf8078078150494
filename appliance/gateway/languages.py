"""The language of a page: what the browser asks for, of what there is a catalogue for."""

from __future__ import annotations

import gettext
from collections.abc import Callable
from pathlib import Path

import appliance

_LOCALE = Path(appliance.__file__).parent / "locale"
_OFFERED = ("en", "fr")


def preferred(accept_language: str) -> str:
    """The best offered language of an ``Accept-Language`` header (RFC 9110 §12.5.4).

    >>> preferred("de, fr-FR;q=0.8, en;q=0.5")
    'fr'
    """
    wishes: list[tuple[float, int, str]] = []
    for place, part in enumerate(accept_language[:256].split(",")):
        tag, _semicolon, weight = part.strip().partition(";")
        language = tag.strip().lower().partition("-")[0]
        if language in _OFFERED:
            wishes.append((-_weight(weight), place, language))
    return min(wishes)[2] if wishes else _OFFERED[0]


def catalogue(language: str) -> Callable[[str], str]:
    """The function that translates into ``language``; English is the text itself."""
    translation = gettext.translation("sovctl", _LOCALE, languages=[language], fallback=True)
    return translation.gettext


def _weight(parameter: str) -> float:
    try:
        return float(parameter.strip().removeprefix("q="))
    except ValueError:
        return 1.0
