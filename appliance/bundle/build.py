"""Recipe → signed bundle: make every artefact, list it, bill it, sign it, write it.

    result = build(recipe_path, repository, out, cache, progress)

What is in it depends on the inputs alone (:mod:`appliance.bundle.making`). Signatures that still
hold are kept, so an unchanged recipe gives the same file, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.bundle import bootstrap, locking, provenance, publishers, sbom
from appliance.bundle.cache import BuildCache, Inputs
from appliance.bundle.delta import leave_out
from appliance.bundle.encryption import Sealer, encrypt_readable, seal_hidden
from appliance.bundle.format import PROVENANCE, REVOCATIONS, signed_members
from appliance.bundle.licence_policy import Licensed, judge, licensed_in
from appliance.bundle.licences import read_wheel
from appliance.bundle.locking import LockUse
from appliance.bundle.making import desk_for, is_as_locked, make_all, manifest_of
from appliance.bundle.writer import BundleContent, files, write
from appliance.errors import FileUnreadable, LicenceDenied, PermissionRefused
from appliance.i18n import _
from appliance.manifests.bundle import Artefact, BundleManifest
from appliance.manifests.document import load
from appliance.manifests.recipe import Recipe
from appliance.store.space import full_disk
from appliance.trust import model_signature
from appliance.trust.repository import Repository
from appliance.trust.statement import IN_TOTO

if TYPE_CHECKING:
    from appliance.progress import Progress


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
        desk_for(recipe, recipe_path, lock, cache, progress),
        release_signer=repository.release_signer,
    )
    with full_disk(cache.root, None, _("The disk filled up while the bundle's parts were made.")):
        made = make_all(recipe, desk)
        carried = bootstrap.prepare(recipe.bootstrap, desk) if recipe.bootstrap else None
    as_locked = lock is not None and is_as_locked(lock, recipe, made, use, desk)
    manifest = manifest_of(recipe, made, desk)
    upstream = publishers.verified(recipe, manifest, desk)
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
        **{member: each.signature for member, each in upstream.items()},
    }
    members = signed_members(manifest, bill, signatures, others)
    metadata = repository.sign(
        manifest.name,
        members,
        artefacts=manifest.artefacts,
        publishers={member: each.publisher for member, each in upstream.items()},
    )
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
