"""Certificates that sign models: a chain from a leaf to a pinned authority, judged at one moment.

    leaf = leaf_of(chain, authorities, at)      # the leaf, whose key may then be believed

The profile of TLS does not fit code signing, and the certificates of OpenSSF Model Signing fit no
profile closely (RFC 5280 with the purpose *code signing*), so the checks are written out here, each
of them one the reference implementation leaves out or leaves to OpenSSL. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

MAX_CHAIN = 8

_UNDERSTOOD = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,  # says who; nobody is recognised by name here
    }
)


class ChainInvalid(ValueError):
    """The chain does not lead to an authority, or a certificate in it may not do what it does."""


class ChainExpired(ChainInvalid):
    """A certificate is not valid yet, or not any more. ``until``: when the first one ended."""

    def __init__(self, reason: str, until: datetime) -> None:
        super().__init__(reason)
        self.until = until


def leaf_of(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], at: datetime
) -> x509.Certificate:
    """The first certificate of ``chain``, if it leads to one of ``authorities`` and may sign code.

    Every certificate on the way, the authority's own too, must be valid at ``at``. Raises
    :class:`ChainInvalid`, :class:`ChainExpired`.
    """
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise ChainInvalid(f"a chain has 1 to {MAX_CHAIN} certificates")
    path = _path(chain, authorities)
    until = min(certificate.not_valid_after_utc for certificate in path)
    for certificate in path:
        _check_dates(certificate, at, until)
        _check_extensions(certificate)
    for below, authority in enumerate(path[1:]):
        _check_may_issue(authority, below)
    _check_may_sign(path[0])
    return path[0]


def _path(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Leaf, intermediates and the authority. The chain may stop before the authority or name it."""
    path = [chain[0]]
    while len(path) <= MAX_CHAIN:
        if path[-1] in authorities and len(path) > 1:
            return path
        anchor = next((a for a in authorities if _issued(path[-1], a)), None)
        if anchor is not None:
            return [*path, anchor]
        issuer = next((c for c in chain[1:] if c not in path and _issued(path[-1], c)), None)
        if issuer is None:
            break
        path.append(issuer)
    raise ChainInvalid("its certificate does not lead to an authority that is trusted here")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _check_dates(certificate: x509.Certificate, at: datetime, until: datetime) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= at.astimezone(UTC) <= last:
        name = certificate.subject.rfc4514_string()
        raise ChainExpired(
            f"the certificate {name} holds from {first:%Y-%m-%d} to {last:%Y-%m-%d}; "
            f"it is {at:%Y-%m-%d} here",
            until,
        )


def _check_extensions(certificate: x509.Certificate) -> None:
    for extension in certificate.extensions:
        if extension.critical and extension.oid not in _UNDERSTOOD:
            raise ChainInvalid(f"a certificate demands what is not understood: {extension.oid}")


def _check_may_issue(authority: x509.Certificate, below: int) -> None:
    """``below`` is how many authorities stand between it and the leaf."""
    try:
        limits = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound as error:
        raise ChainInvalid("a certificate in the chain is no authority") from error
    if not limits.ca or (limits.path_length is not None and limits.path_length < below):
        raise ChainInvalid("a certificate in the chain may not issue the one below it")
    usage = _usage(authority)
    if usage is not None and not usage.key_cert_sign:
        raise ChainInvalid("a certificate in the chain may not sign certificates")


def _check_may_sign(leaf: x509.Certificate) -> None:
    usage = _usage(leaf)
    if usage is not None and not usage.digital_signature:
        raise ChainInvalid("its certificate is not for signatures")
    try:
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
        raise ChainInvalid("its certificate is not for signing code")


def _usage(certificate: x509.Certificate) -> x509.KeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
