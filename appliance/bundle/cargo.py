"""Which blobs one copy of a bundle carries, and as what: from its manifest and its statements.

A full bundle in clear carries each blob as it is. A delta leaves some out; an encrypted bundle
carries each as an age file. Reader and writer both ask here. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.bundle.format import AGE, DELTA, ENCRYPTION, PLAIN, Layout, place_named
from appliance.manifests.bundle import BlobRef, BundleManifest
from appliance.manifests.transport import DeltaStatement, EncryptionStatement
from appliance.trust import statement as dsse


class CargoInvalid(ValueError):
    """The statement ``member`` does not fit the manifest."""

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(reason)
        self.member = member


@dataclass(frozen=True)
class Cargo:
    """What a copy carries: ``blob_of`` maps a member's name to the blob (in clear) it carries, in
    the tar's order; ``sizes`` to the bytes it has there. ``left_out`` is what a delta omits.
    """

    blob_of: Mapping[str, BlobRef]
    sizes: Mapping[str, int]
    left_out: tuple[BlobRef, ...]
    delta: DeltaStatement | None
    encryption: EncryptionStatement | None

    def layout(self, front: Sequence[tuple[str, int]]) -> Layout:
        """Where everything lies behind front members ``(name, size)``."""
        return place_named(front, [(name, self.sizes[name]) for name in self.blob_of])


def cargo_of(manifest: BundleManifest, statements: Mapping[str, bytes]) -> Cargo:
    """Read the statements (not their signatures). Raises :class:`CargoInvalid`."""
    delta = _delta(manifest, statements)
    omitted = set(delta.left_out) if delta else set()
    carried = [blob for blob in manifest.blobs() if blob.hex not in omitted]
    left_out = tuple(blob for blob in manifest.blobs() if blob.hex in omitted)
    encryption = _encryption(manifest, carried, statements)
    if encryption is None:
        blobs = {f"{PLAIN}{blob.hex}": blob for blob in carried}
        sizes = {name: blob.size for name, blob in blobs.items()}
        return Cargo(blobs, sizes, left_out, delta, None)
    pairs = zip(encryption.blobs, carried, strict=True)
    names = {f"{AGE}{each.cipher}": blob for each, blob in pairs}
    sizes = {f"{AGE}{each.cipher}": each.size for each in encryption.blobs}
    return Cargo({n: names[n] for n in sorted(names)}, sizes, left_out, delta, encryption)


def _delta(manifest: BundleManifest, statements: Mapping[str, bytes]) -> DeltaStatement | None:
    if DELTA not in statements:
        return None
    try:
        delta = DeltaStatement.parse(dsse.payload(statements[DELTA], DeltaStatement.TYPE))
        if delta.bundle != manifest.digest:
            raise ValueError("it is about another bundle")
        if not set(delta.left_out) <= {blob.hex for blob in manifest.blobs()}:
            raise ValueError("it leaves out what the bundle does not list")
    except ValueError as error:
        raise CargoInvalid(DELTA, str(error).splitlines()[0]) from error
    return delta


def _encryption(
    manifest: BundleManifest, carried: Sequence[BlobRef], statements: Mapping[str, bytes]
) -> EncryptionStatement | None:
    if ENCRYPTION not in statements:
        return None
    try:
        payload = dsse.payload(statements[ENCRYPTION], EncryptionStatement.TYPE)
        encryption = EncryptionStatement.parse(payload)
        if encryption.bundle != manifest.digest:
            raise ValueError("it is about another bundle")
        if [each.blob for each in encryption.blobs] != [blob.hex for blob in carried]:
            raise ValueError("it is not about the blobs that the bundle carries")
    except ValueError as error:
        raise CargoInvalid(ENCRYPTION, str(error).splitlines()[0]) from error
    return encryption
