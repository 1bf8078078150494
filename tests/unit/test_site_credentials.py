"""What a controller issues for a site: once, to whom it belongs, and renewed when it must be."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from appliance.cluster import node_file, pki
from appliance.errors import GatewayCertificateUnfit
from appliance.install.site_credentials import issue
from appliance.layout import Home, SitePlace
from appliance.manifests.document import load
from appliance.manifests.site import Site
from appliance.trust import site_ca
from appliance.trust.server_chain import ChainUnfit, check_chain
from appliance.trust.site_ca import SERVER, Leaf

NOW = datetime.now(UTC)


def site_of(folder: Path, **changes: Any) -> Site:
    """Serving on n1 and n2, tuning on n3; the gateway on n1, reached by 198.18.0.11."""
    hosts = [
        ("n1", ["ray_head", "ray_worker", "gateway"], "serving"),
        ("n2", ["ray_worker"], "serving"),
        ("n3", ["ray_head", "ray_worker"], "tuning"),
    ]
    content: dict[str, Any] = {
        "schema_version": 1,
        "name": "lab",
        "networks": [
            {"name": "admin", "kind": "management", "cidr": "198.18.0.0/24"},
            {"name": "cluster", "kind": "cluster", "cidr": "198.18.1.0/24"},
        ],
        "trust_domains": [{"name": n, "purpose": n} for n in ("serving", "tuning")],
        "hosts": [
            {
                "name": name,
                "roles": roles,
                "domain": domain,
                "interfaces": [
                    {"network": "admin", "address": f"198.18.0.{10 + number}"},
                    {"network": "cluster", "address": f"198.18.1.{10 + number}"},
                ],
            }
            for number, (name, roles, domain) in enumerate(hosts, 1)
        ],
        "gateway": {"networks": ["admin"], "names": ["ai.lab.example"]},
        "storage": {"kind": "mounted", "path": "/srv/shared"},
    }
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return load(Site, file)


@pytest.fixture
def place(tmp_path: Path) -> SitePlace:
    return SitePlace(Home(tmp_path / "home"), "lab")


def everything(place: SitePlace) -> dict[str, tuple[bytes, int, int]]:
    files = [path for path in place.root.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(place.root)): (path.read_bytes(), state.st_mode, state.st_mtime_ns)
        for path in files
        for state in (path.stat(),)
    }


def verified(ca: Path, leaf: Path, *options: str) -> bool:
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(ca), *options, str(leaf)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_each_host_gets_its_own_and_a_second_run_changes_nothing(
    tmp_path: Path, place: SitePlace
) -> None:
    site = site_of(tmp_path)
    issue(site, place, "demo-1-0123456789ab")
    before = everything(place)
    issue(site, place, "demo-1-0123456789ab")
    assert everything(place) == before

    assert place.root.stat().st_mode & 0o077 == 0
    for name, (_data, mode, _time) in before.items():
        if name.endswith((".key", ".token", ".tar")):
            assert mode & 0o077 == 0, name
    node = node_file.parse((place.host("n2") / "node.json").read_bytes())
    assert (node.head_address, node.peers) == ("198.18.1.11", ("198.18.1.11", "198.18.1.12"))
    assert (node.head, node.worker, node.replicas, node.gateway) == (False, True, 2, None)
    gateway = node_file.parse((place.host("n1") / "node.json").read_bytes()).gateway
    assert gateway is not None and gateway.tuning is not None
    assert (gateway.addresses, gateway.tuning.head) == (("198.18.0.11",), "198.18.1.13")


def test_the_domains_trust_nothing_of_each_other(tmp_path: Path, place: SitePlace) -> None:
    issue(site_of(tmp_path), place, "demo-1-0123456789ab")
    n2, n3 = place.host("n2"), place.host("n3")
    own, other = n2 / "tls/ray-ca.pem", n3 / "tls/ray-ca.pem"
    for address in ("198.18.1.12", "198.18.0.12", "127.0.0.1", "::1"):
        assert verified(own, n2 / "tls/ray.pem", "-verify_ip", address)
    assert not verified(own, n2 / "tls/ray.pem", "-verify_ip", "198.18.1.11")
    assert not verified(other, n2 / "tls/ray.pem")
    assert (n2 / "secrets/ray.token").read_bytes() != (n3 / "secrets/ray.token").read_bytes()
    # A Ray process does not pass for the gateway, nor does one host's relay.
    relay = n2 / "tls/relay-ca.pem"
    client = place.host("n1") / "gateway/domains/serving/client.pem"
    assert verified(relay, client, "-purpose", "sslclient")
    assert verified(relay, n2 / "tls/relay.pem", "-purpose", "sslserver")
    assert not verified(relay, n2 / "tls/relay.pem", "-purpose", "sslclient")
    assert not verified(relay, n2 / "tls/ray.pem")
    assert not verified(relay, place.host("n1") / "gateway/domains/tuning/client.pem")
    assert not (n2 / "gateway").exists() or not any((n2 / "gateway").rglob("*.key"))


def test_the_archive_is_the_folder_with_owners(tmp_path: Path, place: SitePlace) -> None:
    issue(site_of(tmp_path), place, "demo-1-0123456789ab")
    folder = place.host("n1")
    for archive, root in (("node.tar", folder), ("gateway.tar", folder / "gateway")):
        with tarfile.open(fileobj=io.BytesIO((folder / archive).read_bytes())) as tar:
            for entry in tar:
                content = tar.extractfile(entry)
                assert content is not None
                assert content.read() == (root / entry.name).read_bytes()
                secret = entry.name.endswith((".key", ".token"))
                assert entry.mode == (0o640 if secret else 0o644)
                assert (entry.uname, entry.gname, entry.uid) == ("root", "sovctl", 0)


def test_only_what_no_longer_fits_is_issued_anew(tmp_path: Path, place: SitePlace) -> None:
    site = site_of(tmp_path)
    issue(site, place, "demo-1-0123456789ab")
    before = everything(place)
    folder = place.host("n2")
    authority = pki.load(place.domain("serving") / "ca.pem", place.domain("serving") / "ca.key")
    assert authority is not None
    leaf = Leaf(
        "n2", ("localhost", "n2"), ("198.18.0.12", "198.18.1.12", "127.0.0.1", "::1")
    )  # fmt: skip
    old = site_ca.issue(leaf, authority, NOW - timedelta(days=380))
    pki.store(folder / "tls/ray.pem", folder / "secrets/ray.key", old)
    issue(site, place, "demo-2-0123456789ab")
    changed = {name for name, state in everything(place).items() if before.get(name) != state}
    bound_to_the_release = ("node.json", "node.tar", "credentials.sha256")
    renewed = {
        "hosts/n2/tls/ray.pem",
        "hosts/n2/secrets/ray.key",
        *(f"hosts/n{n}/{file}" for n in (1, 2, 3) for file in bound_to_the_release),
    }
    assert changed == renewed
    assert json.loads((folder / "node.json").read_bytes())["release"] == "demo-2-0123456789ab"


def chain(
    *, names: tuple[str, ...] = ("ai.lab.example",), at: datetime = NOW
) -> tuple[bytes, bytes]:
    """Leaf and root of a hospital, and the leaf's key."""
    authority = site_ca.make_authority("Hospital root", at)
    leaf, key = site_ca.issue(Leaf("gateway", names, (), (SERVER,)), authority, at)
    pem = b"".join(map(site_ca.certificate_pem, (leaf, authority[0])))
    return pem, site_ca.key_pem(key)


