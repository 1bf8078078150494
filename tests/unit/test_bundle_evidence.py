"""What a bundle says about itself: its bill of materials, its licences, how it was built."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import SBOM, Supplier
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from appliance.bundle import provenance, sbom
from appliance.bundle.build import Built, beside, build
from appliance.bundle.cache import BuildCache
from appliance.bundle.format import PROVENANCE, signed_members
from appliance.bundle.load import judge, verify
from appliance.bundle.model_facts import read_model
from appliance.bundle.reader import BundleReader
from appliance.bundle.writer import BundleContent
from appliance.cli.main import main
from appliance.errors import BundleTampered, LicenceDenied
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest, Platform
from appliance.progress import Silent
from appliance.store.blobs import Store
from appliance.trust.pin import TrustState
from appliance.trust.repository import Repository, Threshold
from appliance.trust.statement import IN_TOTO
from appliance.trust.verifier import Verifier

RECIPE = """
name: tiny
version: 1.0.0
platform: {python: "3.11", system: linux, machine: x86_64}
licences:
  deny: ["GPL-*", AGPL-3.0-only]
  unknown: deny
artefacts:
  - kind: model
    name: toy
    version: "1"
    licence: Apache-2.0 AND LicenseRef-ours
    source: {type: path, path: toy}
  - kind: dataset
    name: rows
    version: "1"
    licence: MIT OR GPL-3.0-only
    source: {type: path, path: rows.jsonl}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.create_demo(tmp_path_factory.mktemp("keys"), Threshold(1, 1))


