"""Publishers' own model signatures: by key or certificate, with dates, with several signatures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import FILES as SAMPLES
from bundle_samples import SBOM, Supplier, manifest_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.bundle.format import signed_members
from appliance.bundle.load import judge
from appliance.bundle.reader import BundleReader
from appliance.bundle.writer import BundleContent
from appliance.errors import BundleExpired, BundleTampered
from appliance.trust.keys import new_model_key, public_pem
from appliance.trust.model_signature import (
    ModelSignatureExpired,
    ModelSignatureInvalid,
    Publisher,
    cosign,
    sign,
    verify,
    verify_upstream,
)
from appliance.trust.pin import TrustState
from appliance.trust.verifier import Emergency, Verified, Verifier

FILES = {"config.json": "ab" * 32, "model.safetensors": "cd" * 32}
NOW = datetime(2026, 11, 24, tzinfo=UTC)
DAY = timedelta(days=1)


class Authority:
    """A certificate and its key, which issue others."""

    def __init__(
        self, name: str, by: Authority | None = None, *, ca: bool = True, ends: datetime = NOW + DAY
    ) -> None:
        self.key: EllipticCurvePrivateKey = new_model_key()
        self.by = by
        self.ca = ca
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer, issuing = (by.certificate.subject, by.key) if by else (subject, self.key)
        self._builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW - 10 * DAY)
            .not_valid_after(ends)
        )
        self._issuing = issuing
        self._constraints: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca, None), True)
        ]

    def having(self, extension: x509.ExtensionType, *, critical: bool = False) -> Authority:
        self._constraints.append((extension, critical))
        return self

    @property
    def certificate(self) -> x509.Certificate:
        builder = self._builder
        for extension, critical in self._constraints:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._issuing, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


def _with_chain(leaf: Authority, *rest: Authority, files: Mapping[str, str] = FILES) -> bytes:
    """A bundle signed by ``leaf`` that carries it and ``rest`` as its chain."""
    bundle: dict[str, Any] = json.loads(sign(files, leaf.key, "m"))
    bundle["verificationMaterial"] = {
        "x509CertificateChain": {
            "certificates": [
                {"rawBytes": base64.b64encode(c.certificate.public_bytes(Encoding.DER)).decode()}
                for c in (leaf, *rest)
            ]
        },
        "tlogEntries": [],
    }
    return json.dumps(bundle).encode()


def _by(*authorities: Authority) -> Publisher:
    return Publisher(authorities=tuple(a.pem for a in authorities))


def test_a_chain_to_a_pinned_authority() -> None:
    root = Authority("root")
    middle = Authority("middle", root)
    leaf = Authority("lab", middle, ca=False, ends=NOW + DAY / 2)
    signed = verify_upstream(_with_chain(leaf, middle), FILES, _by(root), NOW)
    assert (signed.model, signed.signer, signed.expires) == ("m", "CN=lab", NOW + DAY / 2)
    verify_upstream(_with_chain(leaf, middle, root), FILES, _by(root), NOW)
    verify_upstream(_with_chain(leaf), FILES, _by(middle), NOW)
    for other in (_by(Authority("root")), Publisher(keys=(public_pem(new_model_key()),))):
        with pytest.raises(ModelSignatureInvalid):
            verify_upstream(_with_chain(leaf, middle), FILES, other, NOW)
    with pytest.raises(ModelSignatureInvalid):  # a link of the chain is missing
        verify_upstream(_with_chain(leaf), FILES, _by(root), NOW)


@pytest.mark.parametrize("which", ["root", "middle", "leaf"])
def test_dates_are_enforced_all_the_way_up(which: str) -> None:
    """The reference implementation accepts a certificate that has expired."""
    ends = {name: NOW + (1 if name == which else 9) * DAY for name in ("root", "middle", "leaf")}
    root = Authority("root", ends=ends["root"])
    middle = Authority("middle", root, ends=ends["middle"])
    data = _with_chain(Authority("lab", middle, ca=False, ends=ends["leaf"]), middle)
    verify_upstream(data, FILES, _by(root), NOW)
    for at in (NOW + 2 * DAY, NOW - 11 * DAY):
        with pytest.raises(ModelSignatureExpired) as caught:
            verify_upstream(data, FILES, _by(root), at)
        assert caught.value.until == NOW + DAY


def test_certificates_do_only_what_they_are_for() -> None:
    root = Authority("root")
    usage = {
        name: name == "key_cert_sign"
        for name in (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        )
    }  # fmt: skip
    web = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x")
    no_authority = Authority("middle", root, ca=False)
    for chain in (
        (Authority("lab", no_authority, ca=False), no_authority),
        (Authority("lab", root, ca=False).having(x509.KeyUsage(**usage)),),
        (Authority("lab", root, ca=False).having(web),),
        (Authority("lab", root, ca=False).having(odd, critical=True),),
    ):
        with pytest.raises(ModelSignatureInvalid):
            verify_upstream(_with_chain(*chain), FILES, _by(root), NOW)
    verify_upstream(
        _with_chain(
            Authority("lab", root, ca=False)
            .having(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]))
            .having(odd)
        ),
        FILES,
        _by(root),
        NOW,
    )


def test_a_certificate_of_another_than_who_signed_is_refused() -> None:
    root = Authority("root")
    thief = Authority("lab", root, ca=False)
    data = json.loads(_with_chain(Authority("lab", root, ca=False)))
    stolen = json.loads(_with_chain(thief))
    data["verificationMaterial"] = stolen["verificationMaterial"]
    with pytest.raises(ModelSignatureInvalid):
        verify_upstream(json.dumps(data).encode(), FILES, _by(root), NOW)


def test_a_publishers_key_may_be_on_p384() -> None:
    key = generate_private_key(SECP384R1())
    trusted = Publisher(keys=(public_pem(key),))
    with pytest.raises(ModelSignatureInvalid):  # our own signatures are on P-256 only
        verify(sign(FILES, key, "m"), FILES, public_pem(key))
    with pytest.raises(ModelSignatureInvalid):  # P-384 signs SHA-384; this one signed SHA-256
        verify_upstream(sign(FILES, key, "m"), FILES, trusted, NOW)


def test_a_publisher_may_have_signed_more_than_is_carried() -> None:
    key = new_model_key()
    trusted = Publisher(keys=(public_pem(key),))
    signed = sign({**FILES, "README.md": "00" * 32}, key, "m")
    assert verify_upstream(signed, FILES, trusted, NOW).expires is None
    for files in ({}, {**FILES, "new": "00" * 32}, {**FILES, "config.json": "00" * 32}):
        with pytest.raises(ModelSignatureInvalid):
            verify_upstream(signed, files, trusted, NOW)


def test_several_signatures() -> None:
    """One by a trusted key is enough, wherever it stands; a false one in its name refuses all."""
    one, two, stranger = new_model_key(), new_model_key(), new_model_key()
    both = cosign(sign(FILES, one, "m"), two)
    for key in (one, two):
        assert verify(both, FILES, public_pem(key)) == "m"
        trusted = Publisher(keys=(public_pem(stranger), public_pem(key)))
        assert verify_upstream(both, FILES, trusted, NOW).model == "m"
    with pytest.raises(ModelSignatureInvalid):
        verify(both, FILES, public_pem(stranger))
    tree = json.loads(both)
    other = json.loads(cosign(sign({**FILES, "x": "00" * 32}, one, "m"), two))
    tree["dsseEnvelope"]["signatures"][1]["sig"] = other["dsseEnvelope"]["signatures"][1]["sig"]
    forged = json.dumps(tree).encode()
    assert verify(forged, FILES, public_pem(one)) == "m"  # whose name the other uses is unknown
    with pytest.raises(ModelSignatureInvalid, match="in the name of a trusted key"):
        verify_upstream(
            forged, FILES, Publisher(keys=(public_pem(one), public_pem(two))), NOW
        )  # fmt: skip


def test_a_bundle_carries_it_and_the_site_judges_it_again(tmp_path: Path) -> None:
    """By the publisher the targets role names, at the site's time; glass may be broken for it."""
    supplier = Supplier.at(tmp_path)
    root = Authority("root", ends=NOW + 900 * DAY)
    leaf = Authority("lab", root, ca=False, ends=NOW + 5 * DAY)
    manifest = manifest_of(supplier.store, SAMPLES)
    files = {file.path: file.hex for file in manifest.artefacts[0].files}
    signatures = {"m": sign(files, supplier.repository.model_key(), "m")}

    def written(upstream: bytes, publisher: Publisher) -> Path:
        others = {"upstream/m.oms.json": upstream}
        members = signed_members(manifest, SBOM, signatures, others)
        metadata = supplier.repository.sign(
            manifest.name,
            members,
            NOW,
            artefacts=manifest.artefacts,
            publishers={"upstream/m.oms.json": publisher},
        )
        return supplier.write(BundleContent(manifest, SBOM, signatures, metadata, others))

    def judged(path: Path, at: datetime, emergency: Emergency | None = None) -> Verified:
        state = TrustState().pinned_to(supplier.repository.fingerprint)
        with BundleReader(path) as reader:
            return judge(reader, Verifier(state, at, emergency))[1]

    path = written(_with_chain(leaf, files=files), _by(root))
    assert not judged(path, NOW).expired
    with pytest.raises(BundleExpired, match="bundle-expired"):
        judged(path, NOW + 6 * DAY)
    storm = Emergency("the publisher is gone")
    assert set(judged(path, NOW + 6 * DAY, storm).expired) == {"upstream/m.oms.json"}
    with pytest.raises(BundleTampered):
        judged(written(_with_chain(leaf, files=files), _by(Authority("root"))), NOW)
    with pytest.raises(BundleTampered):
        judged(written(_with_chain(leaf), _by(root)), NOW, storm)
