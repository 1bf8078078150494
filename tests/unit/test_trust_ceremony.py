"""Key ceremonies as people hold them: by commands and files, each holder on their own."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import Supplier

from appliance.trust.fingerprint import Fingerprint
from appliance.trust.keys import is_token
from appliance.trust.pin import TrustState
from appliance.trust.repository import Repository
from appliance.trust.verifier import Verified, Verifier

Sovctl = Callable[..., "subprocess.CompletedProcess[str]"]
MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so")


@pytest.fixture
def sovctl(tmp_path: Path) -> Sovctl:
    secret = tmp_path / "passphrase"
    secret.write_text("correct horse\n")
    environment = {
        **os.environ,
        "SOVCTL_HOME": str(tmp_path / "home"),
        "SOVCTL_PASSPHRASE_FILE": str(secret),
    }

    def run(*arguments: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli.main", "trust", *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert (done.returncode == 0) == ok, done.stderr
        return done

    return run


def _asked(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout)


def _verify(repository: Repository, pin: Fingerprint, state: TrustState | None = None) -> Verified:
    supplier = Supplier(repository.folder.parent / "work", repository)
    supplier.folder.mkdir(exist_ok=True)
    content = supplier.content(version="1")
    members = {n: d for n, d in content.members().items() if not n.startswith("metadata/")}
    verifier = Verifier((state or TrustState()).pinned_to(pin))
    return verifier.verify("b.tar", content.metadata, members, lambda: content.manifest)


def _open(folder: Path) -> Repository:
    return Repository.open(folder, lambda: b"correct horse")


def test_a_ceremony_with_holders_apart(tmp_path: Path, sovctl: Sovctl) -> None:
    """Three holders; two sign copies of the request side by side; then one is replaced."""
    for name in ("alice", "bob", "carol", "dave"):
        sovctl("key", "new", "--out", tmp_path / name)
        assert stat.S_IMODE((tmp_path / f"{name}.pem").stat().st_mode) == 0o600
        assert "ENCRYPTED" in (tmp_path / f"{name}.pem").read_text()
    keys = tmp_path / "keys"
    holders = [w for n in ("alice", "bob", "carol") for w in ("--holder", tmp_path / f"{n}.pub")]
    request = _asked(sovctl("init", *holders, "--threshold", 2, "--out", keys, "--json"))["request"]
    assert not (keys / "roots").exists()
    assert not list((keys / "keys").glob("root-*"))

    # A signature is a person's act, and only those who were asked can give it.
    copies = [tmp_path / "a.json", tmp_path / "b.json"]
    refused = sovctl("sign", request, "--key", tmp_path / "alice.pem", ok=False)
    assert "confirmation-needed" in refused.stderr
    refused = sovctl("sign", request, "--key", tmp_path / "dave.pem", "--yes", ok=False)
    assert "key-unusable" in refused.stderr
    for copy, name in zip(copies, ("alice", "bob"), strict=True):
        done = sovctl("sign", request, "--key", tmp_path / f"{name}.pem", "--yes", "--out", copy)
        for said in ("root: 2 of 3 keys", "alice", "carol", "Fingerprint"):
            assert said in done.stderr
    refused = sovctl("publish", "--keys", keys, copies[0], ok=False)
    assert "signing-request-unsigned" in refused.stderr
    assert "carol" in refused.stderr
    published = _asked(sovctl("publish", "--keys", keys, *copies, "--json"))
    assert not list((keys / "requests").iterdir())

    pin = Fingerprint.parse(published["fingerprint"])
    verified = _verify(_open(keys), pin)
    assert verified.root_version == 1
    shown = _asked(sovctl("show", "--keys", keys, "--json"))
    assert [k["holder"] for k in shown["roles"]["root"]["keys"]] == ["alice", "bob", "carol"]
    assert Fingerprint.parse(" ".join(shown["words"])) == pin

    # Carol leaves, dave comes, three must sign: by the new quorum and by the old one.
    new = [w for n in ("alice", "bob", "dave") for w in ("--holder", tmp_path / f"{n}.pub")]
    asked = _asked(sovctl("rotate", "--keys", keys, *new, "--threshold", 3, "--json"))["request"]
    words = sovctl("sign", asked, "--key", tmp_path / "alice.pem", "--yes").stderr
    for line in ("root: 3 of 3 keys (before: 2)", "+ dave", "- carol"):
        assert line in words
    sovctl("sign", asked, "--key", tmp_path / "bob.pem", "--yes")
    assert "dave" in sovctl("publish", "--keys", keys, asked, ok=False).stderr
    sovctl("sign", asked, "--key", tmp_path / "dave.pem", "--yes")
    sovctl("publish", "--keys", keys, asked)
    assert _verify(_open(keys), pin, verified.state).root_version == 2


def test_a_request_that_was_changed_is_not_signed(tmp_path: Path, sovctl: Sovctl) -> None:
    sovctl("key", "new", "--out", tmp_path / "alice")
    pub = tmp_path / "alice.pub"
    made = sovctl(
        "init", "--holder", pub, "--threshold", 1, "--out", tmp_path / "keys", "--json"
    )  # fmt: skip
    request = Path(_asked(made)["request"])
    sovctl("sign", request, "--key", tmp_path / "alice.pem", "--yes")
    tree = json.loads(request.read_bytes())
    tree["metadata"]["signed"]["roles"]["targets"]["threshold"] = 2
    request.write_text(json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
    done = sovctl("publish", "--keys", tmp_path / "keys", request, ok=False)
    assert "signing-request-invalid" in done.stderr
    request.write_text("{}")
    assert "signing-request-invalid" in sovctl("sign", request, "--key", "x", ok=False).stderr


def test_a_roles_key_elsewhere_signs_from_a_request(tmp_path: Path, sovctl: Sovctl) -> None:
    """The models role moves to another machine; the bundle waits for its word, once."""
    from appliance.errors import SignatureAwaited

    keys = tmp_path / "keys"
    sovctl("init", "--out", keys, "--demo")
    sovctl("key", "new", "--out", tmp_path / "lab")
    sovctl("rotate", "--keys", keys, "--role-key", f"models={tmp_path / 'lab.pub'}")
    assert not (keys / "keys" / "models.pem").exists()
    repository = _open(keys)
    with pytest.raises(SignatureAwaited) as caught:
        _verify(repository, repository.fingerprint)
    request = caught.value.values["requests"]
    done = sovctl("sign", request, "--key", tmp_path / "lab.pem", "--yes")
    assert "models/model-m.json" in done.stderr
    sovctl("publish", "--keys", keys, request)
    assert not Path(request).exists()
    assert _verify(repository, repository.fingerprint).bundle == "sample"


def test_a_role_rotates_by_request_where_root_keys_are_away(tmp_path: Path, sovctl: Sovctl) -> None:
    """Until the new root is published the old keys sign; after it, the new ones."""
    keys, safe = tmp_path / "keys", tmp_path / "safe"
    sovctl("init", "--out", keys)
    safe.mkdir()
    for path in (keys / "keys").glob("root-*"):
        shutil.move(path, safe)
    before = _open(keys)
    pin = before.fingerprint
    state = _verify(before, pin).state
    request = _asked(sovctl("rotate", "--keys", keys, "--role", "targets", "--json"))["request"]
    assert _verify(_open(keys), pin, state).root_version == 1
    for number in (1, 2):
        sovctl("sign", request, "--key", safe / f"root-{number}.pem", "--yes")
    sovctl("publish", "--keys", keys, request)
    assert _verify(_open(keys), pin, state).root_version == 2
    assert not list((keys / "keys" / "next").iterdir())


def test_fingerprints_on_paper_and_by_telephone(tmp_path: Path, sovctl: Sovctl) -> None:
    keys = tmp_path / "keys"
    sovctl("init", "--out", keys, "--demo")
    shown = _asked(sovctl("show", "--keys", keys, "--json"))
    paper = sovctl("show", "--keys", keys, "--qr").stdout
    assert shown["words"][31] in paper
    assert "▄" in paper or "█" in paper
    assert _asked(sovctl("pin", *shown["words"], "--json"))["pinned"] == shown["fingerprint"]
    wrong = [shown["words"][1], shown["words"][0], *shown["words"][2:]]
    assert "fingerprint-malformed" in sovctl("pin", *wrong, ok=False).stderr


# --- tokens ---------------------------------------------------------------------------------------


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SoftHSM token 'holder' with P-256 keys 1 and 2; returns the file with its PIN."""
    pytest.importorskip("pkcs11", reason="python-pkcs11 is not installed (the extra 'hsm')")
    module = next((m for m in MODULES if Path(m).exists()), None)
    if module is None or not all(map(shutil.which, ("softhsm2-util", "pkcs11-tool"))):
        pytest.skip("softhsm2 and opensc are not installed")
    (tmp_path / "tokens").mkdir()
    conf = tmp_path / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(conf))
    monkeypatch.setenv("PYKCS11LIB", module)
    make = ["softhsm2-util", "--init-token", "--free", "--label", "holder"]
    subprocess.run([*make, "--pin", "1234", "--so-pin", "0000"], check=True, capture_output=True)
    for number in ("01", "02"):
        generate = ["--keypairgen", "--key-type", "EC:prime256v1", "--id", number]
        subprocess.run(
            ["pkcs11-tool", "--module", module, "--token-label", "holder", "--login",
             "--pin", "1234", *generate], check=True, capture_output=True,
        )  # fmt: skip
    pin = tmp_path / "pin"
    pin.write_text("1234\n")
    return pin


