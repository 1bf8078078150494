"""Signed notes and checkpoints: https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint.

Keys are written as Go's ``sumdb/note`` writes them, so that its tools can use them: a verifier is
``<name>+<8 hex of key ID>+<base64 of 0x01 ‖ public key>``, a signer the same after ``PRIVATE+KEY+``
with the private seed. Only Ed25519 (type 0x01) is known here. Pure but for key generation.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from appliance.ledger.merkle import HASH_BYTES

_ED25519 = b"\x01"
_SIGNER_PREFIX = "PRIVATE+KEY+"
_DASH = "\u2014 "
_MAX_NOTE_BYTES = 64 * 1024
_MAX_SIGNATURES = 100


class NoteInvalid(ValueError):
    """The text is not a note, a key or a checkpoint, or no trusted key signed it."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A public key and the name it signs under."""

    name: str
    public: bytes

    @property
    def key_id(self) -> bytes:
        """The first 4 bytes of SHA-256(name ‖ LF ‖ 0x01 ‖ public key)."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_b64(_ED25519 + self.public)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a verifier string.

        Raises:
            NoteInvalid: it is malformed, of another type, or its key ID does not match its key.
        """
        name, key_id, key = _key_parts(text)
        verifier = cls(name, key)
        _demand(hmac.compare_digest(verifier.key_id.hex(), key_id), "the key ID is not this key's")
        return verifier

    def holds(self, message: bytes, signature: bytes) -> bool:
        """Whether ``signature`` (64 bytes) is this key's over ``message``."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Signer:
    """A private key and the name it signs under. Its ``repr`` does not show the key."""

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.verifier = Verifier(checked_name(name), private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, name: str) -> Self:
        """A new key from the operating system's randomness."""
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a signer string.

        Raises:
            NoteInvalid: it is malformed, of another type, or its key ID does not match its key.
        """
        _demand(text.startswith(_SIGNER_PREFIX), "not a private key")
        name, key_id, seed = _key_parts(text.removeprefix(_SIGNER_PREFIX))
        signer = cls(name, Ed25519PrivateKey.from_private_bytes(seed))
        _demand(
            hmac.compare_digest(signer.verifier.key_id.hex(), key_id),
            "the key ID is not this key's",
        )
        return signer

    def export(self) -> str:
        """The signer string. It is the secret itself: only for a file of mode 0600."""
        seed = _ED25519 + self._private.private_bytes_raw()
        verifier = self.verifier
        return f"{_SIGNER_PREFIX}{verifier.name}+{verifier.key_id.hex()}+{_b64(seed)}"

    def sign(self, text: str) -> str:
        """The signed note of ``text``, which must end with a newline.

        Raises:
            NoteInvalid: ``text`` cannot be a note's text.
        """
        _check_text(text)
        signature = self.verifier.key_id + self._private.sign(text.encode())
        return f"{text}\n{_DASH}{self.verifier.name} {_b64(signature)}\n"


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: who, under which key ID, and the raw signature."""

    name: str
    key_id: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A note as read: its text (with the final newline) and its signatures, not yet verified."""

    text: str
    signatures: tuple[Signature, ...]


def parse_note(data: bytes) -> Note:
    """Split a signed note. Nothing is verified.

    Raises:
        NoteInvalid: it is malformed.
    """
    _demand(len(data) <= _MAX_NOTE_BYTES, "the note is too long")
    try:
        whole = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NoteInvalid("the note is not UTF-8") from error
    text, blank, tail = whole.rpartition("\n\n")
    _demand(blank and tail.endswith("\n"), "the note has no signature")
    text += "\n"
    _check_text(text)
    lines = tail[:-1].split("\n")
    _demand(len(lines) <= _MAX_SIGNATURES, "the note has too many signatures")
    return Note(text, tuple(_parse_signature(line) for line in lines))


def verify_note(data: bytes, verifiers: Sequence[Verifier]) -> Note:
    """Read a note that at least one of ``verifiers`` signed.

    Signatures of unknown keys are ignored; one of a known key that does not verify condemns the
    note (signed-note, section Signatures).

    Raises:
        NoteInvalid: it is malformed, or not signed by any of them.
    """
    note = parse_note(data)
    known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
    good = 0
    for signature in note.signatures:
        verifier = known.get((signature.name, signature.key_id))
        if verifier is None:
            continue
        _demand(
            verifier.holds(note.text.encode(), signature.raw),
            f"the signature of {signature.name} does not verify",
        )
        good += 1
    _demand(good, "no trusted key signed it")
    return note


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log: whose, how many entries, and their Merkle root."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The note text: three lines."""
        return f"{self.origin}\n{self.size}\n{_b64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a checkpoint's text. Extension lines are refused: our logs write none.

        Raises:
            NoteInvalid: it is not one.
        """
        lines = text.split("\n")
        _demand(len(lines) == 4 and not lines[3] and lines[0], "a checkpoint has three lines")
        size = lines[1]
        _demand(size.isascii() and size.isdigit() and len(size) < 20, "the tree size is no number")
        checkpoint = cls(lines[0], int(size), _unb64(lines[2]))
        _demand(len(checkpoint.root) == HASH_BYTES, "the root is not a SHA-256 hash")
        _demand(checkpoint.text == text, "the checkpoint is not in its one form")
        return checkpoint


def verify_checkpoint(data: bytes, verifier: Verifier) -> Checkpoint:
    """Read a checkpoint that ``verifier`` signed, of the log that bears its name.

    Raises:
        NoteInvalid: it is malformed, not signed by it, or of another log.
    """
    checkpoint = Checkpoint.parse(verify_note(data, [verifier]).text)
    _demand(checkpoint.origin == verifier.name, f"it is of another log, {checkpoint.origin}")
    return checkpoint


def checked_name(name: str) -> str:
    """``name`` if it can name a key or a log.

    Raises:
        NoteInvalid: it is empty, or has a space, a control character or a plus sign.
    """
    printable = name.isprintable() and not any(c.isspace() or c == "+" for c in name)
    _demand(name and printable and len(name) <= 200, f"{name!r} cannot name a log")
    return name


def _key_parts(text: str) -> tuple[str, str, bytes]:
    parts = text.split("+", 2)  # base64 may hold a plus of its own
    _demand(len(parts) == 3, "a key is name+id+base64")
    name, key_id, encoded = parts
    key = _unb64(encoded)
    _demand(key[:1] == _ED25519 and len(key) == 33, "not an Ed25519 key")
    return checked_name(name), key_id, key[1:]


def _parse_signature(line: str) -> Signature:
    _demand(line.startswith(_DASH), "a line after the text is no signature")
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    raw = _unb64(encoded)
    _demand(space and len(raw) > 4, "a signature is cut short")
    return Signature(checked_name(name), raw[:4], raw[4:])


def _check_text(text: str) -> None:
    _demand(text.endswith("\n"), "a note's text ends with a newline")
    _demand(not any(c < " " and c != "\n" for c in text), "control characters are not allowed")


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _unb64(text: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise NoteInvalid("not base64") from error
    # base64 has several spellings of the same bytes (unused low bits); one is allowed.
    _demand(_b64(data) == text, "not base64 in its one form")
    return data


def _demand(holds: object, reason: str) -> None:
    if not holds:
        raise NoteInvalid(reason)
