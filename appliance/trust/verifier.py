"""The site's side of TUF: is this bundle signed by whom we trust, in time, and not an old one?

    verifier = Verifier(load_state(home.trust))
    verified = verifier.verify(label, metadata, members)     # pure: values in, a value out
    save_state(home.trust, verified.state)                   # only once the bundle is loaded

python-tuf's ``TrustedMetadataSet`` takes the decisions of the specification's client workflow
(section 5); it is the core of its ``Updater`` without network and disk, and the reason why ``tuf``
is pinned to one version. Around it, two things of ours:

*Every byte counts.* TUF ignores white space, surplus signatures and roots it does not need. Here
metadata must be canonical JSON, every signature in it must be by a known key and valid, and every
root in the bundle must follow from the one before; so no bit of ``metadata/`` is free.

*Time does not go back.* Expiry is judged at the later of the clock and the latest time seen here.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import rfc8785
from securesystemslib.exceptions import Error as SecurityError
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key
from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Signed, Snapshot, Targets, Timestamp
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from appliance.errors import (
    BundleExpired,
    BundleRolledBack,
    BundleTampered,
    BundleUnsigned,
    BundleUntrusted,
    TrustNotPinned,
    TrustStateDamaged,
)
from appliance.trust import statement
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.pin import TrustState
from appliance.trust.repository import DEMO_FIELD

_LIBRARIES_RAISE = (
    TypeError,
    AttributeError,
    LookupError,
    ValueError,
    ArithmeticError,
    RecursionError,
    RepositoryError,
    SecurityError,
)
_ROLE_FILES = ("timestamp.json", "snapshot.json", "targets.json")


@dataclass(frozen=True)
class Signers:
    """Who may sign statements: ``threshold`` of the targets role's ``keys`` (key id → key)."""

    keys: Mapping[str, Key]
    threshold: int


@dataclass(frozen=True)
class Verified:
    """A bundle's signatures hold. ``state`` is what to save once the bundle is really taken in.

    ``public_keys`` maps signed member names (``signatures/<model>.oms.json``) to the PEM key that
    the targets role says they verify with. ``expires`` is when the first signature runs out.
    """

    bundle: str
    fingerprint: Fingerprint
    root_version: int
    version: int
    expires: datetime
    demo: bool
    public_keys: Mapping[str, bytes]
    state: TrustState
    signers: Signers

    def statement(self, data: bytes, payload_type: str) -> bytes:
        """The payload of a DSSE envelope by the targets role.

        Raises :class:`appliance.trust.statement.StatementInvalid`.
        """
        return statement.verify(data, payload_type, self.signers.keys, self.signers.threshold)


