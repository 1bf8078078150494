"""Certificates that a site issues, with OpenSSL's command line as the second opinion."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.trust import site_ca
from appliance.trust.site_ca import CLIENT, SERVER, Leaf

NOW = datetime.now(UTC)
NODE = Leaf("n1", ("localhost", "n1"), ("198.18.1.11", "fd00::11", "127.0.0.1", "::1"))


def verify(folder: Path, ca: site_ca.Pair, leaf: site_ca.Pair, *more: str) -> bool:
    (folder / "ca.pem").write_bytes(site_ca.certificate_pem(ca[0]))
    (folder / "leaf.pem").write_bytes(site_ca.certificate_pem(leaf[0]))
    files = ["-CAfile", str(folder / "ca.pem"), *more, str(folder / "leaf.pem")]
    strict = ["openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore"]
    return subprocess.run([*strict, *files], capture_output=True, check=False).returncode == 0


def test_openssl_accepts_a_leaf_for_what_it_is_for_and_nothing_else(tmp_path: Path) -> None:
    authority = site_ca.make_authority("lab main", NOW)
    leaf = site_ca.issue(NODE, authority, NOW)
    for good in ("198.18.1.11", "fd00::11", "127.0.0.1", "::1"):
        assert verify(tmp_path, authority, leaf, "-verify_ip", good, "-purpose", "sslserver")
    assert verify(tmp_path, authority, leaf, "-verify_hostname", "n1", "-purpose", "sslclient")
    assert not verify(tmp_path, authority, leaf, "-verify_ip", "198.18.1.12")
    assert not verify(tmp_path, authority, leaf, "-verify_hostname", "n2")
    assert not verify(tmp_path, site_ca.make_authority("lab other", NOW), leaf)
    server = site_ca.issue(Leaf("relay", (), ("198.18.1.11",), (SERVER,)), authority, NOW)
    assert verify(tmp_path, authority, server, "-purpose", "sslserver")
    assert not verify(tmp_path, authority, server, "-purpose", "sslclient")


def test_a_leaf_is_good_until_its_host_or_its_time_changes() -> None:
    authority = site_ca.make_authority("lab main", NOW)
    made = site_ca.issue(NODE, authority, NOW)
    leaf = made[0]
    assert site_ca.serves(leaf, NODE, authority[0], NOW)
    assert not site_ca.serves(leaf, NODE, authority[0], NOW + timedelta(days=368))
    moved = Leaf(NODE.name, NODE.hosts, ("198.18.1.12", *NODE.addresses[1:]))
    assert not site_ca.serves(leaf, moved, authority[0], NOW)
    client = Leaf(NODE.name, NODE.hosts, NODE.addresses, (CLIENT,))
    assert not site_ca.serves(leaf, client, authority[0], NOW)
    assert not site_ca.serves(leaf, NODE, site_ca.make_authority("other", NOW)[0], NOW)
    pem = site_ca.certificate_pem(leaf)
    assert site_ca.load(pem, site_ca.key_pem(made[1])) is not None
    assert site_ca.load(pem, site_ca.key_pem(authority[1])) is None
