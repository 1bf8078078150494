"""OpenSSF Model Signing: exactly these files, exactly this key."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.trust.keys import new_model_key, new_tuf_key, public_pem
from appliance.trust.model_signature import ModelSignatureInvalid, sign, verify

KEY = new_model_key()
FILES = {"config.json": "ab" * 32, "model.safetensors": "cd" * 32, "sub/x": "ef" * 32}


def test_round_trip_is_deterministic() -> None:
    data = sign(FILES, KEY, "m")
    assert verify(data, FILES, public_pem(KEY)) == "m"
    assert sign(dict(reversed(FILES.items())), KEY, "m") == data


@pytest.mark.parametrize(
    "files",
    [
        {},
        {**FILES, "extra": "00" * 32},
        {**FILES, "config.json": "00" * 32},
        {k: v for k, v in FILES.items() if k != "sub/x"},
    ],
)
def test_other_files_are_refused(files: dict[str, str]) -> None:
    with pytest.raises(ModelSignatureInvalid, match="files"):
        verify(sign(FILES, KEY, "m"), files, public_pem(KEY))


def test_other_keys_are_refused() -> None:
    data = sign(FILES, KEY, "m")
    with pytest.raises(ModelSignatureInvalid, match="not by a key that is trusted"):
        verify(data, FILES, public_pem(new_model_key()))
    for key in (public_pem(new_tuf_key()), b"", b"junk"):
        with pytest.raises(ModelSignatureInvalid):
            verify(data, FILES, key)


def test_a_changed_payload_is_refused() -> None:
    bundle = json.loads(sign(FILES, KEY, "m"))
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(b'"m"', b'"n"')
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(ModelSignatureInvalid):
        verify(json.dumps(bundle).encode(), FILES, public_pem(KEY))


def test_the_same_signature_twice_is_refused() -> None:
    bundle = json.loads(sign(FILES, KEY, "m"))
    bundle["dsseEnvelope"]["signatures"] *= 2
    with pytest.raises(ModelSignatureInvalid):
        verify(json.dumps(bundle).encode(), FILES, public_pem(KEY))


@given(st.binary(max_size=200))
def test_junk_is_refused(data: bytes) -> None:
    with pytest.raises(ModelSignatureInvalid):
        verify(data, FILES, public_pem(KEY))
