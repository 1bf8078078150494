"""The reference implementation of OpenSSF Model Signing accepts what we sign, and we what it signs.

Needs ``model-signing`` (and ``pyOpenSSL``), which is not among this project's dependencies.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.trust.keys import new_model_key, public_pem
from appliance.trust.model_signature import (
    ModelSignatureExpired,
    Publisher,
    cosign,
    sign,
    verify,
    verify_upstream,
)

pytest.importorskip("model_signing", reason="model-signing is not installed: pip install it to run")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "sub/tokenizer.json"):
        (folder / name).write_bytes(name.encode() * 100)
    return folder


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_theirs_verifies_ours(model: Path, tmp_path: Path) -> None:
    from model_signing import verifying

    key = new_model_key()
    (tmp_path / "key.pub").write_bytes(public_pem(key))
    (tmp_path / "m.oms.json").write_bytes(sign(_digests(model), key, "model"))
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pub")
    config.verify(model, tmp_path / "m.oms.json")
    (model / "config.json").write_bytes(b"changed")
    with pytest.raises(ValueError):
        config.verify(model, tmp_path / "m.oms.json")


def test_ours_verifies_theirs(model: Path, tmp_path: Path) -> None:
    from model_signing import hashing, signing

    key = new_model_key()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(pem)
    signer = signing.Config().use_elliptic_key_signer(private_key=tmp_path / "key.pem")
    signer.set_hashing_config(hashing.Config().use_file_serialization(hashing_algorithm="sha256"))
    signer.sign(model, tmp_path / "theirs.sig")
    name = verify((tmp_path / "theirs.sig").read_bytes(), _digests(model), public_pem(key))
    assert name == "model"


@pytest.mark.parametrize("curve", [SECP256R1(), SECP384R1(), SECP521R1()])
def test_ours_verifies_theirs_as_a_publishers(
    model: Path, tmp_path: Path, curve: EllipticCurve
) -> None:
    from model_signing import signing

    key = generate_private_key(curve)
    signer = signing.Config().use_elliptic_key_signer(private_key=_save(tmp_path / "k.pem", key))
    signer.sign(model, tmp_path / "theirs.sig")
    public = Publisher(keys=(public_pem(key),))
    theirs = (tmp_path / "theirs.sig").read_bytes()
    signed = verify_upstream(theirs, _digests(model), public, datetime.now(UTC))
    assert signed.model == "model"


def test_theirs_verifies_ours_with_a_second_signature(model: Path, tmp_path: Path) -> None:
    """They look at the first only, and do not mind another."""
    from model_signing import verifying

    key = new_model_key()
    (tmp_path / "key.pub").write_bytes(public_pem(key))
    both = cosign(sign(_digests(model), key, "model"), new_model_key())
    (tmp_path / "m.oms.json").write_bytes(both)
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pub")
    config.verify(model, tmp_path / "m.oms.json")
    assert verify(both, _digests(model), public_pem(key)) == "model"


def test_a_certificate_that_ended_is_refused_here_and_taken_there(
    model: Path, tmp_path: Path
) -> None:
    from model_signing import signing, verifying

    now = datetime.now(UTC)
    root_key, leaf_key = new_model_key(), new_model_key()
    root = _certificate("root", root_key, None, root_key, now + timedelta(days=9))
    leaf = _certificate("lab", leaf_key, root, root_key, now - timedelta(days=1))
    for name, certificate in (("root.pem", root), ("leaf.pem", leaf)):
        (tmp_path / name).write_bytes(certificate.public_bytes(Encoding.PEM))
    signer = signing.Config().use_certificate_signer(
        private_key=_save(tmp_path / "k.pem", leaf_key),
        signing_certificate=tmp_path / "leaf.pem",
        certificate_chain=[tmp_path / "root.pem"],
    )
    signer.sign(model, tmp_path / "theirs.sig")
    theirs = (tmp_path / "theirs.sig").read_bytes()
    trusted = Publisher(authorities=(root.public_bytes(Encoding.PEM),))
    verify_upstream(theirs, _digests(model), trusted, now - timedelta(days=2))
    with pytest.raises(ModelSignatureExpired):
        verify_upstream(theirs, _digests(model), trusted, now)
    config = verifying.Config().use_certificate_verifier(certificate_chain=[tmp_path / "root.pem"])
    config.verify(model, tmp_path / "theirs.sig")  # if this fails one day, they have mended it


def _save(path: Path, key: EllipticCurvePrivateKey) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def _certificate(
    name: str,
    key: EllipticCurvePrivateKey,
    by: x509.Certificate | None,
    issuing: EllipticCurvePrivateKey,
    ends: datetime,
) -> x509.Certificate:
    """An authority's (``by`` None) or a signer's certificate, ten days old."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    usage = x509.KeyUsage(digital_signature=by is not None, key_cert_sign=by is None, **usages)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=10))
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(by is None, None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )
    if by is not None:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        builder = builder.add_extension(purpose, False)
    return builder.sign(issuing, hashes.SHA256())
