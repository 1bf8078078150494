"""A release that was taken in and is taken back: it is not activated, gone back to or started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import ReleaseDamaged, ReleaseRevoked
from appliance.manifests.bundle import BundleManifest
from appliance.trust.model_signature import ModelSignatureInvalid, key_id_of_pem
from appliance.trust.pin import load_revocations

if TYPE_CHECKING:
    from appliance.layout import Home


def refuse_revoked(home: Home, release: Path) -> None:
    """Raise :class:`ReleaseRevoked` if what any bundle seen here revoked is in a release's folder.

    Raises :class:`ReleaseDamaged` or ``TrustStateDamaged`` if that cannot be told.
    """
    revocations = load_revocations(home.trust)
    if not revocations.revoked:
        return
    try:
        manifest = BundleManifest.parse((release / "bundle.json").read_bytes())
        found = revocations.judge(manifest, _signing_keys(release))
    except (OSError, ValueError, LookupError, TypeError, ModelSignatureInvalid) as error:
        reason = "It cannot be told whether it was revoked."
        raise ReleaseDamaged(release=release.name, reason=reason) from error
    if found is not None:
        raise ReleaseRevoked(release=release.name, reason=f"{found}.")


def _signing_keys(release: Path) -> set[str]:
    """The ids of the keys that signed it, roots aside: those are kept for history."""
    keys = set()
    for path in (release / "metadata").glob("[a-z]*.json"):
        keys |= {each["keyid"] for each in json.loads(path.read_bytes())["signatures"]}
    return keys | {key_id_of_pem(p.read_bytes()) for p in (release / "signatures").glob("*.pub")}
