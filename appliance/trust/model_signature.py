"""OpenSSF Model Signing v1.0: a signature other tools can verify travels with every model.

The format is a Sigstore bundle (v0.3) around a DSSE envelope around an in-toto statement with
predicate ``https://model_signing/signature/v1.0``, in ``files`` mode with SHA-256, signed with a
P-256 key (github.com/ossf/model-signing-spec; sigstore/model-transparency reads and writes it).

    data = sign({"config.json": "ab12…"}, private_key, "my-model")
    verify(data, {"config.json": "ab12…"}, public_key_pem)      # → "my-model", or raises
    verify_upstream(theirs, files, Publisher(keys=(pem,)), at)  # a publisher's own signature

``files`` maps relative POSIX paths to SHA-256 hex digits. All functions are pure.

An envelope may carry several signatures: one by a trusted key is enough, wherever it stands, and a
signature that names a trusted key and does not hold refuses the whole. Ours must cover exactly the
files given, no more and no fewer. A publisher's may cover more files than we carry, since leaving
some out is our choice and signed by us; each file we carry must be as the publisher signed it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

import rfc8785
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from pydantic import BaseModel, ConfigDict, Field

from appliance.trust.certificates import ChainExpired, ChainInvalid, leaf_of

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_HASHES = {SECP256R1: SHA256(), SECP384R1: SHA384(), SECP521R1: SHA512()}
_MAX_SIGNATURES = 16


class ModelSignatureInvalid(ValueError):
    """The signature does not cover these files, or is not by who is trusted."""


class ModelSignatureExpired(ModelSignatureInvalid):
    """It would hold, but a certificate is not valid at the moment asked for.

    ``until``: the last moment its certificates were all valid, if they were before.
    """

    def __init__(self, reason: str, until: datetime) -> None:
        super().__init__(reason)
        self.until = until


@dataclass(frozen=True)
class Publisher:
    """Whose signature a publisher's must be: any of ``keys`` (PEM public keys on P-256, P-384 or
    P-521), or any certificate that leads to one of ``authorities`` (PEM certificates)."""

    keys: tuple[bytes, ...] = ()
    authorities: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class UpstreamSigned:
    """A publisher's signature that holds. ``signer`` is a key id or a certificate's subject;
    ``expires`` when its certificate ends (None: a bare key)."""

    model: str
    signer: str
    expires: datetime | None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Signature(_Part):
    sig: str
    keyid: str | None = None


class _Envelope(_Part):
    payload: str
    payload_type: Literal["application/vnd.in-toto+json"] = Field(alias="payloadType")
    signatures: Annotated[tuple[_Signature, ...], Field(min_length=1, max_length=_MAX_SIGNATURES)]


class _PublicKey(_Part):
    hint: str | None = None
    raw: str | None = Field(alias="rawBytes", default=None)  # before model-signing 1.1


class _Certificate(_Part):
    raw: str = Field(alias="rawBytes")


class _Chain(_Part):
    certificates: Annotated[tuple[_Certificate, ...], Field(min_length=1, max_length=8)]


class _Material(_Part):
    public_key: _PublicKey | None = Field(alias="publicKey", default=None)
    chain: _Chain | None = Field(alias="x509CertificateChain", default=None)


class _Bundle(_Part):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"] = Field(alias="mediaType")
    material: _Material = Field(alias="verificationMaterial")
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
    return rfc8785.dumps(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {
                "publicKey": {"hint": key_id(key.public_key())},
                "tlogEntries": [],
            },
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode(),
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": _signature(statement, key), "keyid": ""}],
            },
        }
    )


def cosign(bundle_json: bytes, key: EllipticCurvePrivateKey) -> bytes:
    """Add a signature to a bundle of :func:`sign`; its ``keyid`` says whose it is.

    Raises :class:`ModelSignatureInvalid` if it is malformed.
    """
    payload = _parse(bundle_json)[1]
    tree = json.loads(bundle_json)
    added = {"sig": _signature(payload, key), "keyid": key_id(key.public_key())}
    tree["dsseEnvelope"]["signatures"].append(added)
    return rfc8785.dumps(tree)


def verify(bundle_json: bytes, files: Mapping[str, str], public_key: bytes) -> str:
    """Return the signed model's name. Raises :class:`ModelSignatureInvalid`.

    ``public_key`` is a P-256 key in PEM; ``files`` is what is really there, path → SHA-256 hex
    digits.
    """
    bundle, payload = _parse(bundle_json)
    key = _load_key(public_key)
    if not isinstance(key.curve, SECP256R1):
        raise ModelSignatureInvalid("its key is not on P-256")
    known = {key_id(key): key}
    _check_named(bundle.material, known, _signers(bundle.envelope, payload, known))
    statement = _statement(payload)
    if _resources(statement) != dict(files):
        raise ModelSignatureInvalid("the files are not the signed ones")
    return statement.subject[0].name


def verify_upstream(
    bundle_json: bytes, files: Mapping[str, str], trusted: Publisher, at: datetime
) -> UpstreamSigned:
    """Judge a publisher's own signature at the moment ``at``.

    ``files`` (path → SHA-256 hex digits) are those of its files that are carried. Raises
    :class:`ModelSignatureInvalid`, and :class:`ModelSignatureExpired` where only a date is wrong.
    """
    bundle, payload = _parse(bundle_json)
    known = {key_id(key): key for key in map(_load_key, trusted.keys)}
    leaf, refused = _leaf(bundle.material, trusted.authorities, at)
    if leaf is not None:
        key = leaf.public_key()
        assert isinstance(key, EllipticCurvePublicKey)  # _leaf looked
        known[key_id(key)] = key
    signers = _signers(bundle.envelope, payload, known)
    if not signers and refused is not None:
        raise refused
    _check_named(bundle.material, known, signers)
    by_leaf = leaf is not None and key_id(leaf.public_key()) in signers  # type: ignore[arg-type]
    if leaf is not None and not by_leaf:
        raise ModelSignatureInvalid("the signature is not by the certificate it comes with")
    statement = _statement(payload)
    signed = _resources(statement)
    for path, digest in files.items():
        if not hmac.compare_digest(signed.get(path, ""), digest):
            raise ModelSignatureInvalid(f"its publisher did not sign {path} as it is here")
    if not files:
        raise ModelSignatureInvalid("there are no files it could be about")
    if leaf is not None:
        subject = leaf.subject.rfc4514_string()
        return UpstreamSigned(statement.subject[0].name, subject, leaf.not_valid_after_utc)
    return UpstreamSigned(statement.subject[0].name, sorted(signers)[0], None)


def key_id(key: EllipticCurvePublicKey) -> str:
    """How a key that signs models is named: SHA-256 of its PEM, as ``model-signing`` does."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def key_id_of_pem(pem: bytes) -> str:
    """:func:`key_id` of a PEM public key. Raises :class:`ModelSignatureInvalid`."""
    return key_id(_load_key(pem))


