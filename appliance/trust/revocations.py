"""What a supplier has taken back: bundles, contents and keys that must not be used any more.

The list travels as the member ``revocations.json`` of every bundle, signed by the targets role. It
only grows: its version rises with every entry, and nothing leaves it. A site judges by the union of
the newest lists of all bundles it has seen, so a bundle of one name may revoke one of another.

    {"revoked": [{"at": "2026-11-24T03:00:00Z", "id": "sha256:…", "kind": "content",
                  "reason": "…"}], "schema_version": 1, "version": 1}

``kind`` says what ``id`` is:

* ``bundle``: the digest of a ``bundle.json``;
* ``content``: an artefact's digest (SHA-256 of its element of ``bundle.json``), the digest of any
  file in it, or the digest an adapter is registered under;
* ``key``: a TUF key id, or the SHA-256 of a model-signing key's PEM
  (:func:`appliance.trust.model_signature.key_id`).

Canonical JSON (RFC 8785), sorted by kind and id, each pair once. All of it is pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from hashlib import sha256
from typing import Annotated, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance.manifests.bundle import BundleManifest, Instant

Kind = Literal["bundle", "content", "key"]

MEMBER = "revocations.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Revocation(_Frozen):
    """One thing taken back."""

    kind: Kind
    id: Annotated[str, Field(pattern=r"^(sha256:)?[0-9a-f]{64}$")]
    reason: Annotated[str, Field(min_length=1, max_length=300)]
    at: Instant

    @model_validator(mode="after")
    def _is_a_digest_or_a_key(self) -> Revocation:
        if self.id.startswith("sha256:") == (self.kind == "key"):
            raise ValueError("a key has 64 hexadecimal digits, all else 'sha256:' before them")
        return self

    def __str__(self) -> str:
        return f"{self.kind} {self.id} ({self.at[:10]}: {self.reason})"


class Revocations(_Frozen):
    """The whole of ``revocations.json``. Nothing revoked: version 0, which may also be absent."""

    schema_version: Literal[1] = 1
    version: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    revoked: tuple[Revocation, ...] = ()

    @model_validator(mode="after")
    def _is_sorted(self) -> Revocations:
        keys = [(each.kind, each.id) for each in self.revoked]
        if keys != sorted(set(keys)):
            raise ValueError("the entries are not sorted, or one is there twice")
        return self

    @classmethod
    def parse(cls, data: bytes) -> Revocations:
        """Read the member. Raises ``ValueError`` unless it is valid and canonical."""
        found = cls.model_validate_json(data)
        if found.canonical() != data:
            raise ValueError("it is not canonical JSON (RFC 8785)")
        return found

    def canonical(self) -> bytes:
        """The one byte string of this list."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    def adding(self, entry: Revocation) -> Revocations:
        """This list with one more entry and the next version; itself if it has it already."""
        if self.find(entry.kind, entry.id) is not None:
            return self
        return Revocations(version=self.version + 1, revoked=_sorted((*self.revoked, entry)))

    def union(self, other: Revocations) -> Revocations:
        """What either revokes."""
        merged = {(e.kind, e.id): e for e in (*other.revoked, *self.revoked)}
        version = max(self.version, other.version)
        return Revocations(version=version, revoked=_sorted(merged.values()))

    def follows(self, before: Revocations) -> bool:
        """Whether this may come after ``before``: equal, or newer and with all it had."""
        if self.version == before.version:
            return self == before
        return self.version > before.version and set(before.revoked) <= set(self.revoked)

    def find(self, kind: Kind, identity: str) -> Revocation | None:
        """The entry for one thing."""
        return self._entries.get((kind, identity))

    def judge(self, manifest: BundleManifest, keys: Iterable[str]) -> Revocation | None:
        """The first reason not to use a bundle with these signing keys (ids); None: there is none.

        An artefact is revoked by its own digest or by that of any of its files.
        """
        if not self.revoked:
            return None
        found = self.find("bundle", manifest.digest)
        for artefact in () if found else manifest.artefacts:
            digest = f"sha256:{sha256(artefact.canonical()).hexdigest()}"
            found = self.content(digest, *(file.digest for file in artefact.files))
            if found:
                break
        return found or next(filter(None, (self.find("key", key) for key in keys)), None)

    def content(self, *digests: str) -> Revocation | None:
        """The entry for the first of ``digests`` that is revoked as content."""
        return next(filter(None, (self.find("content", digest) for digest in digests)), None)

    @cached_property
    def _entries(self) -> dict[tuple[Kind, str], Revocation]:
        return {(each.kind, each.id): each for each in self.revoked}


def _sorted(entries: Iterable[Revocation]) -> tuple[Revocation, ...]:
    return tuple(sorted(entries, key=lambda each: (each.kind, each.id)))