class Verifier:
    """Judges bundles by a :class:`TrustState` at one moment. Pure: it changes nothing anywhere."""

    def __init__(self, state: TrustState, now: datetime | None = None) -> None:
        self._state = state
        clock = now or datetime.now(UTC)
        self._now = max(clock, state.clock) if state.clock else clock

    def verify(
        self, label: object, metadata: Mapping[str, bytes], members: Mapping[str, bytes]
    ) -> Verified:
        """Judge ``metadata`` (TUF file name → bytes) over ``members`` (member name → bytes).

        ``label`` names the bundle in errors: :class:`TrustNotPinned`, :class:`BundleUnsigned`,
        :class:`BundleUntrusted`, :class:`BundleExpired`, :class:`BundleRolledBack`,
        :class:`BundleTampered`, :class:`TrustStateDamaged`.
        """
        if self._state.pin is None:
            raise TrustNotPinned(bundle=label)
        bundle = _Signed(label, metadata)
        try:
            return self._judge(bundle, members)
        except _LIBRARIES_RAISE as error:
            # The libraries check signatures before they check types: hostile JSON gets this far.
            raise bundle.tampered("metadata", "a value in it has the wrong type") from error

    def _judge(self, bundle: _Signed, members: Mapping[str, bytes]) -> Verified:
        chain = bundle.roots()
        bundle.check_signatures(chain)
        anchor = self._anchor(bundle, chain)
        # First without history: only a verified name may choose which history applies.
        first = self._walk(bundle, anchor, {})
        name = _bundle_name(bundle, first.targets, members)
        final = self._walk(bundle, anchor, self._state.seen.get(name, {}))
        _check_members(bundle, final.targets, members)
        return self._verdict(bundle, final, name, chain)

    def _anchor(self, bundle: _Signed, chain: list[Metadata[Root]]) -> list[bytes]:
        """The trusted root and the bundle's roots after it, oldest first."""
        trusted = self._state.root
        if trusted is not None:
            try:
                known = Metadata[Root].from_bytes(trusted).signed.version
            except RepositoryError as error:
                raise TrustStateDamaged(path="root.json", reason="It is not a root.") from error
            if known <= len(chain) and bundle.root_bytes(known) != trusted:
                raise bundle.untrusted("Its root is not the one trusted here.")
            return [trusted, *(bundle.root_bytes(v) for v in range(known + 1, len(chain) + 1))]
        assert self._state.pin is not None
        for number, root in enumerate(chain, start=1):
            if Fingerprint.of(root.signed).matches(self._state.pin):
                return [bundle.root_bytes(v) for v in range(number, len(chain) + 1)]
        found = Fingerprint.of(chain[-1].signed)
        raise bundle.untrusted(f"Pinned is {self._state.pin}; its root is {found}.")

    def _walk(
        self, bundle: _Signed, roots: list[bytes], seen: Mapping[str, bytes]
    ) -> TrustedMetadataSet:
        """The client workflow of the TUF specification, section 5, over bytes in memory."""
        try:
            trusted = TrustedMetadataSet(roots[0], EnvelopeType.METADATA)
            trusted.reference_time = self._now
            for root in roots[1:]:
                trusted.update_root(root)
            _remember(trusted, Timestamp.type, seen)
            try:
                trusted.update_timestamp(bundle.file("timestamp.json"))
            except EqualVersionNumberError:
                if bundle.file("timestamp.json") != seen.get("timestamp.json"):
                    raise bundle.rolled_back("A version seen here has other content.") from None
            _remember(trusted, Snapshot.type, seen)
            trusted.update_snapshot(bundle.file("snapshot.json"))
            trusted.update_targets(bundle.file("targets.json"))
        except ExpiredMetadataError as error:
            raise bundle.expired(self._now) from error
        except BadVersionNumberError as error:
            raise bundle.rolled_back(f"{error}.") from error
        except UnsignedMetadataError as error:
            raise bundle.untrusted(f"{error}.") from error
        except LengthOrHashMismatchError as error:
            raise bundle.tampered("metadata", "its parts do not belong together") from error
        except RepositoryError as error:
            raise bundle.tampered("metadata", str(error)) from error
        return trusted

    def _verdict(
        self,
        bundle: _Signed,
        trusted: TrustedMetadataSet,
        name: str,
        chain: list[Metadata[Root]],
    ) -> Verified:
        root = trusted.root
        newest = self._state.root
        if newest is None or root.version == len(chain):
            newest = bundle.root_bytes(root.version)
        seen = {n: bundle.file(n) for n in ("timestamp.json", "snapshot.json")}
        state = replace(
            self._state,
            root=newest,
            clock=self._now,
            seen={**self._state.seen, name: seen},
        )
        roles: list[Signed] = [root, trusted.timestamp, trusted.snapshot, trusted.targets]
        return Verified(
            bundle=name,
            fingerprint=Fingerprint.of(root),
            root_version=root.version,
            version=trusted.targets.version,
            expires=min(role.expires for role in roles),
            demo=root.unrecognized_fields.get(DEMO_FIELD) is True,
            public_keys=_public_keys(trusted.targets),
            state=state,
            signers=Signers(_keys_of(root, Targets.type), root.roles[Targets.type].threshold),
        )


