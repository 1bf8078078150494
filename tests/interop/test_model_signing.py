"""The reference implementation of OpenSSF Model Signing accepts what we sign, and we what it signs.

Needs ``model-signing`` (and ``pyOpenSSL``), which is not among this project's dependencies.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.trust.keys import new_model_key, public_pem
from appliance.trust.model_signature import sign, verify

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