class Desk:
    """A folder with a recipe and its files."""

    def __init__(self, root: Path, repository: Repository) -> None:
        self.root = root
        self.repository = repository
        self.recipe = root / "bundle.yaml"
        self.recipe.write_text(RECIPE)
        (root / "toy").mkdir()
        (root / "toy" / "config.json").write_text('{"architectures": ["ToyForCausalLM"]}')
        (root / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')

    def build(self, name: str = "tiny.tar") -> Built:
        cache = BuildCache(self.root / "cache")
        return build(self.recipe, self.repository, self.root / name, cache, Silent())

    def verifier(self) -> Verifier:
        return Verifier(TrustState().pinned_to(self.repository.fingerprint))


@pytest.fixture
def desk(tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.setenv("SOVCTL_HOME", str(tmp_path / "home"))
    return Desk(tmp_path, repository)


# --- licences -------------------------------------------------------------------------------------


def test_a_build_is_refused_with_every_component_its_policy_forbids(desk: Desk) -> None:
    text = RECIPE.replace("Apache-2.0 AND LicenseRef-ours", "AGPL-3.0-only").replace(
        "MIT OR", "MIT AND"
    )
    desk.recipe.write_text(text)
    with pytest.raises(LicenceDenied) as refused:
        desk.build()
    assert refused.value.values["count"] == "2"
    assert refused.value.values["components"] == "rows 1 (GPL-3.0-only), toy 1 (AGPL-3.0-only)"
    assert not list(desk.root.glob("*.tar"))
    desk.recipe.write_text(
        text.replace(
            "  unknown: deny",
            "  except:\n    - {component: toy, reason: a}\n    - {component: rows==1, reason: b}",
        )
    )
    assert desk.build().path.exists()


def test_the_report_is_a_verdict_under_the_bundles_policy_or_another(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(desk.build().path)
    assert main(["bundle", "licences", bundle, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["policy"]["deny"] == ["GPL-*", "AGPL-3.0-only"]
    assert [(c["name"], c["verdict"]) for c in report["components"]] == [
        ("rows", "allowed"),
        ("toy", "allowed"),
    ]
    pinned = ["--trust", desk.repository.fingerprint.hex]
    assert main(["bundle", "licences", bundle, "--deny", "Apache-*", *pinned]) == 8
    assert "DENIED (Apache-2.0)" in capsys.readouterr().out
    assert main(["bundle", "licences", bundle, "--deny", "{}"]) == 2


# --- provenance -----------------------------------------------------------------------------------


def test_a_bundle_says_how_it_was_built_and_nothing_about_where(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    built = desk.build()
    assert main(["bundle", "provenance", str(built.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["trusted"] is False
    document = shown["statement"]
    names = [subject["name"] for subject in document["subject"]]
    assert names == ["bundle.json", "models/model-toy.json", "datasets/dataset-rows.json"]
    assert document["subject"][0]["digest"]["sha256"] == built.manifest.digest[7:]
    definition = document["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["recipe"]["name"] == "bundle.yaml"
    assert [d["name"] for d in definition["resolvedDependencies"]] == ["rows/path", "toy/path"]
    assert str(desk.root) not in json.dumps(document)
    assert main(["bundle", "provenance", str(built.path), "--trust",
                 desk.repository.fingerprint.hex]) == 0  # fmt: skip
    assert "signature trusted" in capsys.readouterr().out


def test_the_same_inputs_give_the_same_statement(
    desk: Desk, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = BundleReader(desk.build().path)
    elsewhere = BundleReader(Desk(tmp_path_factory.mktemp("other"), desk.repository).build().path)
    assert here.others[PROVENANCE] == elsewhere.others[PROVENANCE]
    assert here.sbom == elsewhere.sbom


def _resigned(supplier: Supplier, statement: bytes) -> Path:
    """A bundle whose TUF metadata covers ``statement``, as a careless signer would make it."""
    content = supplier.content()
    others = {PROVENANCE: statement}
    members = signed_members(content.manifest, SBOM, content.signatures, others)
    metadata = supplier.repository.sign("sample", members, artefacts=content.manifest.artefacts)
    return supplier.write(
        BundleContent(content.manifest, SBOM, content.signatures, metadata, others)
    )


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("another bundle", "about something else"),
        ("another signer", "unknown key"),
        ("another type", "of another kind"),
        ("not an envelope", "not a DSSE envelope"),
        ("not provenance", "not a statement of provenance"),
    ],
)
def test_a_statement_that_is_not_about_this_bundle_is_refused(
    tmp_path: Path, harm: str, says: str
) -> None:
    supplier = Supplier.at(tmp_path)
    manifest = supplier.content().manifest
    inputs = provenance.BuildInputs("bundle.yaml", "0" * 64, ())
    good = provenance.statement(manifest, inputs)
    sign, kind, payload = supplier.repository.statement, IN_TOTO, good
    if harm == "another bundle":
        other = manifest.model_copy(update={"version": "2.0"})
        payload = provenance.statement(other, inputs)
    elif harm == "another signer":
        sign = Supplier.at(tmp_path / "other").repository.statement
    elif harm == "another type":
        kind = "application/json"
    elif harm == "not provenance":
        payload = good.replace(b"slsa.dev/provenance", b"slsa.dev/something")
    signed = b"{}" if harm == "not an envelope" else sign(payload, kind)
    bundle = _resigned(supplier, signed)
    with BundleReader(bundle) as reader, pytest.raises(BundleTampered) as refused:
        judge(reader, supplier.verifier())
    assert refused.value.values["member"] == PROVENANCE
    assert says in refused.value.values["reason"]
    good_bundle = _resigned(supplier, supplier.repository.statement(good, IN_TOTO))
    assert verify(good_bundle, supplier.verifier(), Silent()).manifest == manifest


def test_a_bundle_whose_provenance_was_taken_out_is_refused(desk: Desk) -> None:
    with BundleReader(desk.build().path) as reader:
        members = {n: d for n, d in reader.members.items() if n != PROVENANCE}
        with pytest.raises(BundleTampered, match="not what was signed"):
            desk.verifier().verify("b", reader.metadata, members, lambda: reader.manifest)


# --- bill of materials ----------------------------------------------------------------------------


def _zip(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def _collection(info: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        data = json.dumps({"collection_info": info}).encode()
        member = tarfile.TarInfo("MANIFEST.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _tensors(shapes: dict[str, list[int]]) -> bytes:
    header = json.dumps({n: {"dtype": "F32", "shape": s} for n, s in shapes.items()}).encode()
    return len(header).to_bytes(8, "little") + header


DEB = "pool/x_1%3a2-3_amd64.deb"
CONFIG = b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
README = """---
license: apache-2.0
language: [en, fr]
datasets: [org/rows, {a: b}]
pipeline_tag: text-generation
base_model: org/base
---
# A model
"""


@pytest.fixture
def bill(tmp_path: Path) -> dict[str, Any]:
    """The bill of a bundle that has something of every kind."""
    store = Store(tmp_path / "store")
    where: dict[str, Path] = {}

    def artefact(kind: Any, name: str, files: dict[str, bytes], **attributes: str) -> Artefact:
        refs = []
        for path, data in files.items():
            digest = store.put(data)
            where[digest] = store.path(digest)
            refs.append(BlobRef(path=path, digest=digest, size=len(data)))
        return Artefact(
            kind=kind, name=name, version="1", licence="Apache-2.0", files=tuple(refs),
            attributes=attributes,
        )  # fmt: skip

    metadata = "Metadata-Version: 2.4\nName: Tiny_One\nVersion: 1.0\nLicense-Expression: MIT\n"
    wheel = _zip({"tiny_one-1.0.dist-info/METADATA": metadata})
    collection = _collection(
        {"namespace": "a", "name": "b", "version": "1.2.3", "license": ["GPL-3.0-or-later"]}
    )
    manifest = BundleManifest(
        schema_version=1,
        name="all",
        version="1",
        created="2026-11-01T00:00:00Z",
        platform=Platform.of_this_machine(),
        artefacts=(
            artefact(
                "model", "toy",
                {
                    "config.json": CONFIG,
                    "README.md": README.encode(),
                    "m.safetensors": _tensors({"a": [10, 20], "b": [5]}),
                },
                source="huggingface:org/toy@" + "a" * 40,
            ),
            artefact("adapter", "toy", {"adapter_config.json": b"{}"}, base_model="toy"),
            artefact("adapter", "more", {"adapter_config.json": b"[1]"}, base_model="toy"),
            artefact("dataset", "rows", {"train.jsonl": b"{}"}, source="pypi:rows==1.0"),
            artefact(
                "wheelhouse", "runtime",
                {"tiny_one-1.0-py3-none-any.whl": wheel},
            ),
            artefact("packages", "debian", {DEB: b"!<arch>\n", "Release": b""}),
            artefact("collections", "site", {"a-b-1.2.3.tar.gz": collection, "r.tar.gz": b"no"}),
        ),
    )  # fmt: skip
    text = sbom.bill_of(manifest, where).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert text == sbom.bill_of(manifest, where).decode()
    document: dict[str, Any] = json.loads(text)
    return document


def test_every_kind_has_its_components(bill: dict[str, Any]) -> None:
    components = {c["bom-ref"]: c for c in bill["components"]}
    assert components["wheel/tiny_one-1.0-py3-none-any.whl"]["purl"] == "pkg:pypi/tiny-one@1.0"
    deb = components[f"deb/{DEB}"]
    assert (deb["name"], deb["version"]) == ("x", "1:2-3")
    assert PackageURL.from_string(deb["purl"]).version == "1:2-3"
    collection = components["collection/a-b-1.2.3.tar.gz"]
    assert (collection["name"], collection["version"]) == ("a.b", "1.2.3")
    assert collection["licenses"][0]["license"]["id"] == "GPL-3.0-or-later"
    assert components["collection/r.tar.gz"]["name"] == "r"
    assert components["dataset/rows"]["hashes"][0]["alg"] == "SHA-256"
    refs = [*components, *(a["bom-ref"] for c in components.values()
                           for a in c.get("pedigree", {}).get("ancestors", []))]  # fmt: skip
    assert len(refs) == len(set(refs))


def test_a_models_card_is_filled_from_its_own_files(bill: dict[str, Any]) -> None:
    components = {c["bom-ref"]: c for c in bill["components"]}
    model = components["model/toy"]
    assert model["purl"] == "pkg:huggingface/org/toy@" + "a" * 40
    assert model["externalReferences"][0]["url"] == "https://huggingface.co/org/toy"
    assert model["pedigree"]["ancestors"][0]["name"] == "org/base"
    parameters = model["modelCard"]["modelParameters"]
    assert parameters["modelArchitecture"] == "LlamaForCausalLM"
    assert parameters["architectureFamily"] == "llama"
    assert parameters["datasets"] == [{"type": "dataset", "name": "org/rows"}]
    said = {p["name"]: p["value"] for p in model["modelCard"]["properties"]}
    assert said["sovctl:parameter-count"] == "205"
    assert said["sovctl:model-languages"] == "en, fr"


def test_what_rests_on_what_is_in_the_graph(bill: dict[str, Any]) -> None:
    graph = {d["ref"]: set(d.get("dependsOn", [])) for d in bill["dependencies"]}
    assert graph["adapter/toy"] == graph["adapter/more"] == {"model/toy"}
    assert graph["wheelhouse/runtime"] == {"wheel/tiny_one-1.0-py3-none-any.whl"}
    assert "adapter/more" in graph["bundle"]
    assert "wheel/tiny_one-1.0-py3-none-any.whl" not in graph["bundle"]


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": b"\xff\xfe", "README.md": b"---\n: [\n---\n"},
        {"config.json": b"[" * 100_000, "README.md": b"---\n" + b"[" * 20_000 + b"\n---\n"},
        {"config.json": b'{"architectures": {"a": 1}, "model_type": 5}'},
        {"README.md": b"---\ndatasets: !!python/object/apply:os.system ['false']\n---\n"},
        {"README.md": b'---\nbase_model: "a\\u0000b"\n---\n'},
        {"m.safetensors": b"\xff" * 16},
        {"m.safetensors": _tensors({"a": [2**60, 2**60]})},
        {"m.safetensors": (9).to_bytes(8, "little") + b'{"a": []}'},
    ],
)
def test_a_model_that_talks_nonsense_is_not_quoted(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    facts = read_model({name: tmp_path / name for name in files})
    assert not any(dataclasses.astuple(facts))


# --- sovctl.pyz -----------------------------------------------------------------------------------


def test_a_build_with_a_bootstrap_writes_it_and_says_so(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk.root / "bootstrap.lock").write_text("")
    project = desk.root / "project"
    (project / "appliance").mkdir(parents=True)
    (project / "appliance" / "__init__.py").write_text("")
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "appliance"\nversion = "1.0"\nlicense = "MIT"\n'
    )
    desk.recipe.write_text(RECIPE + "bootstrap: {lock: bootstrap.lock, project: project}\n")
    monkeypatch.setenv("SOVCTL_CACHE", str(desk.root / "cache"))
    out = desk.root / "made.tar"
    arguments = ["--keys", str(desk.repository.folder), "--out", str(out), "--json"]
    assert main(["bundle", "build", str(desk.recipe), *arguments]) == 0
    result = json.loads(capsys.readouterr().out)["bootstrap"]
    assert result["path"] == str(beside(out)) == str(desk.root / "made.sovctl.pyz")
    assert result["size"] == beside(out).stat().st_size
    envelope = json.loads(BundleReader(out).others[PROVENANCE])
    document = json.loads(base64.b64decode(envelope["payload"]))
    (byproduct,) = document["predicate"]["runDetails"]["byproducts"]
    assert byproduct == {"name": "sovctl.pyz", "digest": {"sha256": result["sha256"]}}
    desk.recipe.write_text(desk.recipe.read_text().replace("AGPL-3.0-only]", "MIT]"))
    with pytest.raises(LicenceDenied) as refused:
        desk.build("other.tar")
    assert refused.value.values["components"].endswith("appliance 1.0 (MIT)")
    assert not beside(desk.root / "other.tar").exists()