def test_the_hospitals_certificate_is_used_and_its_root_is_what_callers_trust(
    tmp_path: Path, place: SitePlace
) -> None:
    pem, key = chain()
    for name, data in (("chain.pem", pem), ("key.pem", key)):
        (tmp_path / name).write_bytes(data)
    certificate = {"chain": str(tmp_path / "chain.pem"), "key": str(tmp_path / "key.pem")}
    gateway = {"networks": ["admin"], "names": ["ai.lab.example"], "certificate": certificate}
    site = site_of(tmp_path, gateway=gateway)
    issue(site, place, "demo-1-0123456789ab")
    before = everything(place)
    issue(site, place, "demo-1-0123456789ab")
    assert everything(place) == before
    tls = place.host("n1") / "gateway/tls"
    assert verified(tls / "ca.pem", tls / "gateway.pem", "-verify_hostname", "ai.lab.example")
    assert (place.host("n1") / "gateway/secrets/gateway.key").read_bytes() == key
    (tmp_path / "key.pem").write_bytes(chain()[1])
    with pytest.raises(GatewayCertificateUnfit):
        issue(site, place, "demo-1-0123456789ab")
    assert everything(place) == before


def test_a_chain_that_callers_would_refuse_is_refused_first() -> None:
    pem, key = chain()
    root = x509.load_pem_x509_certificates(pem)[1]
    foreign = site_ca.certificate_pem(site_ca.make_authority("Hospital root", NOW)[0])
    leaf = pem[: len(pem) - len(site_ca.certificate_pem(root))]
    good = ("ai.lab.example",)
    check_chain(pem, key, good, (), NOW)
    star, star_key = chain(names=("*.lab.example",))
    check_chain(star, star_key, good, (), NOW)
    old = chain(at=NOW - timedelta(days=400))
    cases: list[tuple[bytes, bytes, tuple[str, ...], tuple[str, ...], str]] = [
        (b"", key, good, (), "not a file of PEM"),
        (pem, b"x", good, (), "not a PEM private key"),
        (pem, chain()[1], good, (), "does not belong"),
        (leaf, key, good, (), "is no root"),
        (leaf + foreign, key, good, (), "was not issued by"),
        (*old, good, (), "not today"),
        (pem, key, (*good, "other.example"), (), "not for other.example"),
        (star, star_key, ("a.ai.lab.example",), (), "is not for a.ai"),
        (pem, key, (), ("198.18.0.11",), "not for 198.18.0.11"),
    ]
    for given, its_key, names, addresses, reason in cases:
        with pytest.raises(ChainUnfit, match=reason):
            check_chain(given, its_key, names, addresses, NOW)
