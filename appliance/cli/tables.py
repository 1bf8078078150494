"""Lists as aligned columns, and one thing's fields one a line; headings stand out on a terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping, Sequence

import click


def columns(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """``rows`` under ``headings``, as wide as their widest cell; two spaces between."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(headings, *cells, strict=True)]
    lines = ["  ".join(map(_padded, row, widths)).rstrip() for row in [headings, *cells]]
    if sys.stdout.isatty():
        lines[0] = click.style(lines[0], bold=True)
    return "\n".join(lines)


def fields(values: Mapping[str, object]) -> str:
    """``name  value`` lines, aligned; what is None is left out."""
    shown = {name: value for name, value in values.items() if value is not None}
    width = max(map(_width, shown), default=0)
    return "\n".join(f"{_padded(name, width)}  {value}" for name, value in shown.items())


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    """Columns on a terminal: accents take none, East Asian wide characters two."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    marks = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - marks
