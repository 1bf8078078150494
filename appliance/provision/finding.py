"""What a check found about one host: pass, warn or fail, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["pass", "warn", "fail"]

LEVELS: tuple[Level, ...] = ("fail", "warn", "pass")
"""Worst first, as they are shown."""


@dataclass(frozen=True, slots=True)
class HostFinding:
    """One check's answer for one host.

    ``check`` is a name of :data:`appliance.provision.checks.CHECKS`; ``remedy`` is a sentence, with
    a command where there is one, and empty when it passed.
    """

    host: str
    check: str
    level: Level
    text: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """The finding for machines."""
        return {
            "host": self.host,
            "check": self.check,
            "level": self.level,
            "text": self.text,
            "remedy": self.remedy,
        }
