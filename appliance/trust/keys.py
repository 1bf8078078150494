"""Signing keys: PKCS#8 PEM files (0600, encrypted unless they are demo keys), or on a token.

A *key reference* says where a private key is:

    alice.pem, file:alice.pem        a PEM file: Ed25519, or ECDSA on P-256 or P-384
    hsm:2?label=ROOT                 key 2 of the PKCS#11 token labelled ROOT (ECDSA)
    pkcs11:token=ROOT;id=%02         the same as an RFC 7512 URI

Ed25519 signs TUF metadata unless the key is on a token; P-256 signs models, because that is what
OpenSSF Model Signing takes. A token is reached through securesystemslib's ``HSMSigner``; the module
is what ``PYKCS11LIB`` names, the PIN comes as passphrases do.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlencode

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
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
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import CryptoSigner, HSMSigner, Key, Signature, Signer, SSlibKey

from appliance.errors import (
    FileUnreadable,
    KeyUnusable,
    PassphraseWrong,
    TokenUnusable,
    TrustKeysMissing,
)
from appliance.i18n import _
from appliance.trust.passphrase import Passphrase, token_pin

PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey

HOLDER_FIELD = "x-sovctl-holder"
"""In a key of a signed root: the name of whoever keeps it."""

MODULE_VARIABLE = "PYKCS11LIB"

_ORDERS = {  # of the groups, SEC 2
    "ecdsa-sha2-nistp256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "ecdsa-sha2-nistp384": int(
        "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"
        "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973",
        16,
    ),
}


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


def save_pair(path: Path, key: PrivateKey, passphrase: Passphrase | None) -> None:
    """:func:`save_key`, and the public half beside it as ``.pub``, which needs no passphrase."""
    save_key(path, key, passphrase)
    path.with_suffix(".pub").write_bytes(public_pem(key))


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
    """Open a key for TUF. Raises :class:`TrustKeysMissing`, :class:`PassphraseWrong`."""
    key = _load(path, passphrase)
    fits = isinstance(key, Ed25519PrivateKey) or (
        isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, (SECP256R1, SECP384R1))
    )
    if not fits:
        reason = f"{path.name} is not Ed25519, P-256 or P-384."
        raise TrustKeysMissing(folder=path.parent.parent, reason=reason)
    assert isinstance(key, Ed25519PrivateKey | EllipticCurvePrivateKey)
    return CryptoSigner(key)


def load_model_key(path: Path, passphrase: Passphrase) -> EllipticCurvePrivateKey:
    """Open a P-256 key. Raises :class:`TrustKeysMissing`, :class:`PassphraseWrong`."""
    key = _load(path, passphrase)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise TrustKeysMissing(folder=path.parent.parent, reason=f"{path.name} is not P-256.")
    return key


def open_signer(reference: str, passphrase: Passphrase) -> Signer:
    """Open the key a reference names. Raises :class:`KeyUnusable`, :class:`PassphraseWrong`,
    :class:`TokenUnusable`."""
    if is_token(reference):
        return TokenSigner(reference, passphrase)
    path = Path(reference.removeprefix("file:"))
    try:
        signer = load_tuf_signer(path, passphrase)
    except TrustKeysMissing as error:
        raise KeyUnusable(key=reference, reason=error.sentences()[1]) from error
    return _LowS(signer) if signer.public_key.scheme in _ORDERS else signer


def public_key_of(reference: str, passphrase: Passphrase, holder: str | None = None) -> Key:
    """The public key of a ``.pub`` file or of a token's key, with its holder's name in it.

    A file's holder is its name without ``.pub``, a token's its label, unless ``holder`` says so.
    Raises :class:`KeyUnusable`, :class:`FileUnreadable`, :class:`TokenUnusable`.
    """
    if is_token(reference):
        key: Key = TokenSigner(reference, passphrase).public_key
        query = hsm_uri(reference).partition("?")[2]
        name = holder or dict(parse_qsl(query)).get("label", "token")
    else:
        path = Path(reference.removeprefix("file:"))
        try:
            key = public_key_of_pem(path.read_bytes())
        except OSError as error:
            raise FileUnreadable(path=path, reason=error.strerror or str(error)) from error
        except ValueError as error:
            reason = _("It is not a public key on Ed25519, P-256 or P-384.")
            raise KeyUnusable(key=reference, reason=reason) from error
        name = holder or path.name.removesuffix(".pub")
    key.unrecognized_fields[HOLDER_FIELD] = name
    return key


def public_key_of_pem(pem: bytes) -> SSlibKey:
    """A TUF key from SubjectPublicKeyInfo in PEM. Raises ``ValueError``."""
    public = load_pem_public_key(pem)
    if isinstance(public, EllipticCurvePublicKey):
        if not isinstance(public.curve, (SECP256R1, SECP384R1)):
            raise ValueError("not on P-256 or P-384")
    elif not isinstance(public, Ed25519PublicKey):
        raise ValueError("not Ed25519 or ECDSA")
    return SSlibKey.from_crypto(public)


def holder_of(key: Key) -> str:
    """Who keeps a key, as its root says; empty if it does not."""
    name = key.unrecognized_fields.get(HOLDER_FIELD, "")
    return name if isinstance(name, str) else ""


def is_token(reference: str) -> bool:
    """Whether a reference names a key on a token."""
    return reference.startswith(("hsm:", "pkcs11:"))


def hsm_uri(reference: str) -> str:
    """``hsm:ID?label=TOKEN`` of a reference to a token. Raises :class:`KeyUnusable`."""
    scheme, _colon, rest = reference.partition(":")
    try:
        if scheme == "hsm":
            number, _mark, query = rest.partition("?")
            return f"hsm:{int(number)}" + (f"?{query}" if query else "")
        parts = dict(part.split("=", 1) for part in rest.partition("?")[0].split(";"))
        number = str(int.from_bytes(unquote_to_bytes(parts["id"]), "big"))
        label = unquote_to_bytes(parts.get("token", "")).decode()
        return f"hsm:{number}" + (f"?{urlencode({'label': label})}" if label else "")
    except (ValueError, KeyError) as error:
        reason = _("It must be hsm:ID?label=TOKEN or pkcs11:token=LABEL;id=%02.")
        raise KeyUnusable(key=reference, reason=reason) from error


def low_s(key: Key, signature: str) -> str:
    """An ECDSA signature (DER, hex) in its one form; others unchanged.

    Of *s* and *n* − *s* both verify, which anybody may exchange without the key; here the smaller
    one counts. Raises ``ValueError`` for one that is malformed.
    """
    order = _ORDERS.get(key.scheme)
    if order is None:
        return signature
    r, s = decode_dss_signature(bytes.fromhex(signature))
    return encode_dss_signature(r, min(s, order - s)).hex()


class _LowS(Signer):
    """An ECDSA key in a file, whose signatures come in their one form."""

    def __init__(self, signer: CryptoSigner) -> None:
        self._signer = signer

    @property
    def public_key(self) -> Key:
        return self._signer.public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None
    ) -> _LowS:
        raise NotImplementedError

    def sign(self, payload: bytes) -> Signature:
        made = self._signer.sign(payload)
        return Signature(made.keyid, low_s(self.public_key, made.signature))


class TokenSigner(Signer):
    """A key on a PKCS#11 token: ``HSMSigner`` with our errors. The PIN is asked for when needed."""

    def __init__(self, reference: str, passphrase: Passphrase) -> None:
        self._reference = reference
        self._pin = token_pin(passphrase)
        uri = hsm_uri(reference)
        number, _mark, query = uri.removeprefix("hsm:").partition("?")
        label = dict(parse_qsl(query)).get("label")
        if not os.environ.get(MODULE_VARIABLE):
            raise self._refused(_("PYKCS11LIB does not name the token's module."))
        with _token_errors(self):
            uri, public = HSMSigner.import_(int(number), label, self._secret)
            self._signer = HSMSigner.from_priv_key_uri(uri, public, self._secret)

    @property
    def public_key(self) -> SSlibKey:
        """The public half, as read from the token."""
        return self._signer.public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: Any = None
    ) -> TokenSigner:
        """securesystemslib's way in; ours is the constructor."""
        raise NotImplementedError

    def sign(self, payload: bytes) -> Signature:
        """Have the token sign. Raises :class:`TokenUnusable`."""
        with _token_errors(self):
            made = self._signer.sign(payload)
            return Signature(made.keyid, low_s(self.public_key, made.signature))

    def _secret(self, _what: str) -> str:
        return self._pin().decode()

    def _refused(self, reason: str) -> TokenUnusable:
        return TokenUnusable(key=self._reference, reason=reason)


class _token_errors:  # noqa: N801 - reads as a statement
    """What PKCS#11 and its libraries raise, as :class:`TokenUnusable`."""

    def __init__(self, signer: TokenSigner) -> None:
        self._signer = signer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        # PKCS#11's own errors share no importable base unless the library is installed.
        module = type(error).__module__.partition(".")[0]
        if isinstance(error, UnsupportedLibraryError):
            reason = _("python-pkcs11 is not installed (the extra 'hsm' brings it).")
        elif isinstance(error, ValueError | OSError | RuntimeError) or module == "pkcs11":
            reason = f"{type(error).__name__}: {error}".rstrip(": ") + "."
        else:
            return
        raise self._signer._refused(reason) from error


def public_pem(key: PrivateKey) -> bytes:
    """The public half, SubjectPublicKeyInfo in PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def canonical_public_pem(pem: bytes) -> bytes:
    """``pem`` in its one form. Raises ``ValueError`` if it is not a public key."""
    key = load_pem_public_key(pem)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
