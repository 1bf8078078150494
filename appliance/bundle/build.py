"""Recipe → signed bundle: make every artefact, list it, bill it, sign it, write it.

    result = build(recipe_path, repository, out, cache, progress)

The manifest depends on the inputs alone: its date is that of ``bundle.lock``, if there is one for
this recipe; else ``SOURCE_DATE_EPOCH``, or the date of the newest requirements lock the recipe
names, or now. Signatures that still hold are kept, so an unchanged recipe gives the same file, byte
for byte.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from appliance.bundle import locking, sbom
from appliance.bundle.cache import BuildCache, Inputs
from appliance.bundle.format import signed_members
from appliance.bundle.locking import LockUse
from appliance.bundle.sources import (
    ansible,
    debian,
    gguf,
    huggingface,
    icd10cm,
    paths,
    urls,
    wheelhouse,
)
from appliance.bundle.sources.desk import Desk, Made
from appliance.bundle.sources.pins import read_lock
from appliance.bundle.writer import BundleContent, write
from appliance.errors import DiskFull, EpochInvalid, FileUnreadable, PermissionRefused
from appliance.i18n import _
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest
from appliance.manifests.bundle_lock import BundleLock
from appliance.manifests.document import load
from appliance.manifests.recipe import (
    AnsibleSource,
    ArtefactRecipe,
    DatasetSource,
    DebianSource,
    GgufSource,
    HuggingfaceSource,
    PathSource,
    PypiSource,
    Recipe,
    UrlSource,
)
from appliance.trust import model_signature
from appliance.trust.repository import Repository

if TYPE_CHECKING:
    from appliance.progress import Progress

_SPARE = 64 << 20  # bytes: headers, padding, and not filling a disk to the brim

_MAKERS: Mapping[type, Callable[[ArtefactRecipe, Any, Desk], Made]] = {
    PathSource: paths.make,
    UrlSource: urls.make,
    HuggingfaceSource: huggingface.make,
    GgufSource: gguf.make,
    PypiSource: wheelhouse.make,
    DatasetSource: icd10cm.make,
    DebianSource: debian.make,
    AnsibleSource: ansible.make,
}


@dataclass(frozen=True)
class Built:
    """A bundle that was written. ``size`` in bytes, ``seconds`` for the whole build.

    ``as_locked`` says whether ``bundle.lock`` pins all of it (a project's own wheel aside).
    """

    path: Path
    manifest: BundleManifest
    size: int
    seconds: float
    as_locked: bool = False


def build(
    recipe_path: Path,
    repository: Repository,
    out: Path,
    cache: BuildCache,
    progress: Progress,
    *,
    use: LockUse = LockUse.IF_IT_FITS,
) -> Built:
    """Build, sign and write the bundle of a recipe to ``out``, replacing it atomically.

    Raises ``ManifestInvalid`` for the recipe, what the sources raise (see
    :mod:`appliance.bundle.sources`), what opening the keys raises, and ``BundleLockMissing``,
    ``BundleLockStale`` or ``BundleLockDiffers`` where the lock is demanded.
    """
    started = time.monotonic()
    recipe = load(Recipe, recipe_path)
    _check_writable(out.parent)
    lock = locking.for_build(recipe, recipe_path, use, progress)
    model_key = repository.model_key()  # keys that cannot be opened stop it now, not at the end
    desk = replace(
        _desk(recipe, recipe_path, lock, cache, progress), release_signer=repository.release_signer
    )
    made = make_all(recipe, desk)
    as_locked = lock is not None and _is_as_locked(lock, recipe, made, use, desk)
    manifest = manifest_of(recipe, made, desk)
    where = {f"sha256:{f.content.hex}": f.content.location for m in made for f in m.files}
    bill = sbom.bill_of(manifest, where)
    signatures = {a.name: _model_signature(a, model_key, cache) for a in manifest.of_kind("model")}
    members = signed_members(manifest, bill, signatures)
    content = BundleContent(manifest, bill, signatures, repository.sign(manifest.name, members))
    _write_once(out, content, where, cache, progress)
    return Built(out, manifest, out.stat().st_size, time.monotonic() - started, as_locked)


def lock(
    recipe_path: Path, kept: BundleLock | None, cache: BuildCache, progress: Progress
) -> BundleLock:
    """Resolve, fetch and make everything a recipe names, and say what that was.

    What ``kept`` decided for an artefact whose part of the recipe is unchanged stays decided. If
    nothing changed at all, ``kept`` itself is the answer, with its date. Raises what the sources
    raise.
    """
    recipe = load(Recipe, recipe_path)
    desk = _desk(recipe, recipe_path, kept, cache, progress)
    if kept is None:  # what an archive said earlier is a decision too
        for part in recipe.artefacts:
            if isinstance(part.source, DebianSource):
                debian.forget(part, part.source, desk)
    found = locking.lock_of(recipe, make_all(recipe, desk), desk.epoch)
    epoch = build_epoch(recipe, recipe_path)
    if found == kept or epoch == desk.epoch:
        return found
    dated = replace(desk, epoch=epoch)  # a source may write the date into what it makes
    return locking.lock_of(recipe, make_all(recipe, dated), epoch)


def make_all(recipe: Recipe, desk: Desk) -> list[Made]:
    """What each part of the recipe stands for, in its order."""
    return [_MAKERS[type(part.source)](part, part.source, desk) for part in recipe.artefacts]


def _desk(
    recipe: Recipe,
    recipe_path: Path,
    lock: BundleLock | None,
    cache: BuildCache,
    progress: Progress,
) -> Desk:
    return Desk(
        recipe=recipe_path,
        platform=recipe.platform,
        cache=cache,
        epoch=locking.epoch_of(lock) if lock else build_epoch(recipe, recipe_path),
        progress=progress,
        local_builds=recipe.local_builds,
        lock=lock,
    )


def _is_as_locked(
    lock: BundleLock, recipe: Recipe, made: Sequence[Made], use: LockUse, desk: Desk
) -> bool:
    """Whether all is as locked. Raises if it is not, and has to be."""
    found = locking.differences(lock, recipe, made)
    if found and use is LockUse.DEMANDED:
        raise found[0].error(desk.recipe)
    for difference in found[:1]:
        text = _("{count} files are not as locked, {file} of {artefact} first.")
        desk.progress.say(
            text.format(
                count=len(found),
                file=difference.path or locking.place(desk.recipe).name,
                artefact=difference.artefact,
            )
        )
    return not found


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
    _check_space(out.parent, sum(blob.size for blob in content.manifest.blobs()))
    write(out, content, where.__getitem__, progress)
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
    """The second everything is dated with where no lock says it; see the module's first lines."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        if not given.isascii() or not given.isdigit() or not 315532800 <= int(given) < 2**32:
            raise EpochInvalid(value=given)
        return int(given)
    sources = [a.source for a in recipe.artefacts if isinstance(a.source, PypiSource)]
    locks = [lock for source in sources for lock in source.locks]
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


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise DiskFull(
            path=folder,
            needed=f"{needed / 1e9:.2f} GB",
            free=f"{free / 1e9:.2f} GB",
            reason=_("The bundle is written beside its final name, then renamed."),
        )


def _check_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise FileUnreadable(path=folder, reason=_("The bundle would go there; it is no folder."))
    if not os.access(folder, os.W_OK):
        raise PermissionRefused(path=folder, action=_("written to"), reason=_("It is read-only."))
