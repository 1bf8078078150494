"""Certificate authorities that an installation makes for itself, and the leaves they issue. Pure.

    authority = make_authority("hospital callers", now)
    certificate, key = issue(Leaf("gateway", ("ai.example",), ("10.0.0.11",)), authority, now)

Nothing here touches a disk or a clock: what is on disk is decided by
:mod:`appliance.cluster.pki` (embedded) and :mod:`appliance.install.site_credentials` (site), which
renew a leaf when :func:`serves` says no. Algorithm: ECDSA P-256, SHA-256.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=397)  # what browsers accept at most (CA/Browser Forum SC-031)
_RENEW_BEFORE = timedelta(days=30)
_CLOCK_SLACK = timedelta(hours=1)

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH

Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate to issue: its name, and the names and addresses it is for.

    ``uses`` is what it may be presented as. Ray presents one certificate as both.
    """

    name: str
    hosts: tuple[str, ...]
    addresses: tuple[str, ...]
    uses: tuple[x509.ObjectIdentifier, ...] = (SERVER, CLIENT)


def make_authority(common_name: str, now: datetime) -> Pair:
    """A new authority, for ten years; it issues leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Sovereign appliance"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )
    certificate = (
        _builder(name, name, key, now, _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def issue(leaf: Leaf, authority: Pair, now: datetime) -> Pair:
    """A certificate for ``leaf`` with a key of its own, never outliving its authority."""
    certificate, signer = authority
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, leaf.name[:64])])
    life = min(_LEAF_LIFE, certificate.not_valid_after_utc - now)
    issued = (
        _builder(subject, certificate.subject, key, now, life)
        .add_extension(_names(leaf), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(leaf.uses), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return issued, key


def fresh(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether it holds for more than 30 days yet."""
    return certificate.not_valid_after_utc - now > _RENEW_BEFORE


def serves(
    certificate: x509.Certificate, leaf: Leaf, authority: x509.Certificate, now: datetime
) -> bool:
    """Whether a certificate is still good for ``leaf`` under this authority."""
    try:
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    fits = names.value == _names(leaf) and set(uses.value) == set(leaf.uses)
    return fits and fresh(certificate, now)


def load(certificate_pem: bytes, key_pem: bytes) -> Pair | None:
    """A certificate and the key that belongs to it; None if either is unfit or they differ."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    return (certificate, key) if certificate.public_key() == key.public_key() else None


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """As it stands in a file."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As it stands in a file, not encrypted: whoever starts at night has no passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


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
