"""Publishers' own signatures (OpenSSF Model Signing), where the recipe wants them.

    upstream = verified(recipe, manifest, desk)      # member → signature, and by whom it must be

A signature that does not hold stops the build: the model is not what its publisher signed, or the
publisher is another. One that holds travels as ``upstream/<model>.oms.json``, and the site judges
it again by the same keys, which the targets role signs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from appliance.errors import FileUnreadable, PublisherRefused
from appliance.manifests.bundle import Artefact, BundleManifest
from appliance.manifests.recipe import PublisherRecipe, Recipe
from appliance.trust.model_signature import ModelSignatureInvalid, Publisher, verify_upstream

if TYPE_CHECKING:
    from appliance.bundle.sources.desk import Desk


@dataclass(frozen=True)
class Upstream:
    """A publisher's signature as published, and whose it has been found to be."""

    signature: bytes
    publisher: Publisher


def verified(recipe: Recipe, manifest: BundleManifest, desk: Desk) -> dict[str, Upstream]:
    """Member name → signature, for every model the recipe names a publisher of.

    Raises :class:`PublisherRefused` and :class:`FileUnreadable`.
    """
    found = {}
    for part, artefact in zip(recipe.artefacts, manifest.artefacts, strict=True):
        if part.publisher is not None:
            found[f"upstream/{part.name}.oms.json"] = _verified(part.publisher, artefact, desk)
    return found


def _verified(named: PublisherRecipe, artefact: Artefact, desk: Desk) -> Upstream:
    (signature,) = _read([named.signature], desk)
    publisher = Publisher(_read(named.keys, desk), _read(named.authorities, desk))
    files = {file.path: file.hex for file in artefact.files}
    try:
        verify_upstream(signature, files, publisher, datetime.now(UTC))
    except (ModelSignatureInvalid, ValueError) as error:  # a key file may be no key
        path = desk.path(named.signature)
        reason = f"{error}"
        raise PublisherRefused(artefact=artefact.name, path=path, reason=reason) from error
    return Upstream(signature, publisher)


def _read(paths: Iterable[str], desk: Desk) -> tuple[bytes, ...]:
    content = []
    for path in paths:
        try:
            content.append(desk.path(path).read_bytes())
        except OSError as error:
            raise FileUnreadable(path=desk.path(path), reason=error.strerror or error) from error
    return tuple(content)
