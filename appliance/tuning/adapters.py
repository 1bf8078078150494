"""Adapters: signed when they are registered, verified in full whenever one is to be loaded.

```
Home.adapters/<hex>/   adapter_model.safetensors  adapter_config.json  card.json  adapter.oms.json
Home.secrets/adapter-signing.key   P-256, made at install; only the control plane reads it
Home.trust/adapter-signing.pem     its public half; what a serving replica verifies with
```
An adapter's digest is :func:`appliance.tuning.files.tree_digest` of its files without the
signature. The signature is OpenSSF Model Signing's (:mod:`appliance.trust.model_signature`), so
other tools can check it too.

:func:`verify` fails closed: registry entry, status, base, every file's digest, signature and card
must all agree, nothing of it may be revoked, and there must be no file more and none less. The
training job never sees the key: what it wrote is hashed and signed by whoever calls
:func:`register`.
"""

from __future__ import annotations

import errno
import hmac
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from pydantic import ValidationError

from appliance.errors import (
    AdapterKeyUnusable,
    AdapterRefused,
    AdapterRunIncomplete,
    DiskFull,
    PassphraseWrong,
    TrustKeysMissing,
)
from appliance.i18n import _
from appliance.layout import Home
from appliance.manifests.bundle import Artefact
from appliance.registry import Adapter, AdapterStatus, Registry
from appliance.store.releases import Release
from appliance.trust import keys, model_signature
from appliance.trust.pin import load_revocations
from appliance.tuning.card import AdapterCard
from appliance.tuning.files import (
    folder_files,
    publish,
    staged_folder,
    tree_digest,
    write_atomically,
)
from appliance.tuning.run import Result, RunFolder

SIGNATURE = "adapter.oms.json"
CARD = "card.json"
_FILES = frozenset({"adapter_model.safetensors", "adapter_config.json", CARD})


Revoked = Callable[[Mapping[str, str]], None]
"""Raises if anything of an adapter (its files' digests by name) was taken back."""


class Purpose(Enum):
    """What an adapter is wanted for, which decides the status it must have."""

    SERVE = frozenset({AdapterStatus.PROMOTED})
    PREVIEW = frozenset({AdapterStatus.PROMOTED, AdapterStatus.EVALUATED})


def ensure_signing_key(home: Home) -> Path:
    """Make the site's key for signing adapters, unless it is there; return its public half's path.

    Called at install. Raises :class:`AdapterKeyUnusable` for a key that is damaged.
    """
    private, public = _private_key(home), public_key(home)
    private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    public.parent.mkdir(parents=True, exist_ok=True)
    if not private.exists():
        staged = private.with_name(f".{private.name}.new")
        staged.unlink(missing_ok=True)
        keys.save_key(staged, keys.new_model_key(), passphrase=None)
        staged.rename(private)
    pem = keys.public_pem(_load_key(private))
    if not public.exists() or public.read_bytes() != pem:
        write_atomically(public, pem)
    return public


def public_key(home: Home) -> Path:
    """Where the public half of the signing key lies."""
    return home.trust / "adapter-signing.pem"


def register(home: Home, registry: Registry, run_dir: Path, job_id: str | None = None) -> Adapter:
    """Hash, sign and register the adapter of a finished run, as *evaluated*. Repeatable.

    Raises:
        AdapterRunIncomplete: the run has no result, or its files are not the ones it recorded.
        AdapterKeyUnusable: the signing key is missing or damaged.
        NameTaken: the name stands for another adapter.
        DiskFull: there is no room for the copy.
    """
    folder = RunFolder(run_dir)
    card, files = _finished(folder)
    return _take(home, registry, folder.result, card, files, job_id=job_id)


