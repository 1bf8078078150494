"""Recipe → signed bundle: make every artefact, list it, bill it, sign it, write it.

    result = build(recipe_path, repository, out, cache, progress)

The manifest depends on the inputs alone: its date is ``SOURCE_DATE_EPOCH``, or the date of the
newest lock the recipe names, or (for a recipe without locks) now. Signatures that still hold are
kept, so an unchanged recipe gives the same file, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from appliance.bundle import sbom
from appliance.bundle.cache import BuildCache, Inputs
from appliance.bundle.delta import leave_out
from appliance.bundle.encryption import Sealer, encrypt_readable, seal_hidden
from appliance.bundle.format import signed_members
from appliance.bundle.sources import gguf, icd10cm, paths, wheelhouse
from appliance.bundle.sources.desk import Desk, Made
from appliance.bundle.sources.pins import read_lock
from appliance.bundle.writer import BundleContent, files, write
from appliance.errors import EpochInvalid, FileUnreadable, PermissionRefused
from appliance.i18n import _
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest
from appliance.manifests.document import load
from appliance.manifests.recipe import (
    ArtefactRecipe,
    DatasetSource,
    GgufSource,
    PathSource,
    PypiSource,
    Recipe,
)
from appliance.store.space import full_disk
from appliance.trust import model_signature
from appliance.trust.repository import Repository

if TYPE_CHECKING:
    from appliance.progress import Progress

_MAKERS: Mapping[type, Callable[[ArtefactRecipe, Any, Desk], Made]] = {
    PathSource: paths.make,
    GgufSource: gguf.make,
    PypiSource: wheelhouse.make,
    DatasetSource: icd10cm.make,
}


@dataclass(frozen=True)
class Built:
    """A bundle that was written. ``size`` in bytes, ``seconds`` for the whole build."""

    path: Path
    manifest: BundleManifest
    size: int
    seconds: float


def build(
    recipe_path: Path,
    repository: Repository,
    out: Path,
    cache: BuildCache,
    progress: Progress,
    *,
    base: BundleManifest | None = None,
) -> Built:
    """Build, sign and write the bundle of a recipe to ``out``, replacing it atomically.

    With ``base`` a delta, without the blobs that bundle has; encrypted if the recipe says so.

    Raises ``ManifestInvalid`` for the recipe, what the sources raise (see
    :mod:`appliance.bundle.sources`), and what opening the keys raises.
    """
    started = time.monotonic()
    recipe = load(Recipe, recipe_path)
    _check_writable(out.parent)
    model_key = repository.model_key()  # keys that cannot be opened stop it now, not at the end
    desk = Desk(
        recipe=recipe_path,
        platform=recipe.platform,
        cache=cache,
        epoch=build_epoch(recipe, recipe_path),
        progress=progress,
        local_builds=recipe.local_builds,
    )
    with full_disk(cache.root, None, _("The disk filled up while the bundle's parts were made.")):
        made = [_MAKERS[type(part.source)](part, part.source, desk) for part in recipe.artefacts]
    manifest = manifest_of(recipe, made, desk)
    where = {f"sha256:{f.content.hex}": f.content.location for m in made for f in m.files}
    bill = sbom.bill_of(manifest, where)
    signatures = {a.name: _model_signature(a, model_key, cache) for a in manifest.of_kind("model")}
    members = signed_members(manifest, bill, signatures)
    content = BundleContent(manifest, bill, signatures, repository.sign(manifest.name, members))
    if base is not None:
        content = leave_out(content, base, repository)
    wish, blobs = recipe.encryption, files(where.__getitem__)
    if wish is None:
        _write_once(out, content, where, cache, progress)
    elif wish.metadata == "readable":
        encrypt_readable(out, content, blobs, Sealer(wish.recipients, repository), progress)
    else:
        seal_hidden(out, content, blobs, wish.recipients, progress)
    return Built(out, manifest, out.stat().st_size, time.monotonic() - started)


def _write_once(
    out: Path,
    content: BundleContent,
    where: Mapping[str, Path],
    cache: BuildCache,
    progress: Progress,
) -> None:
    """Write the bundle, unless ``out`` is the file an earlier build wrote from the same content."""
    front = hashlib.sha256(b"".join(content.members().values())).hexdigest()
    if cache.is_output(out, front):
        progress.say(_("{path} is already this bundle.").format(path=out))
        return
    write(out, content, where.__getitem__, progress)
    with full_disk(cache.root, None, _("The bundle is written; only the cache could not note it.")):
        cache.remember_output(out, front)


def manifest_of(recipe: Recipe, made: Sequence[Made], desk: Desk) -> BundleManifest:
    """The manifest of what was made, one for each part of the recipe.

    Raises ``SourceMissing`` if a path in it is not acceptable.
    """
    artefacts = []
    for part, result in zip(recipe.artefacts, made, strict=True):
        files = sorted(
            (file.path, f"sha256:{file.content.hex}", file.content.size) for file in result.files
        )
        try:
            artefacts.append(
                Artefact(
                    kind=part.kind,
                    name=part.name,
                    version=part.version,
                    licence=part.licence,
                    description=part.description,
                    attributes={**result.attributes, **part.attributes},
                    files=tuple(BlobRef(path=p, digest=d, size=s) for p, d, s in files),
                )
            )
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ") + "."
            raise desk.missing(part.name, desk.recipe, reason) from error
    return BundleManifest(
        schema_version=1,
        name=recipe.name,
        version=recipe.version,
        created=datetime.fromtimestamp(desk.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        platform=recipe.platform,
        artefacts=tuple(artefacts),
    )


def build_epoch(recipe: Recipe, recipe_path: Path) -> int:
    """The second everything is dated with; see the module's first lines."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        if not given.isascii() or not given.isdigit() or not 315532800 <= int(given) < 2**32:
            raise EpochInvalid(value=given)
        return int(given)
    locks = [a.source.lock for a in recipe.artefacts if isinstance(a.source, PypiSource)]
    dates = [read_lock(recipe_path.parent / lock).locked for lock in locks]
    known = [date.timestamp() for date in dates if date]
    return int(max(known, default=time.time()))


def _model_signature(artefact: Artefact, key: EllipticCurvePrivateKey, cache: BuildCache) -> bytes:
    """The model's OMS signature: the one made before if it still verifies, else a new one.

    ECDSA takes a random number, so signing again would change the bundle for nothing.
    """
    files = {file.path: file.hex for file in artefact.files}
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    inputs: Inputs = {
        "model": artefact.name,
        "key": public.decode(),
        "files": [f"{path}\0{digest}" for path, digest in files.items()],
    }
    folder = cache.make(
        "oms",
        inputs,
        lambda out: _write(out / "oms.json", model_signature.sign(files, key, artefact.name)),
    )
    kept = (folder / "oms.json").read_bytes()
    try:
        if model_signature.verify(kept, files, public) == artefact.name:
            return kept
    except model_signature.ModelSignatureInvalid:
        pass
    return model_signature.sign(files, key, artefact.name)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _check_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise FileUnreadable(path=folder, reason=_("The bundle would go there; it is no folder."))
    if not os.access(folder, os.W_OK):
        raise PermissionRefused(path=folder, action=_("written to"), reason=_("It is read-only."))
