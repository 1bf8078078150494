"""API keys: made once, shown once, kept as a salted digest.

A key is ``sov-<id>-<secret>``: 16 hex digits that name it and 64 hex digits (256 random bits) that
prove it. What is kept is HMAC-SHA-256(salt, secret). A slow function (scrypt, Argon2) defends
*guessable* secrets against someone who stole the digests; 256 random bits cannot be guessed at any
speed, so slowness would buy nothing and cost every request tens of milliseconds of CPU, which an
outsider could use to exhaust the gateway.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from datetime import UTC, datetime

from sqlalchemy import select

from appliance.errors import RecordInvalid, RecordMissing
from appliance.registry.records import ApiKey
from appliance.registry.roles import Role
from appliance.registry.sessions import Sessions
from appliance.registry.tables import ApiKeyRow

_PLAINTEXT = re.compile(r"sov-([0-9a-f]{16})-([0-9a-f]{64})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_NOBODY = (b"\0" * 16, b"\0" * 32)  # salt and digest to compare with when the id is unknown


class ApiKeys:
    """The identities the gateway knows."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def create(self, name: str, role: Role) -> tuple[ApiKey, str]:
        """Make a key. Returns its record and its plaintext, which cannot be shown again.

        Several keys may bear one name, so that one can be replaced before the other is revoked.

        Raises:
            RecordInvalid: ``name`` is not 1–64 letters, digits or ``. _ @ -``.
        """
        identifier, secret = secrets.token_hex(8), secrets.token_hex(32)
        record = self._add(name, role, identifier, secret)
        return record, f"sov-{identifier}-{secret}"

    def adopt(self, name: str, role: Role, plaintext: str) -> ApiKey:
        """Enter a key that was made elsewhere in the form of :meth:`create`'s.

        Raises:
            RecordInvalid: ``name`` or ``plaintext`` has another form.
        """
        match = _PLAINTEXT.fullmatch(plaintext)
        if match is None:
            raise RecordInvalid(kind="key", name=repr(name), reason="it is not an API key")
        return self._add(name, role, *match.groups())

    def _add(self, name: str, role: Role, identifier: str, secret: str) -> ApiKey:
        if not _NAME.fullmatch(name):
            raise RecordInvalid(
                kind="key", name=repr(name), reason="a name is 1 to 64 of A-Z a-z 0-9 . _ @ -"
            )
        salt = secrets.token_bytes(16)
        row = ApiKeyRow(
            id=identifier,
            name=name,
            role=role.value,
            salt=salt,
            digest=_digest(salt, secret),
            created=datetime.now(UTC),
            revoked=None,
        )
        with self._sessions.write() as session:
            session.add(row)
            session.flush()
            return _record(row)

    def authenticate(self, plaintext: str) -> ApiKey | None:
        """The key ``plaintext`` proves, or None if it is malformed, unknown, wrong or revoked.

        The id is looked up in the open, it is no secret; the secret is compared in constant time,
        and an unknown id costs the same comparison.
        """
        match = _PLAINTEXT.fullmatch(plaintext)
        if match is None:
            return None
        identifier, secret = match.groups()
        with self._sessions.read() as session:
            row = session.get(ApiKeyRow, identifier)
            salt, expected = _NOBODY if row is None else (row.salt, row.digest)
            proven = hmac.compare_digest(_digest(salt, secret), expected)
            if row is None or not proven or row.revoked is not None:
                return None
            return _record(row)

    def revoke(self, identifier: str) -> ApiKey:
        """Stop a key from working, for good. Revoking it twice keeps the first time.

        Raises:
            RecordMissing: no key has this id.
        """
        with self._sessions.write() as session:
            row = session.get(ApiKeyRow, identifier)
            if row is None:
                raise RecordMissing(kind="key", name=identifier, group="keys")
            row.revoked = row.revoked or datetime.now(UTC)
            return _record(row)

    def list(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        with self._sessions.read() as session:
            rows = session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created, ApiKeyRow.id))
            return [_record(row) for row in rows]


def _digest(salt: bytes, secret: str) -> bytes:
    return hmac.new(salt, secret.encode("ascii"), hashlib.sha256).digest()


def _record(row: ApiKeyRow) -> ApiKey:
    return ApiKey(
        id=row.id, name=row.name, role=Role(row.role), created=row.created, revoked=row.revoked
    )
