"""What changed between two bundles, and what goes out to another site."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from bundle_samples import FILES, Supplier
from hypothesis import given
from hypothesis import strategies as st

from appliance.bundle.compare import Side, _debian, compare, packages_of, side_of
from appliance.bundle.export import export
from appliance.bundle.load import load
from appliance.bundle.reader import BundleReader
from appliance.errors import AdapterRefused, BlobMissing, BundleTampered, ExportUnknown
from appliance.install.outgoing import outgoing_adapter, outgoing_model
from appliance.layout import Home
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest, Platform
from appliance.progress import Silent
from appliance.registry import Registry
from appliance.store.blobs import Store
from appliance.store.releases import Releases
from appliance.tuning import adapters

QUIET = Silent()


@pytest.fixture(scope="module")
def supplier(tmp_path_factory: pytest.TempPathFactory) -> Supplier:
    return Supplier.at(tmp_path_factory.mktemp("supplier"))


def _side(version: str, packages: list[tuple[str, str]], licence: str = "MIT") -> Side:
    file = BlobRef(path="w", digest="sha256:" + version[0] * 64, size=10)
    model = Artefact(kind="model", name="m", version=version, licence=licence, files=(file,))
    manifest = BundleManifest(
        schema_version=1,
        name="s",
        version=version,
        created="2026-11-01T00:00:00Z",
        platform=Platform.of_this_machine(),
        artefacts=(model,),
    )
    components = [
        {"type": "library", "name": purl.rpartition("/")[2].partition("@")[0], "purl": purl,
         "licenses": [{"license": {"id": each}}]}
        for purl, each in packages
    ]  # fmt: skip
    return Side(manifest, packages_of({"components": components}))


def test_packages_models_and_licences_are_compared() -> None:
    old = _side("1", [("pkg:pypi/torch@2.9.0", "BSD"), ("pkg:pypi/gone@1", "MIT"),
                      ("pkg:deb/debian/openssl@3.0.11-1~deb12u2?arch=amd64", "Apache-2.0"),
                      ("pkg:pypi/ray@2.60.0", "Apache-2.0")])  # fmt: skip
    new = _side("2", [("pkg:pypi/torch@2.13.0", "BSD"), ("pkg:pypi/new@1", "MIT"),
                      ("pkg:deb/debian/openssl@3.0.11-1~deb12u1?arch=amd64", "Apache-2.0"),
                      ("pkg:pypi/ray@2.60.0", "GPL-2.0-only")], licence="GPL-3.0-only")  # fmt: skip
    found = compare(old, new)
    assert {(p.name, p.change) for p in found.packages} == {
        ("torch", "upgraded"), ("gone", "removed"), ("new", "added"), ("openssl", "downgraded")
    }  # fmt: skip
    torch = next(p for p in found.packages if p.name == "torch")
    assert (torch.purl_before, torch.purl_after) == (
        "pkg:pypi/torch@2.9.0", "pkg:pypi/torch@2.13.0"
    )  # fmt: skip
    assert [(c.kind, c.change) for c in found.models] == [("model", "upgraded")]
    assert {(c.name, c.after) for c in found.licences} == {
        ("model m", "GPL-3.0-only"), ("pkg:pypi/ray", "GPL-2.0-only")
    }  # fmt: skip
    assert found.new_bytes == 10
    assert compare(old, old).packages == compare(old, old).artefacts == ()


def test_an_sbom_that_is_none_is_refused(supplier: Supplier) -> None:
    bundle = supplier.write(supplier.content(), "plain.tar")
    with BundleReader(bundle) as reader:
        assert side_of(reader).packages == {}
        reader.members["sbom.cdx.json"] = json.dumps({"components": [3]}).encode()
        with pytest.raises(BundleTampered):
            side_of(reader)


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not installed")
def test_versions_sort_as_dpkg_sorts_them() -> None:
    versions = ["1.0", "1.0~rc1", "1.0-1", "1.0-1+b1", "1.0-1~bpo12+1", "1.0a", "1.0+git", "1.00",
                "1:0.1", "1.10", "1.9", "1.0.1", "3.0.11-1~deb12u2"]  # fmt: skip
    for one in versions:
        for two in versions:
            if one == two or {one, two} == {"1.0", "1.00"}:
                continue
            lower = subprocess.run(["dpkg", "--compare-versions", one, "lt", two], check=False)
            assert (_debian(one) < _debian(two)) == (lower.returncode == 0), (one, two)


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_has_a_place_in_debians_order(one: str, two: str) -> None:
    assert isinstance(_debian(one) < _debian(two), bool)


def test_a_model_goes_out_to_another_site(supplier: Supplier, tmp_path: Path) -> None:
    home, store = Home(tmp_path / "home"), Store(tmp_path / "home/store")
    loaded = load(supplier.write(supplier.content()), store, supplier.verifier(), QUIET)
    releases = Releases(home)
    releases.activate(releases.materialise(loaded.content, store, QUIET).id)
    (tmp_path / "site").mkdir()
    site = Supplier.at(tmp_path / "site")
    out = tmp_path / "out.tar"
    export(outgoing_model(home, "m"), out, site.repository, QUIET)
    other = Store(tmp_path / "other")
    arrived = load(out, other, site.verifier(), QUIET)
    assert arrived.manifest.artefacts == loaded.manifest.of_kind("model")
    release = Releases(Home(tmp_path / "elsewhere")).materialise(arrived.content, other, QUIET)
    assert (release.model("m") / "config.json").read_bytes() == FILES["config.json"]
    with pytest.raises(ExportUnknown):
        outgoing_model(home, "none")
    victim = store.path(loaded.manifest.artefacts[0].files[0].digest)
    victim.chmod(0o644)
    victim.write_bytes(b"?")
    with pytest.raises(BlobMissing):
        export(outgoing_model(home, "m"), tmp_path / "bad.tar", site.repository, QUIET)
    assert not (tmp_path / "bad.tar").exists()


def test_an_adapter_goes_out_with_card_and_signature(supplier: Supplier, tmp_path: Path) -> None:
    from test_tuning_adapters import finished_run

    home, store = Home(tmp_path / "home"), Store(tmp_path / "home/store")
    loaded = load(supplier.write(supplier.content()), store, supplier.verifier(), QUIET)
    releases = Releases(home)
    releases.activate(releases.materialise(loaded.content, store, QUIET).id)
    adapters.ensure_signing_key(home)
    with Registry.open(home) as registry:
        record = adapters.register(home, registry, finished_run(tmp_path / "run"))
    with pytest.raises(ExportUnknown, match="export-unknown"):
        outgoing_adapter(home, "icd10", None)  # its base is in no release here
    exported = outgoing_adapter(home, "icd10", "Apache-2.0")
    out = tmp_path / "out.tar"
    export(exported, out, supplier.repository, QUIET)
    arrived = load(out, Store(tmp_path / "other"), supplier.verifier(), QUIET)
    artefact = arrived.manifest.artefacts[0]
    assert {file.path for file in artefact.files} == {
        "adapter_model.safetensors", "adapter_config.json", "card.json", "adapter.oms.json"
    }  # fmt: skip
    assert artefact.attributes["adapter_digest"] == record.digest
    (Path(record.path) / "card.json").write_text("{}")
    with pytest.raises(AdapterRefused):
        outgoing_adapter(home, "icd10", "Apache-2.0")
    with pytest.raises(ExportUnknown):
        outgoing_adapter(home, "none", None)
