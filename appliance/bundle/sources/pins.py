"""Requirements locks: ``name==version --hash=sha256:…``, as pip and uv read and write them.

Only the strict part of that format is a lock here: exact versions, at least one SHA-256 each, no
options, no addresses, no markers (a lock is for one platform).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import InvalidVersion, Version

from appliance.errors import FileUnreadable, LockInvalid
from appliance.i18n import _

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!_-]+)\s*(.*)", re.DOTALL)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?:\s+|$)")
_LOCKED = re.compile(r"^# locked: (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PinnedPackage:
    """One package in one version; ``hashes`` are SHA-256 of the files that are good for it."""

    name: NormalizedName
    version: Version
    hashes: frozenset[str]

    @classmethod
    def of(cls, pin: str, sha256: str) -> PinnedPackage:
        """From ``name==version`` and one digest, as a recipe has them."""
        name, _sep, version = pin.partition("==")
        return cls(canonicalize_name(name), Version(version), frozenset({sha256}))

    def requirement(self, label: str | None = None) -> str:
        """The line pip takes, asking for local build ``label`` if there is one."""
        version = f"{self.version.public}+{label}" if label else str(self.version)
        hashes = " ".join(f"--hash=sha256:{value}" for value in sorted(self.hashes))
        return f"{self.name}=={version} {hashes}"

    def exactly(self) -> str:
        """The line pip takes, for this version and no local build of it (PEP 440, ``===``)."""
        return self.requirement().replace("==", "===", 1)

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


@dataclass(frozen=True)
class Lock:
    """A parsed lock. ``locked`` is when it was written, if its header says so."""

    path: Path
    pins: tuple[PinnedPackage, ...]
    locked: datetime.datetime | None


def read_lock(path: Path) -> Lock:
    """Read a lock. Raises :class:`FileUnreadable` or :class:`LockInvalid`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileUnreadable(path=path, reason=reason) from error
    pins: dict[NormalizedName, PinnedPackage] = {}
    for number, line in _logical_lines(text):
        pin = _parse(line, path, number)
        if pin.name in pins:
            reason = _("{name} is there twice.").format(name=pin.name)
            raise LockInvalid(lock=path, line=number, reason=reason)
        pins[pin.name] = pin
    stamp = _LOCKED.search(text)
    locked = datetime.datetime.fromisoformat(stamp[1]) if stamp else None
    return Lock(path, tuple(pins.values()), locked)


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines joined at their backslashes, without comments, with the number of their first line."""
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        bare = re.sub(r"(?:^|\s)#.*", "", line).rstrip()
        first = first or number
        if bare.endswith("\\"):
            joined += bare[:-1] + " "
            continue
        if (joined + bare).strip():
            yield first, (joined + bare).strip()
        joined, first = "", 0
    if joined.strip():
        yield first, joined.strip()


def _parse(line: str, path: Path, number: int) -> PinnedPackage:
    match = _PIN.fullmatch(line)
    if not match:
        reason = _("'{line}' is not 'name==version'.").format(line=line[:60])
        raise LockInvalid(lock=path, line=number, reason=reason)
    name, version, options = match.groups()
    hashes = frozenset(_HASH.findall(options))
    if not hashes or _HASH.sub("", options).strip():
        reason = _("{name} needs '--hash=sha256:…' and nothing else.").format(name=name)
        raise LockInvalid(lock=path, line=number, reason=reason)
    try:
        return PinnedPackage(canonicalize_name(name), Version(version), hashes)
    except InvalidVersion as error:
        raise LockInvalid(lock=path, line=number, reason=str(error)) from error
