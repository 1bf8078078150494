"""Options every command shares."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

import click

from appliance.cli.console import Console
from appliance.i18n import _

if TYPE_CHECKING:
    from collections.abc import Callable

R = TypeVar("R")


def with_console(command: Callable[..., R]) -> Callable[..., R]:
    """Add ``--json`` and pass the command a :class:`Console` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help=_("Print the result as JSON."))
    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool, **kwargs: Any) -> R:
        return command(Console(as_json=as_json), *args, **kwargs)

    return wrapped
