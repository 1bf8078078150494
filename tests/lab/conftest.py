"""Tests on real hosts: every test below this folder is marked ``lab`` and needs root."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.lab import unfit

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them, and skip them with the reason where no lab can be made."""
    mine = [item for item in items if HERE in item.path.parents]
    reason = unfit() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.lab)
        item.add_marker(pytest.mark.slow)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
