"""A request for signatures: metadata that waits, and what a holder needs to know before signing.

A ceremony goes by files. The supplier's machine writes a request; each holder takes it to their own
machine, reads what it says, and signs (:meth:`Request.signed`); copies signed side by side are
merged (:func:`merge`); when the thresholds are met (:meth:`Request.missing` is empty) it is
published.

    {"bundle": null, "delegation": null, "metadata": {TUF metadata}, "previous": {TUF metadata},
     "role": "root", "sovctl_request": 1}

``previous`` is the root before (null for the first), so that changes can be shown and both
thresholds judged without the repository. For a delegated role, ``delegation`` has its keys and
threshold and ``bundle`` the name of the bundle it is for. Canonical JSON (RFC 8785). All pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import rfc8785
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from appliance.errors import KeyUnusable, RequestInvalid
from appliance.i18n import _
from appliance.trust.keys import holder_of

_MAX_BYTES = 1 << 22


@dataclass(frozen=True)
class Quorum:
    """``threshold`` of ``keys`` (id → key) must sign; ``title`` says whose they are."""

    title: str
    keys: Mapping[str, Key]
    threshold: int

    def missing(self, signed: Iterable[str]) -> int:
        """How many signatures are still needed."""
        return max(0, self.threshold - len(self.keys.keys() & set(signed)))

    def names(self) -> str:
        """Whose keys they are, for people."""
        return ", ".join(holder_of(key) or keyid[:8] for keyid, key in self.keys.items())


@dataclass(frozen=True)
class Request:
    """One question put to holders of keys. ``label`` names it in errors."""

    role: str
    metadata: Metadata[Any]
    previous: Metadata[Root] | None = None
    bundle: str | None = None
    delegation: Quorum | None = None
    label: object = "request"

    @classmethod
    def for_root(cls, metadata: Metadata[Root], previous: Metadata[Root] | None) -> Request:
        """Ask for signatures of a root's keys, and of those of the root before it."""
        return cls(Root.type, metadata, previous)

    @classmethod
    def for_role(
        cls, role: str, bundle: str, payload: Targets, keys: Mapping[str, Key], threshold: int
    ) -> Request:
        """Ask for a delegated role's signature over what it brings to a bundle."""
        return cls(role, Metadata(payload), None, bundle, Quorum(role, keys, threshold))

    @classmethod
    def parse(cls, data: bytes, label: object) -> Request:
        """Read a request; every signature in it must hold. Raises :class:`RequestInvalid`."""
        try:
            if len(data) > _MAX_BYTES or rfc8785.dumps(json.loads(data)) != data:
                raise RequestInvalid(request=label, reason=_("It is not canonical JSON."))
            tree = json.loads(data)
            if tree.pop("sovctl_request") != 1:
                raise RequestInvalid(request=label, reason=_("It is of a newer kind."))
            asked = cls._from_tree(tree, label)
            if asked.encode() != data:
                raise RequestInvalid(request=label, reason=_("It says more than a request may."))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RequestInvalid(request=label, reason=_("It is not a request.")) from error
        except RepositoryError as error:
            raise RequestInvalid(request=label, reason=_("It is not TUF metadata.")) from error
        asked.check()
        return asked

    @classmethod
    def _from_tree(cls, tree: dict[str, Any], label: object) -> Request:
        role, bundle, delegation = tree["role"], tree["bundle"], tree["delegation"]
        metadata = Metadata[Any].from_dict(tree["metadata"])
        previous = Metadata[Root].from_dict(tree["previous"]) if tree["previous"] else None
        if not isinstance(metadata.signed, Root if role == Root.type else Targets):
            raise ValueError("it is of another role")
        quorum = None
        if role != Root.type:
            keys = {k: Key.from_dict(k, v) for k, v in delegation["keys"].items()}
            quorum = Quorum(role, keys, int(delegation["threshold"]))
        return cls(role, metadata, previous, bundle, quorum, label)

    def encode(self) -> bytes:
        """The file's bytes."""
        delegation: Any = None
        if self.delegation is not None:
            delegation = {
                "keys": {k: key.to_dict() for k, key in self.delegation.keys.items()},
                "threshold": self.delegation.threshold,
            }
        return rfc8785.dumps(
            {
                "sovctl_request": 1,
                "role": self.role,
                "bundle": self.bundle,
                "delegation": delegation,
                "metadata": self.metadata.to_dict(),
                "previous": self.previous.to_dict() if self.previous else None,
            }
        )

    def quorums(self) -> tuple[Quorum, ...]:
        """Who must sign."""
        if self.delegation is not None:
            return (self.delegation,)
        now = _root_quorum(_("its own root keys"), self.metadata.signed)
        if self.previous is None:
            return (now,)
        return (now, _root_quorum(_("the root keys before"), self.previous.signed))

    def missing(self) -> tuple[tuple[Quorum, int], ...]:
        """The quorums not reached, with the number of signatures each still needs."""
        signed = self.metadata.signatures.keys()
        left = ((quorum, quorum.missing(signed)) for quorum in self.quorums())
        return tuple((quorum, count) for quorum, count in left if count)

    def check(self) -> None:
        """Every signature is by somebody asked, and holds. Raises :class:`RequestInvalid`."""
        keys = self._keys()
        for keyid, signature in self.metadata.signatures.items():
            if keyid not in keys:
                raise RequestInvalid(request=self.label, reason=_("An unknown key signed it."))
            try:
                keys[keyid].verify_signature(signature, self.metadata.signed_bytes)
            except (UnverifiedSignatureError, VerificationError) as error:
                reason = _("A signature in it does not hold.")
                raise RequestInvalid(request=self.label, reason=reason) from error

    def signed(self, signer: Signer) -> Request:
        """This request with one more signature. Raises :class:`KeyUnusable` if nobody asked it."""
        key = signer.public_key
        if key.keyid not in self._keys():
            reason = _("The request does not ask this key ({0}…).").format(key.keyid[:8])
            raise KeyUnusable(key=holder_of(key) or _("It"), reason=reason)
        metadata = _copy(self.metadata)
        metadata.sign(signer, append=True)
        return replace(self, metadata=metadata)

    def _keys(self) -> dict[str, Key]:
        return {k: key for quorum in self.quorums() for k, key in quorum.keys.items()}