def test_a_holder_and_a_role_on_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: Path, sovctl: Sovctl
) -> None:
    monkeypatch.setenv("SOVCTL_PIN_FILE", str(token))
    keys, holder, role = tmp_path / "keys", "hsm:1?label=holder", "pkcs11:token=holder;id=%02"
    assert is_token(holder) and is_token(role)

    def as_token(*arguments: object, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "appliance.cli.main", "trust", *map(str, arguments)],
            env={**os.environ, "SOVCTL_PASSPHRASE_FILE": str(tmp_path / "passphrase")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == ok, done.stderr
        return done

    made = as_token("init", "--holder", holder, "--threshold", 1, "--out", keys, "--json")
    request = _asked(made)["request"]
    token.write_text("9999\n")
    refused = as_token("sign", request, "--key", holder, "--yes", ok=False)
    assert "token-unusable" in refused.stderr
    assert "9999" not in refused.stderr
    token.write_text("1234\n")
    as_token("sign", request, "--key", holder, "--yes")
    as_token("publish", "--keys", keys, request)
    shown = _asked(as_token("show", "--keys", keys, "--json"))
    assert shown["roles"]["root"]["keys"][0] == {
        "id": shown["roles"]["root"]["keys"][0]["id"], "holder": "holder", "type": "ecdsa"
    }  # fmt: skip
    asked = _asked(as_token("rotate", "--keys", keys, "--role-key", f"targets={role}", "--json"))
    as_token("sign", asked["request"], "--key", holder, "--yes")
    as_token("publish", "--keys", keys, asked["request"])
    repository = _open(keys)
    assert _verify(repository, repository.fingerprint).root_version == 2