def load_authority(pem: bytes) -> x509.Certificate:
    """One PEM certificate. Raises :class:`ModelSignatureInvalid`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ModelSignatureInvalid("an authority is not a PEM certificate") from error


def _parse(bundle_json: bytes) -> tuple[_Bundle, bytes]:
    """The bundle and the signed payload's bytes."""
    try:
        bundle = _Bundle.model_validate_json(bundle_json)
        return bundle, base64.b64decode(bundle.envelope.payload, validate=True)
    except (ValueError, binascii.Error) as error:  # pydantic's errors are ValueErrors
        raise ModelSignatureInvalid("the signature is malformed") from error


def _signers(
    envelope: _Envelope, payload: bytes, known: Mapping[str, EllipticCurvePublicKey]
) -> set[str]:
    """The ids of the known keys that signed; one that claims to have and has not refuses all."""
    signed = _pre_authentication(payload)
    if len({each.sig for each in envelope.signatures}) != len(envelope.signatures):
        raise ModelSignatureInvalid("it carries the same signature twice")
    found = set()
    for each in envelope.signatures:
        try:
            signature = base64.b64decode(each.sig, validate=True)
        except (ValueError, binascii.Error) as error:
            raise ModelSignatureInvalid("the signature is malformed") from error
        by = {keyid for keyid, key in known.items() if _holds(key, signature, signed)}
        if each.keyid in known and each.keyid not in by:
            raise ModelSignatureInvalid("a signature in the name of a trusted key does not hold")
        found |= by
    return found


def _check_named(
    material: _Material, known: Mapping[str, EllipticCurvePublicKey], signers: set[str]
) -> None:
    """Somebody trusted signed, and so did whom the bundle names, if that is somebody trusted."""
    named = material.public_key.hint if material.public_key else None
    if not signers or (named in known and named not in signers):
        raise ModelSignatureInvalid("the signature is not by a key that is trusted for it")


def _holds(key: EllipticCurvePublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed, ECDSA(_HASHES[type(key.curve)]))
    except InvalidSignature:
        return False
    return True


def _leaf(
    material: _Material, authorities: Sequence[bytes], at: datetime
) -> tuple[x509.Certificate | None, ModelSignatureInvalid | None]:
    """The certificate that may be believed, or why the one that came may not."""
    if material.chain is None or not authorities:
        return None, None
    try:
        chain = [
            x509.load_der_x509_certificate(base64.b64decode(each.raw, validate=True))
            for each in material.chain.certificates
        ]
        leaf = leaf_of(chain, [load_authority(pem) for pem in authorities], at)
        _supported(leaf.public_key())
    except ChainExpired as error:
        return None, ModelSignatureExpired(str(error), error.until)
    except ChainInvalid as error:
        return None, ModelSignatureInvalid(str(error))
    except (ValueError, binascii.Error) as error:
        raise ModelSignatureInvalid("a certificate is malformed") from error
    return leaf, None


def _statement(payload: bytes) -> _Statement:
    try:
        return _Statement.model_validate(json.loads(payload))
    except (ValueError, RecursionError) as error:
        raise ModelSignatureInvalid("what is signed is not a list of a model's files") from error


def _resources(statement: _Statement) -> dict[str, str]:
    """The signed files, path → hex digits; the subject's digest must follow from them."""
    resources = statement.predicate.resources
    signed = {resource.name: resource.digest for resource in resources}
    expected = statement.subject[0].digest.get("sha256", "")
    if len(signed) != len(resources) or not hmac.compare_digest(_chain(signed.values()), expected):
        raise ModelSignatureInvalid("the root digest does not follow from the files")
    return signed


def _load_key(pem: bytes) -> EllipticCurvePublicKey:
    try:
        return _supported(load_pem_public_key(pem))
    except ValueError as error:
        raise ModelSignatureInvalid("a trusted key is not a PEM key on P-256 or P-384") from error


def _supported(key: object) -> EllipticCurvePublicKey:
    if not isinstance(key, EllipticCurvePublicKey) or type(key.curve) not in _HASHES:
        raise ValueError("not a key on P-256, P-384 or P-521")
    return key


def _signature(payload: bytes, key: EllipticCurvePrivateKey) -> str:
    # Deterministic (RFC 6979): signing the same model again gives the same bundle of bytes.
    algorithm = ECDSA(SHA256(), deterministic_signing=True)
    return base64.b64encode(key.sign(_pre_authentication(payload), algorithm)).decode()


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
