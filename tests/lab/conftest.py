"""Tests on real hosts: every test below this folder is marked ``lab`` and needs root.

A test that leaves its hosts as it found them takes ``lab3``, which all such tests of a run share;
one that changes them makes its own with ``lab_of(hosts=2, disk=…)``, which takes what ``Lab.up``
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.lab.lab import Lab, unfit

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them, and skip them with the reason where no lab can be made."""
    mine = [item for item in items if HERE in item.path.parents]
    reason = unfit() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.lab)
        item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("timeout") is None:  # hosts share this machine with each other
            item.add_marker(pytest.mark.timeout(1500))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def lab3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three hosts, an internet and a shared folder, for all tests that leave them as they were."""
    folder = tmp_path_factory.mktemp("lab3")
    with Lab.up(folder, hosts=3, internet=True, shared=folder / "shared") as lab:
        yield lab


@pytest.fixture
def lab_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Lab]]:
    """Make a lab for one test."""
    with ExitStack() as labs:

        def make(**wanted: Any) -> Lab:
            return labs.enter_context(Lab.up(tmp_path_factory.mktemp("lab"), **wanted))

        yield make
