"""A bundle at the door: opened, its signatures judged, nothing of it stored yet.

    with admit(path, home, fingerprint) as bundle:
        bundle.content            # verified: what a release is made from
        bundle.load(progress)     # the blobs, hashed on their way into the store

First trust is never blind: there is a pinned fingerprint, or the operator gives one
(``--trust``, or typed on a terminal after comparing). A fingerprint that was given is pinned only
after a bundle was verified under it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuf.api.metadata import Metadata, Root

from appliance.bundle.load import judge, load, require_base
from appliance.bundle.opening import PLAIN, Opening
from appliance.bundle.reader import BundleReader
from appliance.errors import BundleUnsigned
from appliance.store.blobs import Store
from appliance.store.releases import ReleaseContent
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.pin import load_state, pin, save_state
from appliance.trust.verifier import Verified, Verifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from appliance.layout import Home
    from appliance.progress import Progress


@dataclass(frozen=True)
class Admitted:
    """A bundle whose signatures hold. ``newly_pinned`` says the pin is not on disk yet."""

    path: Path
    opening: Opening
    home: Home
    content: ReleaseContent
    verified: Verified
    verifier: Verifier
    pinned: Fingerprint
    newly_pinned: bool

    def load(self, progress: Progress) -> None:
        """Bring the blobs into the store. Raises :class:`~appliance.errors.BundleTampered` …"""
        load(self.path, Store(self.home.store), self.verifier, progress, self.opening)

    def pin(self) -> None:
        """Write down the fingerprint the operator gave."""
        pin(self.home.trust, self.pinned)

    def remember(self) -> None:
        """Save the pin and the versions seen, so that an older bundle is refused from now on."""
        save_state(self.home.trust, self.verified.state)


@contextmanager
def admit(
    path: Path, home: Home, fingerprint: Fingerprint | None, opening: Opening = PLAIN
) -> Iterator[Admitted]:
    """Open and judge the bundle at ``path``; changes nothing.

    ``fingerprint`` is what the operator trusts, where nothing is pinned yet. Raises what
    :func:`appliance.bundle.load.judge` raises, and :class:`BaseMissing` for a delta whose base is
    not here.
    """
    state = load_state(home.trust)
    newly = state.pin is None
    if fingerprint is not None:
        state = state.pinned_to(fingerprint)
    verifier = Verifier(state)
    with BundleReader(path, opening) as reader:
        content, verified = judge(reader, verifier)
        require_base(reader, Store(home.store))
        assert state.pin is not None  # or there was nothing to judge by
        yield Admitted(path, opening, home, content, verified, verifier, state.pin, newly)


def claimed_fingerprint(path: Path, opening: Opening = PLAIN) -> Fingerprint:
    """The fingerprint of the root a bundle brings: a claim, for a person to compare.

    Raises what :class:`BundleReader` raises, and :class:`BundleUnsigned` if it brings no root.
    """
    with BundleReader(path, opening) as reader:
        roots = [name for name in reader.metadata if name.endswith(".root.json")]
        if not roots:
            raise BundleUnsigned(bundle=path, reason="It brings no root.")
        newest = max(roots, key=lambda name: int(name.partition(".")[0]))
        return Fingerprint.of(Metadata[Root].from_bytes(reader.metadata[newest]).signed)


def nothing_pinned(home: Home) -> bool:
    """Whether this site trusts nobody yet."""
    return load_state(home.trust).pin is None
