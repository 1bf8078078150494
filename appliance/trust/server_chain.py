"""A server's certificate that an authority of the site's own issued: does it fit? Pure.

Asked before anything is installed, so that callers do not find out. The file is a PEM chain, the
leaf first, each certificate issued by the next, the last a root that signs itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID


class ChainUnfit(ValueError):
    """The message says what is wrong, in the operator's terms."""


@dataclass(frozen=True, slots=True)
class ServerChain:
    """A checked chain: what a server presents (all but the root), and the root callers trust."""

    presented: bytes
    root: bytes


def check_chain(
    chain_pem: bytes,
    key_pem: bytes,
    names: Iterable[str],
    addresses: Iterable[str],
    now: datetime,
) -> ServerChain:
    """Check everything a caller would. Raises :class:`ChainUnfit`.

    ``names`` must all be covered; without any, ``addresses`` must.
    """
    chain = _certificates(chain_pem)
    _check_key(chain[0], key_pem)
    for certificate in chain:
        _check_dates(certificate, now)
    for below, (issued, issuer) in enumerate(pairwise([*chain, chain[-1]])):
        _check_issued(issued, issuer, below)
    _check_uses(chain[0])
    _check_names(chain[0], tuple(names), tuple(addresses))
    pem = [certificate.public_bytes(serialization.Encoding.PEM) for certificate in chain]
    return ServerChain(b"".join(pem[:-1] or pem), pem[-1])


def _certificates(data: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise ChainUnfit("the chain is not a file of PEM certificates") from error


def _check_key(leaf: x509.Certificate, key_pem: bytes) -> None:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except TypeError as error:
        raise ChainUnfit(
            "the key is encrypted; the gateway starts without anyone to ask"
        ) from error
    except ValueError as error:
        raise ChainUnfit("the key is not a PEM private key") from error
    if leaf.public_key() != key.public_key():
        raise ChainUnfit(f"the key does not belong to the first certificate ({_name(leaf)})")


def _check_dates(certificate: x509.Certificate, now: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now.astimezone(UTC) <= last:
        raise ChainUnfit(
            f"{_name(certificate)} holds from {first:%Y-%m-%d} to {last:%Y-%m-%d}, not today"
        )


def _check_issued(issued: x509.Certificate, issuer: x509.Certificate, below: int) -> None:
    """``below`` is how many certificates stand under ``issued``; the root is its own issuer."""
    try:
        issued.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        if issued is issuer:
            raise ChainUnfit(f"the last certificate ({_name(issued)}) is no root") from error
        raise ChainUnfit(f"{_name(issued)} was not issued by {_name(issuer)}") from error
    try:
        limits = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        authority = limits.ca
    except x509.ExtensionNotFound:
        authority = False
    if not authority and not (issued is issuer and below == 0):
        raise ChainUnfit(f"{_name(issuer)} is no certificate authority")
    if issued is not issuer and limits.path_length is not None and limits.path_length < below:
        raise ChainUnfit(f"{_name(issuer)} may not stand that high in a chain")


def _check_uses(leaf: x509.Certificate) -> None:
    try:
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if ExtendedKeyUsageOID.SERVER_AUTH not in uses:
        raise ChainUnfit(f"{_name(leaf)} is not for servers")


def _check_names(
    leaf: x509.Certificate, names: tuple[str, ...], addresses: tuple[str, ...]
) -> None:
    try:
        covered = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ChainUnfit(f"{_name(leaf)} names no host (no subject alternative name)") from error
    hosts = {name.lower() for name in covered.get_values_for_type(x509.DNSName)}
    known = set(covered.get_values_for_type(x509.IPAddress))
    missing = [name for name in names if not _covers(hosts, name.lower())]
    if not names:
        missing = [each for each in addresses if ipaddress.ip_address(each) not in known]
    if missing:
        raise ChainUnfit(f"{_name(leaf)} is not for {', '.join(missing)}")


def _covers(hosts: set[str], name: str) -> bool:
    """RFC 6125: a star stands for one whole label, the first."""
    return name in hosts or f"*.{name.partition('.')[2]}" in hosts


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "a certificate without a name"
