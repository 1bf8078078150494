"""Signing keys on disk: PKCS#8 PEM files, mode 0600, encrypted unless they are demo keys.

Ed25519 signs TUF metadata; P-256 signs models, because that is what OpenSSF Model Signing takes.
Heavier keys (PKCS#11) find their place behind securesystemslib's ``Signer``.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner

from appliance.errors import PassphraseWrong, TrustKeysMissing
from appliance.trust.passphrase import Passphrase

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


def new_tuf_key() -> Ed25519PrivateKey:
    """A key that signs TUF metadata."""
    return Ed25519PrivateKey.generate()


def new_model_key() -> EllipticCurvePrivateKey:
    """A key that signs models."""
    return generate_private_key(SECP256R1())


def save_key(path: Path, key: PrivateKey, passphrase: Passphrase | None) -> None:
    """Write a private key to a new file, mode 0600. ``passphrase=None``: in clear (demo)."""
    protection: KeySerializationEncryption = (
        BestAvailableEncryption(passphrase()) if passphrase else NoEncryption()
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def _load(path: Path, passphrase: Passphrase) -> object:
    try:
        pem = path.read_bytes()
    except OSError as error:
        reason = f"{path.name}: {error.strerror}."
        raise TrustKeysMissing(folder=path.parent.parent, reason=reason) from error
    password = passphrase() if b"ENCRYPTED" in pem else None
    try:
        return load_pem_private_key(pem, password)
    except ValueError as error:
        reason = "The passphrase is wrong, or the file is not a private key."
        raise PassphraseWrong(key=path, reason=reason) from error


def load_tuf_signer(path: Path, passphrase: Passphrase) -> CryptoSigner:
    """Open an Ed25519 key. Raises :class:`TrustKeysMissing`, :class:`PassphraseWrong`."""
    key = _load(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise TrustKeysMissing(folder=path.parent.parent, reason=f"{path.name} is not Ed25519.")
    return CryptoSigner(key)


def load_model_key(path: Path, passphrase: Passphrase) -> EllipticCurvePrivateKey:
    """Open a P-256 key. Raises :class:`TrustKeysMissing`, :class:`PassphraseWrong`."""
    key = _load(path, passphrase)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise TrustKeysMissing(folder=path.parent.parent, reason=f"{path.name} is not P-256.")
    return key


def public_pem(key: PrivateKey) -> bytes:
    """The public half, SubjectPublicKeyInfo in PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def canonical_public_pem(pem: bytes) -> bytes:
    """``pem`` in its one form. Raises ``ValueError`` if it is not a public key."""
    key = load_pem_public_key(pem)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
