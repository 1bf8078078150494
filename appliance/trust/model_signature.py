"""OpenSSF Model Signing v1.0: a signature other tools can verify travels with every model.

The format is a Sigstore bundle (v0.3) around a DSSE envelope around an in-toto statement with
predicate ``https://model_signing/signature/v1.0``, in ``files`` mode with SHA-256, signed with a
P-256 key (github.com/ossf/model-signing-spec; sigstore/model-transparency reads and writes it).

    data = sign({"config.json": "ab12…"}, private_key, "my-model")
    verify(data, {"config.json": "ab12…"}, public_key_pem)      # → "my-model", or raises

``files`` maps relative POSIX paths to SHA-256 hex digits. Both functions are pure. Ours is stricter
than the format: one signature, one subject, and exactly the files given, no more and no fewer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from pydantic import BaseModel, ConfigDict, Field

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"


class ModelSignatureInvalid(ValueError):
    """The signature does not cover exactly these files, or is not by this key."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Signature(_Part):
    sig: str


class _Envelope(_Part):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    signatures: Annotated[tuple[_Signature, ...], Field(min_length=1, max_length=1)]


class _Bundle(_Part):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"] = Field(alias="mediaType")
    envelope: _Envelope = Field(alias="dsseEnvelope")


class _Subject(_Part):
    name: str
    digest: dict[str, str]


class _Resource(_Part):
    name: str
    algorithm: Literal["sha256"]
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Serialization(_Part):
    method: Literal["files"]
    hash_type: Literal["sha256"]


class _Predicate(_Part):
    serialization: _Serialization
    resources: tuple[_Resource, ...]


class _Statement(_Part):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[tuple[_Subject, ...], Field(min_length=1, max_length=1)]
    predicate_type: Literal["https://model_signing/signature/v1.0"] = Field(alias="predicateType")
    predicate: _Predicate


def sign(files: Mapping[str, str], key: EllipticCurvePrivateKey, model_name: str) -> bytes:
    """Sign a model's files; return the Sigstore bundle as JSON."""
    statement = rfc8785.dumps(
        {
            "_type": _STATEMENT_TYPE,
            "subject": [{"name": model_name, "digest": {"sha256": _root_digest(files)}}],
            "predicateType": _PREDICATE_TYPE,
            "predicate": {
                "serialization": {
                    "method": "files",
                    "hash_type": "sha256",
                    "allow_symlinks": False,
                    "ignore_paths": [],
                },
                "resources": [
                    {"name": path, "algorithm": "sha256", "digest": files[path]}
                    for path in sorted(files)
                ],
            },
        }
    )
    # Deterministic (RFC 6979): signing the same model again gives the same bundle of bytes.
    algorithm = ECDSA(SHA256(), deterministic_signing=True)
    signature = key.sign(_pre_authentication(statement), algorithm)
    return rfc8785.dumps(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": _hint(key.public_key())},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode(),
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
    )


def verify(bundle_json: bytes, files: Mapping[str, str], public_key: bytes) -> str:
    """Return the signed model's name. Raises :class:`ModelSignatureInvalid`.

    ``public_key`` is PEM; ``files`` is what is really there, path → SHA-256 hex digits.
    """
    try:
        envelope = _Bundle.model_validate_json(bundle_json).envelope
        payload = base64.b64decode(envelope.payload, validate=True)
        signature = base64.b64decode(envelope.signatures[0].sig, validate=True)
        _p256(public_key).verify(signature, _pre_authentication(payload), ECDSA(SHA256()))
        statement = _Statement.model_validate(json.loads(payload))
    except InvalidSignature as error:
        raise ModelSignatureInvalid("the signature is not by this key") from error
    except (ValueError, binascii.Error) as error:  # pydantic's and json's errors are ValueErrors
        raise ModelSignatureInvalid("the signature is malformed") from error
    resources = statement.predicate.resources
    signed = {resource.name: resource.digest for resource in resources}
    if len(signed) != len(resources) or signed != dict(files):
        raise ModelSignatureInvalid("the files are not the signed ones")
    expected = statement.subject[0].digest.get("sha256", "")
    if not hmac.compare_digest(_chain(signed.values()), expected):
        raise ModelSignatureInvalid("the root digest does not follow from the files")
    return statement.subject[0].name


def _p256(pem: bytes) -> EllipticCurvePublicKey:
    key = load_pem_public_key(pem)
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise ValueError("not a P-256 key")
    return key


def _root_digest(files: Mapping[str, str]) -> str:
    return _chain(files[path] for path in sorted(files))


def _chain(digests: Iterable[str]) -> str:
    """SHA-256 over the raw digests, in the order of the resources."""
    chain = hashlib.sha256()
    for digest in digests:
        chain.update(bytes.fromhex(digest))
    return chain.hexdigest()


def _pre_authentication(payload: bytes) -> bytes:
    """DSSE v1.0.0 PAE: what is really signed."""
    return b"DSSEv1 %d %s %d %s" % (
        len(_PAYLOAD_TYPE),
        _PAYLOAD_TYPE.encode(),
        len(payload),
        payload,
    )


def _hint(key: EllipticCurvePublicKey) -> str:
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()
