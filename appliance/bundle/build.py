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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from appliance.bundle import bootstrap, locking, provenance, sbom
from appliance.bundle.cache import BuildCache, Inputs
from appliance.bundle.delta import leave_out
from appliance.bundle.encryption import Sealer, encrypt_readable, seal_hidden
from appliance.bundle.format import PROVENANCE, REVOCATIONS, signed_members
from appliance.bundle.licence_policy import Licensed, judge, licensed_in
from appliance.bundle.licences import read_wheel
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
from appliance.bundle.writer import BundleContent, files, write
from appliance.errors import (
    EpochInvalid,
    FileUnreadable,
    LicenceDenied,
    PermissionRefused,
)
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
from appliance.store.space import full_disk
from appliance.trust import model_signature
from appliance.trust.repository import Repository
from appliance.trust.statement import IN_TOTO

if TYPE_CHECKING:
    from appliance.progress import Progress

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

    ``bootstrap`` is the ``sovctl.pyz`` beside it, if the recipe asks for one.
    ``as_locked`` says whether ``bundle.lock`` pins all of it (a project's own wheel aside).
    """

    path: Path
    manifest: BundleManifest
    size: int
    seconds: float
    bootstrap: bootstrap.Written | None = None
    as_locked: bool = False


def build(
    recipe_path: Path,
    repository: Repository,
    out: Path,
    cache: BuildCache,
    progress: Progress,
    *,
    base: BundleManifest | None = None,
    use: LockUse = LockUse.IF_IT_FITS,
) -> Built:
    """Build, sign and write the bundle of a recipe to ``out``, replacing it atomically.

    With ``base`` a delta, without the blobs that bundle has; encrypted if the recipe says so.

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
    with full_disk(cache.root, None, _("The disk filled up while the bundle's parts were made.")):
        made = make_all(recipe, desk)
        carried = bootstrap.prepare(recipe.bootstrap, desk) if recipe.bootstrap else None
    as_locked = lock is not None and _is_as_locked(lock, recipe, made, use, desk)
    manifest = manifest_of(recipe, made, desk)
    where = {f"sha256:{f.content.hex}": f.content.location for m in made for f in m.files}
    bill = sbom.bill_of(manifest, where, recipe.licences)
    _check_licences(recipe, recipe_path, [*licensed_in(bill), *_licensed(carried)])
    signatures = {a.name: _model_signature(a, model_key, cache) for a in manifest.of_kind("model")}
    pyz = bootstrap.write(carried, beside(out), cache) if carried else None
    inputs = provenance.inputs_of(recipe_path, recipe, manifest.artefacts)
    payload = provenance.statement(manifest, inputs, {"sovctl.pyz": pyz.sha256} if pyz else {})
    others = {
        PROVENANCE: repository.statement(payload, IN_TOTO),
        REVOCATIONS: repository.revocations(),
    }
    members = signed_members(manifest, bill, signatures, others)
    metadata = repository.sign(manifest.name, members, artefacts=manifest.artefacts)
    content = BundleContent(manifest, bill, signatures, metadata, others)
    if base is not None:
        content = leave_out(content, base, repository)
    wish, blobs = recipe.encryption, files(where.__getitem__)
    if wish is None:
        _write_once(out, content, where, cache, progress)
    elif wish.metadata == "readable":
        encrypt_readable(out, content, blobs, Sealer(wish.recipients, repository), progress)
    else:
        seal_hidden(out, content, blobs, wish.recipients, progress)
    return Built(out, manifest, out.stat().st_size, time.monotonic() - started, pyz, as_locked)


def beside(out: Path) -> Path:
    """Where the ``sovctl.pyz`` of a bundle goes."""
    return out.with_name(out.stem + bootstrap.SUFFIX)


def _check_licences(recipe: Recipe, path: Path, components: Sequence[Licensed]) -> None:
    """Refuse the bundle, naming every component the recipe's policy forbids."""
    if recipe.licences is None:
        return
    denied = [j for j in judge(components, recipe.licences) if j.verdict == "denied"]
    if denied:
        named = [f"{j.component.name} {j.component.version} ({j.reason})" for j in denied]
        raise LicenceDenied(recipe=path, count=len(denied), components=", ".join(named))


def _licensed(carried: bootstrap.Prepared | None) -> Iterator[Licensed]:
    """The components of a ``sovctl.pyz``, which is handed on beside the bundle."""
    for path in carried.wheels.values() if carried else ():
        facts = read_wheel(path)
        yield Licensed(
            "wheel", facts.name, facts.version, facts.licence.expression, facts.licence.name
        )


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
    """The second everything is dated with where no lock says it; see the module's first lines."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        if not given.isascii() or not given.isdigit() or not 315532800 <= int(given) < 2**32:
            raise EpochInvalid(value=given)
        return int(given)
    sources = [a.source for a in recipe.artefacts if isinstance(a.source, PypiSource)]
    locks = [lock for source in sources for lock in source.locks]
    locks += [recipe.bootstrap.lock] if recipe.bootstrap else []
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
