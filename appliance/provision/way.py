"""A way to run commands on a host, for those who only ask: :class:`~appliance.provision.ssh.Remote`
is one, and a test has others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Answer(Protocol):
    """A command that ran on a host; :class:`~appliance.provision.ssh.Completed`."""

    @property
    def status(self) -> int:
        """Its exit status."""

    @property
    def stdout(self) -> bytes:
        """What it printed."""

    @property
    def complaint(self) -> str:
        """The last line of its standard error."""


class Way(Protocol):
    """One host that can be asked."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float = 60,
        sudo: bool = False,
    ) -> Answer:
        """Run ``argv`` there to its end, as root with ``sudo``.

        Raises :class:`~appliance.errors.ApplianceError` where it cannot be reached.
        """
