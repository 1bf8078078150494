"""Host keys: who decides, what is refused, and that the file says what OpenSSH reads."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preflight_samples import site

from appliance.errors import HostKeyChanged, HostUnreachable, LoginRefused, SudoRefused
from appliance.provision import host_keys
from appliance.provision.host_keys import (
    HostKey,
    decide,
    label,
    parse,
    parse_accept,
    render,
    suffices,
)
from appliance.provision.ssh import Control, Remote


def _key(number: int) -> HostKey:
    kind = b"ssh-ed25519"
    return HostKey(
        "ssh-ed25519",
        len(kind).to_bytes(4, "big") + kind + bytes([0, 0, 0, 32]) + bytes([number]) * 32,
    )


A, B = _key(1), _key(2)
NOBODY: frozenset[str] = frozenset()


def test_a_fingerprint_is_what_ssh_keygen_prints(tmp_path: Path) -> None:
    made = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", made], check=True)
    line = made.with_suffix(".pub").read_text()
    printed = subprocess.run(
        ["ssh-keygen", "-lf", made], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    (key,) = parse(f"10.0.0.1 {line}")["10.0.0.1"]
    assert key.fingerprint == printed
    found = subprocess.run(
        ["ssh-keygen", "-F", "[10.0.0.1]:2222", "-f", "/dev/stdin"],
        input=render({label("10.0.0.1", 2222): (key,)}), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert line.split()[1] in found.stdout


def test_only_what_somebody_named_is_accepted() -> None:
    assert decide("n1", "x", (A, B), (), frozenset({B.fingerprint})) == (B,)
    assert decide("n1", "x", (A,), (A,), NOBODY) == (A,)
    assert decide("n1", "x", (A,), (), NOBODY) == ()  # a person is asked
    assert decide("n1", "x", (B,), (A,), frozenset({B.fingerprint})) == (B,)  # named anew


@pytest.mark.parametrize(
    ("known", "named"), [((A,), NOBODY), ((), {A.fingerprint}), ((A,), {A.fingerprint})]
)
def test_a_key_that_differs_is_refused_and_both_are_said(
    known: tuple[HostKey, ...], named: frozenset[str]
) -> None:
    with pytest.raises(HostKeyChanged) as caught:
        decide("n1", "x", (B,), known, frozenset(named))
    assert A.fingerprint in caught.value.values["expected"]
    assert B.fingerprint in caught.value.values["offered"]


def test_nothing_is_looked_up_where_all_is_known() -> None:
    assert suffices((A,), NOBODY)
    assert suffices((A,), frozenset({A.fingerprint, B.fingerprint}))
    assert not suffices((A,), frozenset({B.fingerprint}))
    assert not suffices((), frozenset({A.fingerprint}))


def test_a_host_that_keeps_the_scan_waiting_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a tar pit does: it sends a byte every other second, which ssh-keyscan waits for."""
    scan = tmp_path / "ssh-keyscan"
    scan.write_text("#!/bin/sh\nexec sleep 60\n")
    scan.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(host_keys, "_SCAN_S", 0.2)
    place = site()
    with pytest.raises(HostUnreachable, match="n1"):
        host_keys.scan(place, [place.host("n1")])


@given(st.text())
def test_whatever_is_in_a_file_is_read_or_left_out(text: str) -> None:
    assert render(parse(render(parse(text)))) == render(parse(text))


def test_what_is_typed_is_host_and_fingerprint() -> None:
    assert parse_accept(["n1=SHA256:abc", "n1=SHA256:def="])["n1"] == {"SHA256:abc", "SHA256:def"}
    for wrong in ("n1", "n1=abc", "=SHA256:abc"):
        with pytest.raises(ValueError, match=wrong):
            parse_accept([wrong])


def test_what_ssh_says_becomes_what_to_do() -> None:
    remote = Remote("n1", "ops", "10.0.0.1", 22, None, Path("/known"), Control(Path("/c")))
    assert remote.judge(0, b"warning") is None
    assert remote.judge(1, b"sudo: a password is required", sudo=True).__class__ is SudoRefused
    assert remote.judge(1, b"sudo: a password is required") is None  # the command's own words
    said = b"ops@10.0.0.1: Permission denied (publickey)."
    assert remote.judge(255, said).__class__ is LoginRefused
