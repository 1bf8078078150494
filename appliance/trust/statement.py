"""Signed statements beside TUF's metadata: DSSE envelopes by the key of the targets role.

TUF's metadata says what a bundle *is*. What is said about one *copy* of it (which blobs a delta
leaves out, which part of a set a file is, how it was built) comes in a DSSE v1.0.0 envelope
(github.com/secure-systems-lab/dsse), so that a full and a delta bundle of one release share their
TUF metadata, and a file can be cut into parts without signing the release anew.

    data = sign(payload, "application/vnd.in-toto+json", signer)
    payload = verify(data, "application/vnd.in-toto+json", keys, threshold)     # bytes, or raises

Both are pure. An envelope has one allowed form: RFC 8785 JSON, standard base64, only signatures by
the given keys, each valid.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence

import rfc8785
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecurityError
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signer

IN_TOTO = "application/vnd.in-toto+json"


class StatementInvalid(ValueError):
    """The envelope is malformed, or not signed by the given keys."""


def sign(payload: bytes, payload_type: str, signers: Sequence[Signer]) -> bytes:
    """Put ``payload`` into an envelope signed by each of ``signers``."""
    envelope = Envelope(payload, payload_type, {})
    for signer in signers:
        envelope.sign(signer)
    return rfc8785.dumps(envelope.to_dict())


def verify(data: bytes, payload_type: str, keys: Mapping[str, Key], threshold: int) -> bytes:
    """Return the payload of an envelope signed by ``threshold`` of ``keys`` (key id → key).

    Raises :class:`StatementInvalid`.
    """
    envelope = _parse(data)
    if envelope.payload_type != payload_type:
        raise StatementInvalid("it is a statement of another kind")
    signed = 0
    for keyid, signature in envelope.signatures.items():
        if keyid not in keys:
            raise StatementInvalid("it is signed by an unknown key")
        try:
            keys[keyid].verify_signature(signature, envelope.pae())
        except (UnverifiedSignatureError, VerificationError) as error:
            raise StatementInvalid("a signature does not hold") from error
        signed += 1
    if threshold < 1 or signed < threshold:
        raise StatementInvalid(f"{threshold} signatures are needed, and it has {signed}")
    return bytes(envelope.payload)


def payload(data: bytes, payload_type: str) -> bytes:
    """What an envelope claims, with nothing verified but its form. Raises StatementInvalid."""
    envelope = _parse(data)
    if envelope.payload_type != payload_type:
        raise StatementInvalid("it is a statement of another kind")
    return bytes(envelope.payload)


def _parse(data: bytes) -> Envelope:
    try:
        tree = json.loads(data)
        if rfc8785.dumps(tree) != data:
            raise StatementInvalid("it is not canonical JSON")
        # securesystemslib decodes URL-safe and sloppy base64 as well; here there is one form.
        for text in (tree["payload"], *(each["sig"] for each in tree["signatures"])):
            if base64.b64encode(base64.b64decode(text, validate=True)).decode() != text:
                raise StatementInvalid("its base64 is not in its one allowed form")
        # It also keeps fields it does not know beside a signature, where nothing signs them.
        if any(set(each) != {"keyid", "sig"} for each in tree["signatures"]):
            raise StatementInvalid("it says more than a statement may")
        envelope = Envelope.from_dict(json.loads(data))
        if rfc8785.dumps(envelope.to_dict()) != data:
            raise StatementInvalid("it says more than a statement may")
        return envelope
    except StatementInvalid:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SecurityError) as bad:
        raise StatementInvalid("it is not a DSSE envelope") from bad
