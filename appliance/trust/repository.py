"""The supplier's side of TUF: the m-of-n root, and signatures over what a bundle holds.

A repository is a folder:

    keys/root-1.pem … targets.pem snapshot.pem timestamp.pem models.pem    private keys, 0600
    keys/DEMO-KEYS.txt                       present only for passphrase-free demo keys
    roots/1.root.json …                      every root ever signed, oldest first
    bundles/<bundle name>/targets.json …     what was last signed for that bundle

    repository = Repository.create(folder, Threshold(2, 3), passphrase)
    metadata = repository.sign("hospital", members)     # TUF file name → bytes
    repository.fingerprint                              # what sites pin

Versions count per bundle name, so that two products of one supplier do not roll each other back.
After ``create`` the ``root-*.pem`` files belong on separate media in separate safes; everyday
signing needs only the other four keys.

The metadata written is RFC 8785 JSON with lower-case hexadecimal signatures and every signature
valid, because a reader accepts no other bytes (``docs/formats.md``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    T,
    TargetFile,
    Targets,
    Timestamp,
)

from appliance.errors import TrustKeysExist, TrustKeysMissing, TrustThresholdInvalid
from appliance.trust import statement
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.keys import (
    load_model_key,
    load_tuf_signer,
    new_model_key,
    new_tuf_key,
    public_pem,
    save_key,
)
from appliance.trust.passphrase import Passphrase

ROLES = (Targets.type, Snapshot.type, Timestamp.type)
DEMO_FIELD = "x-sovctl-demo"
"""In the signed root of demo keys, so that every site that pins it is told."""

_DEMO_NOTE = """These keys have no passphrase. Anyone who can read this folder can sign as you.
They are for demonstrations. The root they make says so to every site that pins it.
"""


@dataclass(frozen=True)
class Threshold:
    """``needed`` of ``keys`` root keys sign a root."""

    needed: int
    keys: int

    def __post_init__(self) -> None:
        if not 1 <= self.needed <= self.keys <= 20:
            raise TrustThresholdInvalid(threshold=self.needed, keys=self.keys)


@dataclass(frozen=True)
class Lifetimes:
    """How long signatures hold. A bundle travels by hand: the shortest is how long it may."""

    root: timedelta = timedelta(days=730)
    bundle: timedelta = timedelta(days=180)


class Repository:
    """A supplier's keys and what they signed. ``open`` touches no key; each use loads its own."""

    def __init__(self, folder: Path, passphrase: Passphrase, lifetimes: Lifetimes) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._lifetimes = lifetimes

    @classmethod
    def open(
        cls, folder: Path, passphrase: Passphrase, lifetimes: Lifetimes | None = None
    ) -> Repository:
        """An existing repository. Raises :class:`TrustKeysMissing` if there is none."""
        if not (folder / "roots" / "1.root.json").is_file():
            raise TrustKeysMissing(folder=folder, reason="There is no root in it.")
        return cls(folder, passphrase, lifetimes or Lifetimes())

    @classmethod
    def create(
        cls,
        folder: Path,
        threshold: Threshold,
        passphrase: Passphrase,
        lifetimes: Lifetimes | None = None,
    ) -> Repository:
        """Make keys, encrypted under ``passphrase``, and the first root."""
        return cls._create(folder, threshold, passphrase, passphrase, lifetimes or Lifetimes())

    @classmethod
    def create_demo(
        cls, folder: Path, threshold: Threshold, lifetimes: Lifetimes | None = None
    ) -> Repository:
        """Make passphrase-free keys and a root that says they are."""
        return cls._create(folder, threshold, None, _no_passphrase, lifetimes or Lifetimes())

    @classmethod
    def _create(
        cls,
        folder: Path,
        threshold: Threshold,
        protect: Passphrase | None,
        unlock: Passphrase,
        lifetimes: Lifetimes,
    ) -> Repository:
        keys = folder / "keys"
        if keys.exists() and any(keys.iterdir()):
            raise TrustKeysExist(folder=folder)
        if protect is not None:
            protect()  # ask before anything is written
        keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in (*_root_names(threshold), *ROLES):
            save_key(keys / f"{name}.pem", new_tuf_key(), protect)
        save_key(keys / "models.pem", new_model_key(), protect)
        repository = cls(folder, unlock, lifetimes)
        root = Root(consistent_snapshot=False)
        if protect is None:
            (keys / "DEMO-KEYS.txt").write_text(_DEMO_NOTE, encoding="utf-8")
            root.unrecognized_fields[DEMO_FIELD] = True
        signers = [repository._signer(name) for name in _root_names(threshold)]
        for signer in signers:
            root.add_key(signer.public_key, Root.type)
        root.roles[Root.type].threshold = threshold.needed
        for role in ROLES:
            root.add_key(repository._signer(role).public_key, role)
        repository._publish_root(root, signers)
        return repository

    # what a site pins

    def roots(self) -> list[bytes]:
        """Every root, oldest first, as signed."""
        files = (self.folder / "roots").glob("*.root.json")
        return [f.read_bytes() for f in sorted(files, key=lambda f: int(f.name.split(".")[0]))]

    @property
    def root(self) -> Root:
        """The newest root."""
        return Metadata[Root].from_bytes(self.roots()[-1]).signed

    @property
    def fingerprint(self) -> Fingerprint:
        """The newest root's fingerprint."""
        return Fingerprint.of(self.root)

    # signing

    def model_key(self) -> EllipticCurvePrivateKey:
        """The P-256 key for ``trust.model_signature.sign``."""
        return load_model_key(self.folder / "keys" / "models.pem", self._passphrase)

    def sign(
        self, bundle: str, members: Mapping[str, bytes], now: datetime | None = None
    ) -> dict[str, bytes]:
        """Sign a bundle's members (name → bytes, from ``bundle.format.signed_members``).

        Returns TUF metadata by file name. Signing the same members again returns the same bytes
        while at least half of their lifetime is left, so an unchanged build stays unchanged.
        """
        at = (now or datetime.now(UTC)).replace(microsecond=0)
        roots = {f"{n}.root.json": data for n, data in enumerate(self.roots(), start=1)}
        targets = {name: self._target(bundle, name, data) for name, data in members.items()}
        folder = self.folder / "bundles" / bundle
        kept = self._still_good(folder, targets, at)
        if kept is None:
            kept = self._sign_roles(targets, _last_version(folder) + 1, at)
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in kept.items():  # the timestamp last: its version is what counts
                _replace(folder / name, data)
        return {**roots, **kept}

    def statement(self, payload: bytes, payload_type: str) -> bytes:
        """Sign what is said about one copy of a bundle (``trust.statement``), as the targets role.

        The same payload under the same key gives the same bytes (Ed25519).
        """
        return statement.sign(payload, payload_type, [self._signer(Targets.type)])

    def _target(self, bundle: str, name: str, data: bytes) -> TargetFile:
        target = TargetFile(len(data), {"sha256": hashlib.sha256(data).hexdigest()}, name)
        if name == "bundle.json":
            target.unrecognized_fields["custom"] = {"bundle": bundle}
        elif name.endswith(".oms.json"):
            key = public_pem(self.model_key()).decode()
            target.unrecognized_fields["custom"] = {"public_key": key}
        return target

    def _sign_roles(
        self, targets: Mapping[str, TargetFile], version: int, at: datetime
    ) -> dict[str, bytes]:
        expires = at + self._lifetimes.bundle
        signed_targets = self._signed(
            Targets(version=version, expires=expires, targets=dict(targets))
        )
        snapshot = self._signed(
            Snapshot(
                version=version,
                expires=expires,
                meta={"targets.json": _meta(version, signed_targets)},
            )
        )
        timestamp = self._signed(
            Timestamp(version=version, expires=expires, snapshot_meta=_meta(version, snapshot))
        )
        return {
            "targets.json": signed_targets,
            "snapshot.json": snapshot,
            "timestamp.json": timestamp,
        }

    def _signed(self, payload: T) -> bytes:
        return _sign(payload, [self._signer(payload.type)])

    def _still_good(
        self, folder: Path, targets: Mapping[str, TargetFile], at: datetime
    ) -> dict[str, bytes] | None:
        names = ("targets.json", "snapshot.json", "timestamp.json")
        if not all((folder / name).is_file() for name in names):
            return None
        kept = {name: (folder / name).read_bytes() for name in names}
        root = self.root
        try:
            for role in ROLES:
                metadata = Metadata[Any].from_bytes(kept[f"{role}.json"])
                root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
                if metadata.signed.expires - at < self._lifetimes.bundle / 2:
                    return None
            # A kill between two of these files leaves valid ones that do not belong together.
            timestamp = Metadata[Timestamp].from_bytes(kept["timestamp.json"]).signed
            timestamp.snapshot_meta.verify_length_and_hashes(kept["snapshot.json"])
            snapshot = Metadata[Snapshot].from_bytes(kept["snapshot.json"]).signed
            for name, meta in snapshot.meta.items():
                meta.verify_length_and_hashes((folder / name).read_bytes())
            before = Metadata[Targets].from_bytes(kept["targets.json"]).signed.targets
        except (RepositoryError, FileNotFoundError):
            return None
        return kept if before == dict(targets) else None

    # rotation

    def rotate_roles(self) -> Fingerprint:
        """Replace the targets, snapshot and timestamp keys; the root keys sign a new root."""
        root, old_root_signers = self._next_root()
        for role in ROLES:
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            path = self.folder / "keys" / f"{role}.pem"
            path.unlink()
            save_key(path, new_tuf_key(), self._protection())
            root.add_key(self._signer(role).public_key, role)
        self._publish_root(root, old_root_signers)
        return self.fingerprint

    def rotate_root(self, threshold: Threshold) -> Fingerprint:
        """New root keys, vouched for by a threshold of the old ones; a new root version."""
        root, old_root_signers = self._next_root()
        for keyid in list(root.roles[Root.type].keyids):
            root.revoke_key(keyid, Root.type)
        for old in (self.folder / "keys").glob("root-*.pem"):
            old.unlink()
        for name in _root_names(threshold):
            save_key(self.folder / "keys" / f"{name}.pem", new_tuf_key(), self._protection())
        signers = [self._signer(name) for name in _root_names(threshold)]
        for signer in signers:
            root.add_key(signer.public_key, Root.type)
        root.roles[Root.type].threshold = threshold.needed
        self._publish_root(root, [*old_root_signers, *signers])
        return self.fingerprint

    def _next_root(self) -> tuple[Root, list[CryptoSigner]]:
        root = self.root
        present = sorted((self.folder / "keys").glob("root-*.pem"))
        signers = [self._signer(path.stem) for path in present]
        needed = root.roles[Root.type].threshold
        if len(signers) < needed:
            reason = f"{needed} root keys must sign, and {len(signers)} are here."
            raise TrustKeysMissing(folder=self.folder, reason=reason)
        root.version += 1
        return root, signers

    def _publish_root(self, root: Root, signers: list[CryptoSigner]) -> None:
        root.expires = datetime.now(UTC).replace(microsecond=0) + self._lifetimes.root
        (self.folder / "roots").mkdir(exist_ok=True)
        _replace(self.folder / "roots" / f"{root.version}.root.json", _sign(root, signers))

    def _protection(self) -> Passphrase | None:
        return None if (self.folder / "keys" / "DEMO-KEYS.txt").exists() else self._passphrase

    def _signer(self, name: str) -> CryptoSigner:
        return load_tuf_signer(self.folder / "keys" / f"{name}.pem", self._passphrase)


def _no_passphrase() -> bytes:
    raise AssertionError("demo keys are not encrypted")


def _root_names(threshold: Threshold) -> list[str]:
    return [f"root-{number}" for number in range(1, threshold.keys + 1)]


def _sign(payload: T, signers: list[CryptoSigner]) -> bytes:
    metadata = Metadata(payload)
    for signer in signers:
        metadata.sign(signer, append=True)
    return rfc8785.dumps(metadata.to_dict())


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def _last_version(folder: Path) -> int:
    """The highest version ever signed into this folder; 0 if none was."""
    files = [folder / f"{role}.json" for role in ROLES]
    return max(
        (Metadata[Any].from_bytes(f.read_bytes()).signed.version for f in files if f.is_file()),
        default=0,
    )


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
