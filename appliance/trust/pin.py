"""What this installation trusts, on disk under ``Home.trust``.

    pin                              the fingerprint a person typed, 64 hexadecimal digits
    root.json                        the newest root reached from it
    clock                            the latest time ever seen here, RFC 3339
    bundles/<name>/timestamp.json snapshot.json      the newest seen of that bundle
    bundles/<name>/targets.json revocations.json     what it took back, and the signature on that

:class:`TrustState` is a value; :func:`load_state` and :func:`save_state` are its only I/O.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.metadata import Metadata, Root

from appliance.errors import FingerprintMalformed, TrustPinDiffers, TrustStateDamaged
from appliance.trust.files import replace_file
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.revocations import MEMBER, Revocations


@dataclass(frozen=True)
class TrustState:
    """``seen`` maps a bundle's name to its newest ``timestamp.json`` and ``snapshot.json``, and to
    ``revocations.json`` with the ``targets.json`` that signs it, if it brought a list."""

    pin: Fingerprint | None = None
    root: bytes | None = None
    clock: datetime | None = None
    seen: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)

    def pinned_to(self, fingerprint: Fingerprint) -> TrustState:
        """This state under a pin. Raises :class:`TrustPinDiffers` if it has another one.

        The root that was reached from the pin is as good as the pin itself.
        """
        if self.pin is None:
            return replace(self, pin=fingerprint)
        reached = Metadata[Root].from_bytes(self.root).signed if self.root else None
        known = [self.pin, *([Fingerprint.of(reached)] if reached else [])]
        if not any(each.matches(fingerprint) for each in known):
            raise TrustPinDiffers(fingerprint=fingerprint.hex, pinned=self.pin.hex)
        return self


def load_state(folder: Path) -> TrustState:
    """Read what is trusted; an empty state if nothing is. Raises :class:`TrustStateDamaged`."""
    pin = _read(folder / "pin")
    if pin is None:
        return TrustState()
    clock = _read(folder / "clock")
    try:
        return TrustState(
            pin=Fingerprint.parse(pin.decode()),
            root=_read(folder / "root.json"),
            clock=datetime.fromisoformat(clock.decode().strip()) if clock else None,
            seen={
                bundle.name: {f.name: f.read_bytes() for f in bundle.glob("[a-z]*.json")}
                for bundle in (folder / "bundles").glob("[!.]*")
            },
        )
    except (FingerprintMalformed, ValueError) as error:
        raise TrustStateDamaged(path=folder, reason="A file in it is not readable.") from error


def load_revocations(folder: Path) -> Revocations:
    """All that is revoked here. Raises :class:`TrustStateDamaged`: unreadable is not empty."""
    union = Revocations()
    for path in sorted((folder / "bundles").glob(f"[!.]*/{MEMBER}")):
        data = _read(path)
        try:
            union = union.union(Revocations.parse(data or b""))
        except ValueError as error:
            raise TrustStateDamaged(path=path, reason="It is not a list.") from error
    return union


def save_state(folder: Path, state: TrustState) -> None:
    """Write a state, each file atomically and in an order that never weakens what is refused."""
    if state.pin is None:
        raise ValueError("a state without a pin is not saved")
    folder.mkdir(parents=True, exist_ok=True)
    if state.clock is not None:
        replace_file(folder / "clock", f"{state.clock.astimezone(UTC).isoformat()}\n".encode())
    if state.root is not None:
        replace_file(folder / "root.json", state.root)
    for bundle, files in state.seen.items():
        (folder / "bundles" / bundle).mkdir(parents=True, exist_ok=True)
        for name, data in sorted(files.items()):
            replace_file(folder / "bundles" / bundle / name, data)
    for bundle, files in state.seen.items():  # lists of keys that are in use no more
        for name in {MEMBER, "targets.json"} - files.keys():
            (folder / "bundles" / bundle / name).unlink(missing_ok=True)
    replace_file(folder / "pin", f"{state.pin.hex}\n".encode())


def pin(folder: Path, fingerprint: Fingerprint) -> None:
    """Trust ``fingerprint`` from now on. Raises :class:`TrustPinDiffers` if another is pinned."""
    save_state(folder, load_state(folder).pinned_to(fingerprint))


def replace_pin(folder: Path, fingerprint: Fingerprint) -> None:
    """Forget the old root and all that was seen under it (the clock stays); pin another."""
    clock = _read(folder / "clock")
    shutil.rmtree(folder, ignore_errors=True)
    seen = datetime.fromisoformat(clock.decode().strip()) if clock else None
    save_state(folder, TrustState(pin=fingerprint, clock=seen))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrustStateDamaged(path=path, reason=f"{error.strerror}.") from error
