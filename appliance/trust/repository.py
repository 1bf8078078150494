"""The supplier's side of TUF: the m-of-n root, and signatures over what a bundle holds.

A repository is a folder:

    keys/                                    private keys (see ``keyring``)
    roots/1.root.json …                      every root ever signed, oldest first
    delegations.json                         whom the targets role delegates to (TUF's object)
    revocations.json                         what was taken back (see ``revocations``)
    requests/                                what waits for signatures made elsewhere
    bundles/<bundle name>/targets.json …     what was last signed for that bundle

    repository = Repository.create(folder, Threshold(2, 3), passphrase)
    metadata = repository.sign("hospital", members, artefacts=manifest.artefacts)
    repository.fingerprint                              # what sites pin

Versions count per bundle name, so that two products of one supplier do not roll each other back.
After ``create`` the ``root-*.pem`` files belong on separate media in separate safes; or they are
made there to begin with (``propose``). Everyday signing needs only the others; a delegated role's
key may be elsewhere too: then what it signed last is used while it covers exactly what the bundle
brings.

The metadata written is RFC 8785 JSON with lower-case hexadecimal signatures and every signature
valid, because a reader accepts no other bytes (``docs/formats.md``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    T,
    TargetFile,
    Targets,
    Timestamp,
)

from appliance.errors import (
    KeyUnusable,
    RevocationInvalid,
    SignatureAwaited,
    TrustKeysMissing,
    TrustThresholdInvalid,
)
from appliance.i18n import _
from appliance.manifests.bundle import ROLES as DELEGATED
from appliance.manifests.bundle import Artefact
from appliance.trust import statement
from appliance.trust.files import replace_file
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.keyring import OMS, Keyring
from appliance.trust.keys import public_pem
from appliance.trust.model_signature import Publisher
from appliance.trust.passphrase import Passphrase
from appliance.trust.requests import Request, same_question
from appliance.trust.revocations import Kind, Revocation, Revocations

ROLES = (Targets.type, Snapshot.type, Timestamp.type)
"""Those the root names besides itself; ``DELEGATED`` are those the targets role names."""

DEMO_FIELD = "x-sovctl-demo"
"""In the signed root of demo keys, so that every site that pins it is told."""


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
        self._keyring = Keyring(folder / "keys", passphrase)
        self._lifetimes = lifetimes

    @classmethod
    def open(
        cls, folder: Path, passphrase: Passphrase, lifetimes: Lifetimes | None = None
    ) -> Repository:
        """An existing repository. Raises :class:`TrustKeysMissing` if there is none."""
        repository = cls(folder, passphrase, lifetimes or Lifetimes())
        if not repository._delegations_file.is_file():
            raise TrustKeysMissing(folder=folder, reason=_("It holds no roles to sign with."))
        if not (folder / "roots" / "1.root.json").is_file():
            reason = _("Its first root is not published yet (see its folder 'requests').")
            raise TrustKeysMissing(folder=folder, reason=reason)
        return repository

    @classmethod
    def create(
        cls,
        folder: Path,
        threshold: Threshold,
        passphrase: Passphrase,
        lifetimes: Lifetimes | None = None,
    ) -> Repository:
        """Make keys, encrypted under ``passphrase``, and the first root."""
        repository = cls(folder, passphrase, lifetimes or Lifetimes())
        repository._publish_first(threshold, demo=False)
        return repository

    @classmethod
    def create_demo(
        cls, folder: Path, threshold: Threshold, lifetimes: Lifetimes | None = None
    ) -> Repository:
        """Make passphrase-free keys and a root that says they are."""
        repository = cls(folder, _no_passphrase, lifetimes or Lifetimes())
        repository._publish_first(threshold, demo=True)
        return repository

    @classmethod
    def propose(
        cls,
        folder: Path,
        holders: Sequence[Key],
        needed: int,
        passphrase: Passphrase,
        lifetimes: Lifetimes | None = None,
    ) -> Path:
        """Make role keys here and a request for a first root that ``holders`` sign elsewhere.

        Returns the request's path; nothing is trusted before it is published.
        """
        Threshold(needed, len({key.keyid for key in holders}))
        repository = cls(folder, passphrase, lifetimes or Lifetimes())
        root = repository._first_root(repository._begin(demo=False), holders, needed)
        return repository._request("root-1", Request.for_root(Metadata(root), None))

    def _begin(self, *, demo: bool) -> dict[str, Key]:
        """Make the key of every role but the root, and what goes with them; return the keys."""
        keys = self._keyring.begin((*ROLES, *DELEGATED), demo=demo)
        roles: dict[str, DelegatedRole] = {
            role: DelegatedRole(role, [], 1, terminating=True, paths=[f"{role}/*"])
            for role in DELEGATED
        }
        made = Targets(delegations=Delegations({}, roles))
        for role in DELEGATED:
            made.add_key(keys[role], role)
        assert made.delegations is not None
        self._write_delegations(made.delegations)
        replace_file(self.folder / "revocations.json", Revocations().canonical())
        return keys

    def _publish_first(self, threshold: Threshold, *, demo: bool) -> None:
        keys = self._begin(demo=demo)
        holders = [self._keyring.add(name) for name in _root_names(threshold)]
        root = self._first_root(keys, holders, threshold.needed)
        if demo:
            root.unrecognized_fields[DEMO_FIELD] = True
        self.publish_root(_sign(root, self._root_signers(_keys_of(root))))

    def _first_root(self, keys: Mapping[str, Key], holders: Sequence[Key], needed: int) -> Root:
        root = Root(consistent_snapshot=False, expires=self._root_expiry())
        for key in holders:
            root.add_key(key, Root.type)
        root.roles[Root.type].threshold = needed
        for role in ROLES:
            root.add_key(keys[role], role)
        return root

    # what a site pins

    def roots(self) -> list[bytes]:
        """Every root, oldest first, as signed."""
        return published_roots(self.folder)

    @property
    def root(self) -> Root:
        """The newest root."""
        return Metadata[Root].from_bytes(self.roots()[-1]).signed

    @property
    def fingerprint(self) -> Fingerprint:
        """The newest root's fingerprint."""
        return Fingerprint.of(self.root)

    @property
    def delegations(self) -> Delegations:
        """Whom the next bundle's targets role will delegate to."""
        return Delegations.from_dict(json.loads(self._delegations_file.read_bytes()))

    # signing

    def model_key(self) -> EllipticCurvePrivateKey:
        """The P-256 key for ``trust.model_signature.sign``."""
        return self._keyring.model_key()

    def revocations(self) -> bytes:
        """The member ``revocations.json`` of every bundle from now on."""
        return (self.folder / "revocations.json").read_bytes()

    def release_signer(self) -> Signer:
        """The key that signs an offline apt repository's ``Release``; made when first needed."""
        return self._keyring.apt_signer()

    def sign(
        self,
        bundle: str,
        members: Mapping[str, bytes],
        now: datetime | None = None,
        *,
        artefacts: Sequence[Artefact] = (),
        publishers: Mapping[str, Publisher] | None = None,
    ) -> dict[str, bytes]:
        """Sign a bundle's members (name → bytes, from ``bundle.format.signed_members``) and its
        artefacts, each by its own role.

        ``publishers`` maps each member ``upstream/<model>.oms.json`` to whose signature it must be.
        Returns TUF metadata by file name. Signing the same again returns the same bytes while at
        least half of their lifetime is left, so an unchanged build stays unchanged.

        Raises :class:`SignatureAwaited`, naming request files, where a role's key is elsewhere.
        """
        at = (now or datetime.now(UTC)).replace(microsecond=0)
        roots = {f"{n}.root.json": data for n, data in enumerate(self.roots(), start=1)}
        named = publishers or {}
        targets = {
            name: self._target(bundle, name, data, named.get(name))
            for name, data in members.items()
        }
        folder = self.folder / "bundles" / bundle
        folder.mkdir(parents=True, exist_ok=True)
        delegated = self._delegated(bundle, artefacts, at)
        kept = self._still_good(folder, targets, delegated, at)
        if kept is None:
            kept = self._sign_roles(targets, delegated, _last_version(folder) + 1, at)
            for name, data in kept.items():  # the timestamp last: its version is what counts
                replace_file(folder / name, data)
        return {**roots, **delegated, **kept}

    def statement(self, payload: bytes, payload_type: str) -> bytes:
        """Sign what is said about one copy of a bundle (``trust.statement``), as the targets role.

        The same payload under the same key gives the same bytes (Ed25519).
        """
        return statement.sign(payload, payload_type, [self._require(Targets.type)])

    def _target(
        self, bundle: str, name: str, data: bytes, publisher: Publisher | None
    ) -> TargetFile:
        target = _target_file(name, data)
        if name == "bundle.json":
            target.unrecognized_fields["custom"] = {"bundle": bundle}
        elif name.startswith("upstream/"):
            if publisher is None:
                raise ValueError(f"nobody said whose signature {name} must be")
            said = {
                "authorities": [pem.decode() for pem in publisher.authorities],
                "keys": [pem.decode() for pem in publisher.keys],
            }
            target.unrecognized_fields["custom"] = {"publisher": said}
        elif name.endswith(".oms.json"):
            key = public_pem(self.model_key()).decode()
            target.unrecognized_fields["custom"] = {"public_key": key}
        return target

    def _delegated(
        self, bundle: str, artefacts: Sequence[Artefact], at: datetime
    ) -> dict[str, bytes]:
        """The delegated roles' metadata; all of them always, empty ones too."""
        delegator = Targets(delegations=self.delegations)
        signed: dict[str, bytes] = {}
        awaited: dict[str, Path] = {}
        for role in DELEGATED:
            path = self.folder / "bundles" / bundle / f"{role}.json"
            wanted = {
                a.target: _target_file(a.target, a.canonical()) for a in artefacts if a.role == role
            }
            kept = _kept_targets(path, delegator, role, wanted)
            left = kept.signed.expires - at if kept else timedelta(0)
            if kept and left >= self._lifetimes.bundle / 2:
                signed[f"{role}.json"] = path.read_bytes()
                continue
            keys = _delegated_keys(self.delegations, role)
            threshold = self.delegations.roles[role].threshold  # type: ignore[index]
            signers = self._keyring.signers(role, keys)
            fresh = Targets(
                version=_version_in(path) + 1, expires=at + self._lifetimes.bundle, targets=wanted
            )
            if len(signers) >= threshold:
                signed[f"{role}.json"] = _sign(fresh, signers)
                replace_file(path, signed[f"{role}.json"])
            elif kept and left > timedelta(0):
                signed[f"{role}.json"] = path.read_bytes()
            else:
                asked = Request.for_role(role, bundle, fresh, keys, threshold)
                awaited[role] = self._request(f"{bundle}-{role}-{fresh.version}", asked)
        if awaited:
            raise SignatureAwaited(
                roles=", ".join(awaited),
                requests=" ".join(map(str, awaited.values())),
                folder=self.folder,
            )
        return signed

    def _sign_roles(
        self,
        targets: Mapping[str, TargetFile],
        delegated: Mapping[str, bytes],
        version: int,
        at: datetime,
    ) -> dict[str, bytes]:
        expires = at + self._lifetimes.bundle
        signed_targets = self._signed(
            Targets(
                version=version,
                expires=expires,
                targets=dict(targets),
                delegations=self.delegations,
            )
        )
        snapshot = self._signed(
            Snapshot(
                version=version,
                expires=expires,
                meta={"targets.json": _meta(version, signed_targets), **_metas(delegated)},
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
        return _sign(payload, [self._require(payload.type)])

    def _still_good(
        self,
        folder: Path,
        targets: Mapping[str, TargetFile],
        delegated: Mapping[str, bytes],
        at: datetime,
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
            listed = Metadata[Snapshot].from_bytes(kept["snapshot.json"]).signed.meta
            listed["targets.json"].verify_length_and_hashes(kept["targets.json"])
            before = Metadata[Targets].from_bytes(kept["targets.json"]).signed
        except (RepositoryError, KeyError):
            return None
        same = before.targets == dict(targets) and before.delegations == self.delegations
        return kept if same and _metas(delegated).items() <= listed.items() else None

    # rotation

    def rotate(
        self,
        roles: Sequence[str] = (),
        given: Mapping[str, str] | None = None,
        holders: Sequence[Key] | None = None,
        needed: int | None = None,
    ) -> Path | None:
        """Replace keys and thresholds; return the request to be signed elsewhere, or None.

        ``roles`` get new keys, made here (``oms`` too); ``given`` maps roles to references of keys
        on a token, or to ``.pub`` files of keys kept elsewhere. ``holders`` are the new root keys,
        ``needed`` the new threshold. What only the targets role vouches for (delegated roles and
        ``oms``) changes at once; the rest takes a new root. If enough root keys are here it is
        published, else nothing changes until its request is.
        """
        given = given or {}
        for role in {*roles, *given} - {*ROLES, *DELEGATED, OMS}:
            raise KeyUnusable(key=role, reason=_("There is no role of that name."))
        fresh = {role: self._keyring.stage(role) for role in roles}
        fresh |= {
            role: self._keyring.stage_given(role, reference) for role, reference in given.items()
        }
        self._delegate({role: key for role, key in fresh.items() if role in DELEGATED})
        changed = {role: key for role, key in fresh.items() if role in ROLES and key}
        if not changed and holders is None and needed is None:
            self._settle()
            return None
        root = self._next_root()
        for role, key in changed.items():
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(key, role)
        if holders is not None:
            for keyid in list(root.roles[Root.type].keyids):
                root.revoke_key(keyid, Root.type)
            for key in holders:
                root.add_key(key, Root.type)
        if needed is not None:
            root.roles[Root.type].threshold = needed
        Threshold(root.roles[Root.type].threshold, len(root.roles[Root.type].keyids))
        return self._finish(root)

    def rotate_roles(self) -> Fingerprint:
        """Replace the targets, snapshot and timestamp keys; the root keys here sign a new root."""
        self._require_root_keys()
        self.rotate(ROLES)
        return self.fingerprint

    def rotate_root(self, threshold: Threshold) -> Fingerprint:
        """New root keys here, vouched for by a threshold of the old ones; a new root version."""
        self._require_root_keys()
        staged = [self._keyring.stage(name) for name in _root_names(threshold)]
        self.rotate(holders=[key for key in staged if key], needed=threshold.needed)
        return self.fingerprint

    def publish_root(self, data: bytes) -> None:
        """Take in a root that is signed as it must be; the keys it names come into use."""
        version = Metadata[Root].from_bytes(data).signed.version
        (self.folder / "roots").mkdir(exist_ok=True)
        replace_file(self.folder / "roots" / f"{version}.root.json", data)
        self._settle()

    def _finish(self, root: Root) -> Path | None:
        """Publish a new root if enough of its keys are here; else ask for signatures."""
        before = self.root
        keys = {**_keys_of(before), **_keys_of(root)}
        signers = self._root_signers(keys)
        data = _sign(root, signers)
        previous = Metadata[Root].from_bytes(self.roots()[-1])
        request = Request.for_root(Metadata[Root].from_bytes(data), previous)
        if request.missing():
            return self._request(f"root-{root.version}", request)
        self.publish_root(data)
        return None

    def _next_root(self) -> Root:
        root = self.root
        root.version += 1
        root.expires = self._root_expiry()
        return root

    def _root_expiry(self) -> datetime:
        return datetime.now(UTC).replace(microsecond=0) + self._lifetimes.root

    def _require_root_keys(self) -> None:
        needed = self.root.roles[Root.type].threshold
        here = len(self._root_signers(_keys_of(self.root)))
        if here < needed:
            reason = f"{needed} root keys must sign, and {here} are here."
            raise TrustKeysMissing(folder=self.folder, reason=reason)

    def _root_signers(self, keys: Mapping[str, Key]) -> list[Signer]:
        return self._keyring.signers("root-*", keys)

    def _request(self, name: str, request: Request) -> Path:
        (self.folder / "requests").mkdir(exist_ok=True)
        path = self.folder / "requests" / f"{name}.json"
        if path.is_file() and same_question(path.read_bytes(), request):
            return path  # signatures that came back meanwhile are not lost
        replace_file(path, request.encode())
        return path

    # revocation

    def revoke(self, kind: Kind, identity: str, reason: str, now: datetime | None = None) -> bool:
        """Take something back in every bundle from now on; False if it was already.

        Raises :class:`RevocationInvalid` for a key that a role still signs with.
        """
        at = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
        if kind == "key" and identity in self.keys_in_use():
            why = _("It is in use. Replace it first: 'sovctl trust rotate'.")
            raise RevocationInvalid(subject=identity, reason=why)
        try:
            entry = Revocation(kind=kind, id=identity, reason=reason, at=at)
        except ValueError as error:
            why = _("Named are 'sha256:' and 64 hexadecimal digits, or a key's 64; with a reason.")
            raise RevocationInvalid(subject=identity, reason=why) from error
        before = Revocations.parse(self.revocations())
        after = before.adding(entry)
        replace_file(self.folder / "revocations.json", after.canonical())
        return after != before

    def keys_in_use(self) -> dict[str, str]:
        """Key id → the role that signs with it now."""
        root = self.root
        used = {k: name for name, role in root.roles.items() for k in role.keyids}
        roles = self.delegations.roles or {}
        used |= {k: name for name, role in roles.items() for k in role.keyids}
        used[self._keyring.model_key_id()] = OMS
        return used

    # keys

    @property
    def _delegations_file(self) -> Path:
        return self.folder / "delegations.json"

    def _write_delegations(self, delegations: Delegations) -> None:
        replace_file(self._delegations_file, rfc8785.dumps(delegations.to_dict()))

    def _delegate(self, keys: Mapping[str, Key | None]) -> None:
        """Let each role's new key be the only one it has, from the next bundle on."""
        delegator = Targets(delegations=self.delegations)
        assert delegator.delegations is not None and delegator.delegations.roles is not None
        for role, key in keys.items():
            for keyid in list(delegator.delegations.roles[role].keyids):
                delegator.revoke_key(keyid, role)
            assert key is not None
            delegator.add_key(key, role)
        if keys:
            self._write_delegations(delegator.delegations)

    def _settle(self) -> None:
        """Let the keys that are published be those in use."""
        used = {*self.root.keys, *self.delegations.keys}
        self._keyring.settle((*ROLES, *DELEGATED), used)

    def _require(self, role: str) -> Signer:
        signers = self._keyring.signers(role, _keys_of(self.root, role))
        if not signers:
            reason = _("The key of the role {role} is not here.").format(role=role)
            raise TrustKeysMissing(folder=self.folder, reason=reason)
        return signers[0]


def published_roots(folder: Path) -> list[bytes]:
    """Every root in a repository, oldest first, as signed."""
    files = (folder / "roots").glob("*.root.json")
    return [f.read_bytes() for f in sorted(files, key=lambda f: int(f.name.split(".")[0]))]


def _no_passphrase() -> bytes:
    raise AssertionError("demo keys are not encrypted")


def _root_names(threshold: Threshold) -> list[str]:
    return [f"root-{number}" for number in range(1, threshold.keys + 1)]


def _sign(payload: T, signers: Iterable[Signer]) -> bytes:
    metadata = Metadata(payload)
    for signer in signers:
        metadata.sign(signer, append=True)
    return rfc8785.dumps(metadata.to_dict())


def _keys_of(root: Root, *roles: str) -> dict[str, Key]:
    names = roles or (Root.type,)
    return {k: root.keys[k] for name in names for k in root.roles[name].keyids}


def _delegated_keys(delegations: Delegations, role: str) -> dict[str, Key]:
    assert delegations.roles is not None
    return {k: delegations.keys[k] for k in delegations.roles[role].keyids}


def _kept_targets(
    path: Path, delegator: Targets, role: str, wanted: Mapping[str, TargetFile]
) -> Metadata[Targets] | None:
    """What the role signed last, if it is signed as it must be and lists exactly ``wanted``."""
    try:
        kept = Metadata[Targets].from_bytes(path.read_bytes())
        delegator.verify_delegate(role, kept.signed_bytes, kept.signatures)
    except (OSError, RepositoryError):
        return None
    return kept if kept.signed.targets == dict(wanted) else None


def _target_file(name: str, data: bytes) -> TargetFile:
    return TargetFile(len(data), {"sha256": hashlib.sha256(data).hexdigest()}, name)


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile(version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def _metas(delegated: Mapping[str, bytes]) -> dict[str, MetaFile]:
    return {
        name: _meta(Metadata[Any].from_bytes(data).signed.version, data)
        for name, data in delegated.items()
    }


def _version_in(path: Path) -> int:
    return Metadata[Any].from_bytes(path.read_bytes()).signed.version if path.is_file() else 0


def _last_version(folder: Path) -> int:
    """The highest version ever signed into this folder by the bundle's roles; 0 if none was."""
    return max(_version_in(folder / f"{role}.json") for role in ROLES)
