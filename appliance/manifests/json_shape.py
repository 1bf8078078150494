"""Is this JSON cheap to read? Asked before anything is made of it.

A few megabytes of ``[[],[],…`` or of unknown fields become gigabytes once a library turns each of
them into an object, or into a complaint. What is judged here costs one pass, and keeps nothing.
"""

from __future__ import annotations

import json
from typing import NoReturn

MAX_VALUES = 2_500_000  # 64 MiB of real files have fewer
MAX_FIELDS = 256


def check_shape(data: bytes, max_values: int = MAX_VALUES) -> None:
    """Raise ``ValueError`` unless ``data`` is JSON with at most about ``max_values`` values, at
    most 256 fields to an object, none of them twice, and no numbers but whole ones.

    Commas in texts count as values: a text full of them is refused as well.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") > max_values:
        raise ValueError(f"it has more than {max_values} values")
    try:
        json.loads(data, object_pairs_hook=_forget, parse_float=_refuse, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _forget(fields: list[tuple[str, object]]) -> None:
    """Judge one object and keep nothing of it."""
    if len(fields) > MAX_FIELDS:
        raise ValueError(f"an object in it has more than {MAX_FIELDS} fields")
    if len({name for name, _value in fields}) != len(fields):
        raise ValueError("an object in it has a field twice")


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"{number[:40]} is not a whole number")
