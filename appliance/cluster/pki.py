"""The site's own certificate authority and the certificates it issues. Idempotent.

``tls/ca.pem`` is what a client is given. Its key, ``secrets/ca.key``, is needed only here, outside
the seal, where it reads as empty. Leaves: ``gateway`` for callers, ``ray`` for Ray's gRPC (both a
server's and a client's certificate, as Ray presents it as both). Algorithm: ECDSA P-256, SHA-256.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.cluster.files import write_whole
from appliance.layout import Home

_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=397)  # what browsers accept at most (CA/Browser Forum SC-031)
_RENEW_BEFORE = timedelta(days=30)
_CLOCK_SLACK = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate to issue: its file name and the names and addresses it is for."""

    name: str
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]


def leaves(hostname: str) -> tuple[Leaf, ...]:
    """The certificates an embedded appliance has."""
    named = dict.fromkeys(("localhost", hostname))
    return (
        Leaf("gateway", tuple(name for name in named if name), ("127.0.0.1", "::1")),
        Leaf("ray", ("localhost",), ("127.0.0.1", "::1")),
    )


def ca_key(home: Home) -> Path:
    """Where the authority's private key is; hidden inside the seal."""
    return home.secrets / "ca.key"


def ensure(home: Home) -> None:
    """Make what is missing, renew what expires within 30 days, leave the rest as it is."""
    home.secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
    home.secrets.chmod(0o700)
    now = datetime.now(UTC)
    authority = _load(home.tls / "ca.pem", ca_key(home))
    if authority is None or not _fresh(authority[0], now):
        authority = _make_authority(now)
        _store(home, "ca", *authority)
    for leaf in leaves(socket.gethostname()):
        existing = _load(home.tls / f"{leaf.name}.pem", home.secrets / f"{leaf.name}.key")
        if existing is None or not _serves(existing[0], leaf, authority[0], now):
            _store(home, leaf.name, *_issue(leaf, authority, now))


Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _make_authority(now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sovereign appliance"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Site CA {socket.gethostname()}"[:64]),
        ]
    )
    certificate = (
        _builder(name, name, key, now, _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _issue(leaf: Leaf, authority: Pair, now: datetime) -> Pair:
    certificate, signer = authority
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, leaf.name)])
    life = min(_LEAF_LIFE, certificate.not_valid_after_utc - now)
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issued = (
        _builder(subject, certificate.subject, key, now, life)
        .add_extension(_names(leaf), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return issued, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _names(leaf: Leaf) -> x509.SubjectAlternativeName:
    hosts: list[x509.GeneralName] = [x509.DNSName(name) for name in leaf.hosts]
    return x509.SubjectAlternativeName(
        hosts + [x509.IPAddress(ipaddress.ip_address(each)) for each in leaf.addresses]
    )


def _fresh(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_after_utc - now > _RENEW_BEFORE


def _serves(
    certificate: x509.Certificate, leaf: Leaf, authority: x509.Certificate, now: datetime
) -> bool:
    """Whether a certificate is still good for ``leaf`` under this authority."""
    try:
        certificate.verify_directly_issued_by(authority)
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    return _fresh(certificate, now) and extension.value == _names(leaf)


def _load(certificate_path: Path, key_path: Path) -> Pair | None:
    """A certificate and the key that belongs to it; None if either is absent or they differ."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
    except (OSError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    return (certificate, key) if certificate.public_key() == key.public_key() else None


def _store(
    home: Home, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> None:
    """Key first: a certificate without its key would be renewed, a key alone is harmless."""
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_whole(home.secrets / f"{name}.key", private, mode=0o600)
    write_whole(home.tls / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))
