"""The published vectors of OpenSSF Model Signing: what others signed years ago, and what is broken.

``vectors/oms/README.md`` says where they are from. Files' digests are those the vectors sign.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.trust.model_signature import (
    ModelSignatureExpired,
    ModelSignatureInvalid,
    Publisher,
    verify_upstream,
)

VECTORS = Path(__file__).parent / "vectors" / "oms"
ONE = "f6310066c7320497ea554260c32c43660bff648cb2a61194832cc086077085e1"
OTHER_ONE = "bc9a717db6064a32cbe9eae6fc40651dd6d36ef1757183f590eff2b1765d7ebc"
TWO = "32dcb1f8e1ae52d5963e56a6ba06ab58b424c15ed2a6b70d2feca1d089370028"
KEY = Publisher(keys=((VECTORS / "signing-key-pub.pem").read_bytes(),))
AUTHORITY = Publisher(authorities=((VECTORS / "ca-cert.pem").read_bytes(),))
AT = datetime(2026, 11, 24, tzinfo=UTC)

CERTIFICATE = {"signme-1": ONE, "signme-2": TWO}
SIGNED = [
    ("spec-valid-key", {"signme-1": OTHER_ONE, "signme-2": TWO}, KEY),
    ("spec-valid-certificate", {"signme-1": OTHER_ONE, "signme-2": TWO}, AUTHORITY),
    ("v0.3.1-elliptic-key", {".": OTHER_ONE}, KEY),
    ("v0.3.1-certificate", CERTIFICATE, AUTHORITY),
    ("v1.0.0-elliptic-key", {".": OTHER_ONE}, KEY),
    ("v1.0.0-certificate", CERTIFICATE, AUTHORITY),
    ("v1.0.1-elliptic-key", {"signme-1": OTHER_ONE, "signme-2": TWO}, KEY),
    ("v1.0.1-certificate", CERTIFICATE, AUTHORITY),
    ("v1.1.0-elliptic-key", {"signme-1": OTHER_ONE, "signme-2": TWO}, KEY),
    ("v1.1.0-certificate", CERTIFICATE, AUTHORITY),
]


def _read(name: str) -> bytes:
    return (VECTORS / f"{name}.json").read_bytes()


@pytest.mark.parametrize(("name", "files", "trusted"), SIGNED)
def test_what_was_signed_verifies(name: str, files: dict[str, str], trusted: Publisher) -> None:
    assert verify_upstream(_read(name), files, trusted, AT).model
    with pytest.raises(ModelSignatureInvalid):
        verify_upstream(_read(name), dict.fromkeys(files, "00" * 32), trusted, AT)


@pytest.mark.parametrize("name", [n for n, _files, trusted in SIGNED if trusted is AUTHORITY])
def test_certificates_end(name: str) -> None:
    files = next(f for n, f, _trusted in SIGNED if n == name)
    for at in (datetime(2025, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)):
        with pytest.raises(ModelSignatureExpired):
            verify_upstream(_read(name), files, AUTHORITY, at)


@pytest.mark.parametrize(
    "name",
    [
        "spec-invalid-missing-envelope",
        "spec-invalid-missing-verification-material",
        "spec-invalid-missing-tlog-entries",
        "spec-invalid-payload-wrong-predicate",
        "spec-valid-sigstore",  # keyless: needs an online log, which a site has not
        "v0.2.0-certificate",  # signed with a broken encoding, which the specification dropped
    ],
)
def test_what_is_broken_or_not_supported_is_refused(name: str) -> None:
    both = Publisher(keys=KEY.keys, authorities=AUTHORITY.authorities)
    with pytest.raises(ModelSignatureInvalid):
        verify_upstream(_read(name), {"signme-1": OTHER_ONE, "signme-2": TWO}, both, AT)