def bring(home: Home, registry: Registry, release: Release, artefact: Artefact) -> Adapter:
    """Register an adapter that a verified bundle brought, as *evaluated*. Repeatable.

    The signature it travelled with was the other site's, and the bundle's covers the same files;
    here it gets this site's, like any other.

    Raises:
        AdapterRefused: it is not a whole adapter of that name.
        AdapterKeyUnusable, NameTaken, DiskFull: as for :func:`register`.
    """
    name, folder = artefact.name, release.folder / artefact.folder
    try:
        files = _exact_files(folder)
        card = AdapterCard.model_validate_json((folder / CARD).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterRefused(name=name, reason=_("It is not whole: {0}.").format(reason)) from error
    brought = {file.path: file.digest for file in artefact.files if file.path != SIGNATURE}
    if files != brought:
        raise AdapterRefused(name=name, reason=_("Its files are not the ones the bundle brought."))
    if card.name != name:
        raise AdapterRefused(name=name, reason=_("Its card is that of another adapter."))
    return _take(home, registry, folder, card, files, job_id=None)


def _take(
    home: Home,
    registry: Registry,
    source: Path,
    card: AdapterCard,
    files: Mapping[str, str],
    *,
    job_id: str | None,
) -> Adapter:
    """Copy, hash again, sign and record the adapter in ``source``."""
    digest = tree_digest(files)
    target = _place(home, digest)
    key = _load_key(_private_key(home))
    try:
        with staged_folder(home.adapters) as staging:
            for name in files:
                shutil.copyfile(source / name, staging / name)
            # Signed is what was copied and hashed again, not what the job said it wrote.
            if folder_files(staging) != files:
                raise AdapterRunIncomplete(path=source, reason=_("Its files changed meanwhile."))
            (staging / SIGNATURE).write_bytes(model_signature.sign(_hex(files), key, card.name))
            publish(staging, target)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _disk_full(home, source) from error
        raise
    return registry.adapters.add(
        Adapter(
            name=card.name,
            base=card.base.name,
            base_digest=card.base.digest,
            dataset_digest=card.dataset.digest,
            job_id=job_id,
            digest=digest,
            path=str(target),
            status=AdapterStatus.EVALUATED,
            card_path=str(target / CARD),
            created=card.created,
        )
    )


def verify(
    home: Home,
    registry: Registry,
    name: str,
    base_digest: str,
    purpose: Purpose = Purpose.SERVE,
) -> Path:
    """The folder of an adapter that may be loaded over the base of ``base_digest``.

    Raises:
        RecordMissing: there is no adapter of that name.
        AdapterRefused: anything at all is not as it must be; the reason says what.
    """
    record = registry.adapters.get(name)
    if record.status not in purpose.value:
        raise AdapterRefused(
            name=name, reason=_("Its status is {0}, not promoted.").format(record.status.value)
        )
    if not hmac.compare_digest(record.base_digest.encode(), base_digest.encode()):
        raise AdapterRefused(name=name, reason=_("It was trained on another base model."))
    return _check_content(home, record)


def promote(home: Home, registry: Registry, name: str) -> Adapter:
    """Allow an adapter to be served, after checking that it is still what was signed.

    Raises ``RecordMissing``, ``TransitionRefused``, :class:`AdapterRefused`.
    """
    record = registry.adapters.get(name)
    _check_content(home, record)
    return registry.adapters.set_status(name, AdapterStatus.PROMOTED)


def retire(_home: Home, registry: Registry, name: str) -> Adapter:
    """Take an adapter out of service; its files stay. Called like :func:`promote`.

    Raises ``RecordMissing``, ``TransitionRefused``.
    """
    return registry.adapters.set_status(name, AdapterStatus.RETIRED)


def _finished(folder: RunFolder) -> tuple[AdapterCard, dict[str, str]]:
    """The card and the files' digests of a run that ended well."""
    try:
        result = Result.model_validate_json(folder.result_file.read_bytes())
        run_digest = folder.load().digest()
        files = _exact_files(folder.result)
        card = AdapterCard.model_validate_json((folder.result / CARD).read_bytes())
    except (OSError, ValidationError, _NotExact) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterRunIncomplete(path=folder.root, reason=reason) from error
    if files != result.files or result.run != run_digest:
        raise AdapterRunIncomplete(
            path=folder.root, reason=_("Its files are not the ones the job recorded.")
        )
    return card, files


@dataclass(frozen=True, slots=True)
class Claim:
    """What is said of an adapter: name, digest of its files and of its base, and who signed it
    (public key, PEM)."""

    name: str
    digest: str
    base_digest: str
    signer: bytes


def verify_signed(home: Home, claim: Claim, revoked: Revoked) -> Path:
    """The folder of an adapter that is, file for file, what is claimed and was signed.

    Nothing is asked of the registry, so a host that has none can verify what it is told to load.
    Raises :class:`AdapterRefused`, and what ``revoked`` raises.
    """
    name = claim.name
    folder = _place(home, claim.digest)
    try:
        files = _exact_files(folder)
        if not hmac.compare_digest(tree_digest(files), claim.digest):
            raise AdapterRefused(name=name, reason=_("Its files are not the ones registered."))
        revoked(files)
        signed = model_signature.verify(
            (folder / SIGNATURE).read_bytes(), _hex(files), claim.signer
        )
        card = AdapterCard.model_validate_json((folder / CARD).read_bytes())
    except model_signature.ModelSignatureInvalid as error:
        raise AdapterRefused(
            name=name, reason=_("Its signature is not valid: {0}.").format(error)
        ) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterRefused(
            name=name, reason=_("Its files are not as they were signed: {0}.").format(reason)
        ) from error
    if (signed, card.name) != (name, name):
        raise AdapterRefused(name=name, reason=_("Its card is that of another adapter."))
    if card.base.digest != claim.base_digest:
        raise AdapterRefused(name=name, reason=_("It was trained on another base model."))
    return folder


def _check_content(home: Home, record: Adapter) -> Path:
    """The folder of ``record``, if what is in it is what was registered and signed."""
    try:
        pem = public_key(home).read_bytes()
    except OSError as error:
        raise AdapterRefused(
            name=record.name,
            reason=_("Its files are not as they were signed: {0}.").format(error.strerror),
        ) from error

    def revoked(files: Mapping[str, str]) -> None:
        _refuse_revoked(home, record, files, pem)

    claim = Claim(record.name, record.digest, record.base_digest, pem)
    return verify_signed(home, claim, revoked)


def _refuse_revoked(home: Home, record: Adapter, files: Mapping[str, str], pem: bytes) -> None:
    """Keep out an adapter that a supplier took back: it, a file of it, its base or its key.

    A list that cannot be read raises ``TrustStateDamaged``: what may be revoked is not loaded.
    """
    revocations = load_revocations(home.trust)
    found = revocations.content(record.digest, record.base_digest, *files.values())
    found = found or revocations.find("key", model_signature.key_id_of_pem(pem))
    if found is not None:
        raise AdapterRefused(name=record.name, reason=_("It was revoked: {0}.").format(found))


class _NotExact(ValueError):
    """A folder holds more, less or other than an adapter's files."""


def _exact_files(folder: Path) -> dict[str, str]:
    """Name → digest of an adapter's files. Raises :class:`_NotExact` and ``OSError``.

    Plain files only: a link could be pointed elsewhere between this check and the load.
    """
    with os.scandir(folder) as entries:
        kinds = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
    kinds.pop(SIGNATURE, None)
    if set(kinds) != _FILES or not all(kinds.values()):
        odd = sorted(_FILES ^ set(kinds)) or sorted(n for n, plain in kinds.items() if not plain)
        raise _NotExact(_("{0} is missing or should not be there").format(", ".join(odd)))
    return {name: digest for name, digest in folder_files(folder).items() if name != SIGNATURE}


def _hex(files: Mapping[str, str]) -> dict[str, str]:
    """Digests as the model signature wants them: without ``sha256:``."""
    return {name: digest.removeprefix("sha256:") for name, digest in files.items()}


def _place(home: Home, digest: str) -> Path:
    return home.adapters / digest.removeprefix("sha256:")


def _private_key(home: Home) -> Path:
    return home.secrets / "adapter-signing.key"


def _load_key(path: Path) -> EllipticCurvePrivateKey:
    try:
        return keys.load_model_key(path, _no_passphrase)
    except (TrustKeysMissing, PassphraseWrong) as error:
        raise AdapterKeyUnusable(path=path, reason=error.sentences()[1]) from error


def _no_passphrase() -> bytes:
    """The site's own key lies in clear under ``secrets`` (0600): a service has nobody to ask."""
    return b""


def _disk_full(home: Home, source: Path) -> DiskFull:
    needed = sum(path.stat().st_size for path in source.iterdir())
    return DiskFull(
        path=home.adapters,
        needed=f"{needed // 1_000_000 + 1} MB",
        free=f"{shutil.disk_usage(home.adapters).free // 1_000_000} MB",
        reason=_("The adapter is copied there when it is registered."),
    )