class _Signed:
    """A bundle's TUF metadata as bytes, and the errors that name it."""

    def __init__(self, label: object, metadata: Mapping[str, bytes]) -> None:
        self._label = label
        self._files = metadata

    def file(self, name: str) -> bytes:
        """A metadata file. Raises :class:`BundleUnsigned` if it is missing."""
        try:
            return self._files[name]
        except KeyError:
            reason = f"metadata/{name} is missing."
            raise BundleUnsigned(bundle=self._label, reason=reason) from None

    def root_bytes(self, version: int) -> bytes:
        """One root of the chain, from 1."""
        return self.file(f"{version}.root.json")

    def parse(self, name: str) -> Metadata[Any]:
        """A metadata file, which must be in its one allowed form."""
        data = self.file(name)
        try:
            tree = json.loads(data)
            if rfc8785.dumps(tree) != data:
                raise self.tampered(f"metadata/{name}", "it is not canonical JSON")
            # Around what is signed, and beside a signature, python-tuf keeps what it does not know.
            if set(tree) != {"signatures", "signed"} or any(
                set(signature) != {"keyid", "sig"} for signature in tree["signatures"]
            ):
                raise self.tampered(f"metadata/{name}", "it says more than was signed")
            metadata = Metadata[Any].from_bytes(data)
            # python-tuf signs what it parsed, and fills in a null spec_version while parsing.
            if rfc8785.dumps(metadata.to_dict()) != data:
                raise self.tampered(f"metadata/{name}", "it does not say what was signed")
            return metadata
        except (ValueError, RecursionError, RepositoryError) as error:
            raise self.tampered(f"metadata/{name}", "it is not TUF metadata") from error

    def roots(self) -> list[Metadata[Root]]:
        """Every root in the bundle, oldest first: 1, 2, … without a gap."""
        count = sum(name.endswith(".root.json") for name in self._files)
        chain: list[Metadata[Root]] = []
        for version in range(1, max(count, 1) + 1):
            name = f"{version}.root.json"
            metadata = self.parse(name)
            if not isinstance(metadata.signed, Root) or metadata.signed.version != version:
                raise self.tampered(f"metadata/{name}", f"it is not version {version} of a root")
            chain.append(Metadata(metadata.signed, metadata.signatures))
        return chain

    def check_signatures(self, chain: list[Metadata[Root]]) -> None:
        """Every signature is by a key its delegator names, valid, and in its one allowed form."""
        for number, metadata in enumerate(chain):
            delegators = [root.signed for root in chain[max(number - 1, 0) : number + 1]]
            keys: dict[str, Key] = {}
            for root in delegators:
                keys |= _keys_of(root, Root.type)
            self._check_each(f"{number + 1}.root.json", metadata, keys)
            try:
                for delegator in delegators:
                    delegator.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
            except UnsignedMetadataError as error:
                raise self.untrusted(f"{error}.") from error
        newest = chain[-1].signed
        for name in _ROLE_FILES:
            keys = _keys_of(newest, name.removesuffix(".json"))
            self._check_each(name, self.parse(name), keys)

    def _check_each(self, name: str, metadata: Metadata[Any], keys: Mapping[str, Key]) -> None:
        for keyid, signature in metadata.signatures.items():
            if keyid not in keys:
                raise self.untrusted(f"metadata/{name} is signed by an unknown key.")
            if not re.fullmatch(r"[0-9a-f]+", signature.signature):
                raise self.tampered(f"metadata/{name}", "a signature is not lower-case")
            try:
                keys[keyid].verify_signature(signature, metadata.signed_bytes)
            except (UnverifiedSignatureError, VerificationError) as error:
                raise self.tampered(f"metadata/{name}", "a signature does not hold") from error

    def tampered(self, member: str, reason: str) -> BundleTampered:
        return BundleTampered(bundle=self._label, member=member, reason=reason)

    def untrusted(self, reason: str) -> BundleUntrusted:
        return BundleUntrusted(bundle=self._label, reason=reason)

    def rolled_back(self, reason: str) -> BundleRolledBack:
        return BundleRolledBack(bundle=self._label, reason=reason)

    def expired(self, now: datetime) -> BundleExpired:
        """Name the part that ran out first."""
        names = [n for n in (*_ROLE_FILES, *self._files) if n in self._files]
        expiry = {n: self.parse(n).signed.expires for n in names}
        newest_root = f"{sum(n.endswith('.root.json') for n in names)}.root.json"
        out = {n: t for n, t in expiry.items() if n in {*_ROLE_FILES, newest_root}}
        name = min(out, key=lambda n: out[n])
        reason = f"{name} held until {out[name]:%Y-%m-%d}; it is {now:%Y-%m-%d} here."
        return BundleExpired(bundle=self._label, reason=reason)


def _keys_of(root: Root, role: str) -> dict[str, Key]:
    """A role's keys by id; an id without a key cannot sign."""
    return {k: root.keys[k] for k in root.roles[role].keyids if k in root.keys}


def _remember(trusted: TrustedMetadataSet, role: str, seen: Mapping[str, bytes]) -> None:
    """Put what was seen before under the new root; what that root no longer signs is dropped.

    TUF specification 5.3.11 and python-tuf's ``Updater._load_timestamp``: an old file that is
    expired still guards against going back, one that does not verify is ignored.
    """
    data = seen.get(f"{role}.json")
    if data is None:
        return
    try:
        if role == Timestamp.type:
            trusted.update_timestamp(data)
        else:
            trusted.update_snapshot(data, trusted=True)
    except RepositoryError:
        return


def _bundle_name(bundle: _Signed, targets: Targets, members: Mapping[str, bytes]) -> str:
    _check_members(bundle, targets, members)
    custom = targets.targets["bundle.json"].custom if "bundle.json" in targets.targets else None
    name = custom.get("bundle") if isinstance(custom, dict) else None
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise bundle.tampered("metadata/targets.json", "it does not name the bundle")
    return name


def _check_members(bundle: _Signed, targets: Targets, members: Mapping[str, bytes]) -> None:
    """Targets list exactly the members there are, each with its length and SHA-256."""
    for name in sorted(targets.targets.keys() ^ members.keys()):
        raise bundle.tampered(name, "it is signed and missing, or there and not signed")
    for name, data in members.items():
        target = targets.targets[name]
        actual = hashlib.sha256(data).hexdigest()
        right = hmac.compare_digest(target.hashes.get("sha256", ""), actual)
        if target.length != len(data) or not right:
            raise bundle.tampered(name, "its digest is not the signed one")


def _public_keys(targets: Targets) -> dict[str, bytes]:
    keys = {}
    for name, target in targets.targets.items():
        custom = target.custom
        if isinstance(custom, dict) and isinstance(custom.get("public_key"), str):
            keys[name] = custom["public_key"].encode()
    return keys