def merge(copies: Iterable[Request]) -> Request:
    """One request with the signatures of all copies. Raises :class:`RequestInvalid`."""
    first, *others = copies
    metadata = _copy(first.metadata)
    for other in others:
        if _question(other) != _question(first):
            reason = _("It asks something else than {0}.").format(first.label)
            raise RequestInvalid(request=other.label, reason=reason)
        metadata.signatures.update(other.metadata.signatures)
    in_order = sorted(metadata.signatures.items())
    metadata.signatures.clear()
    metadata.signatures.update(in_order)
    return replace(first, metadata=metadata)


def same_question(data: bytes, request: Request) -> bool:
    """Whether the file ``data`` asks what ``request`` does, whoever signed it and when it ends."""
    try:
        other = Request.parse(data, request.label)
    except RequestInvalid:
        return False
    ours, theirs = (json.loads(_question(each)) for each in (request, other))
    for tree in (ours, theirs):
        tree["metadata"].pop("expires")
    return bool(ours == theirs)


def _copy(metadata: Metadata[Any]) -> Metadata[Any]:
    return Metadata[Any].from_bytes(rfc8785.dumps(metadata.to_dict()))


def _question(request: Request) -> bytes:
    """All but the signatures on it."""
    tree = json.loads(request.encode())
    tree["metadata"] = tree["metadata"]["signed"]
    return rfc8785.dumps(tree)


def _root_quorum(title: str, root: Root) -> Quorum:
    role = root.roles[Root.type]
    return Quorum(title, {k: root.keys[k] for k in role.keyids}, role.threshold)
