"""The bundle's bytes: one encoding, readable by other tools, and not one free bit."""

from __future__ import annotations

import random
import subprocess
import tarfile
from pathlib import Path

import pytest
import rfc8785
from bundle_samples import FILES, SBOM, Supplier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from appliance.bundle.format import ALIGNMENT, BLOCK, Place, header_of, place, ustar_header
from appliance.bundle.load import judge, verify
from appliance.bundle.reader import BundleReader
from appliance.errors import (
    ApplianceError,
    BundleTampered,
    BundleTooNew,
    BundleTruncated,
    BundleUnsigned,
    BundleUntrusted,
    NotABundle,
)
from appliance.manifests.bundle import Artefact, BlobRef, BundleManifest, Platform, check_path
from appliance.progress import Silent

DIGEST = "sha256:" + "a" * 64


@pytest.fixture(scope="module")
def supplier(tmp_path_factory: pytest.TempPathFactory) -> Supplier:
    return Supplier.at(tmp_path_factory.mktemp("supplier"))


@pytest.fixture(scope="module")
def bundle(supplier: Supplier) -> Path:
    return supplier.write(supplier.content())


def test_other_tools_read_it(bundle: Path) -> None:
    listed = subprocess.run(["tar", "-tf", bundle], check=True, capture_output=True, text=True)
    with tarfile.open(bundle) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == listed.stdout.split()
        blobs = [m for m in members if m.name.startswith("blobs/")]
        assert {m.offset_data % ALIGNMENT for m in blobs} == {0}
        assert {tar.extractfile(m).read() for m in blobs} == set(FILES.values())  # type: ignore[union-attr]


def test_same_content_same_bytes(supplier: Supplier, bundle: Path) -> None:
    assert supplier.write(supplier.content(), "again.tar").read_bytes() == bundle.read_bytes()


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    files=st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=8).map(lambda s: s + ".x"),
        st.binary(max_size=9000),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_written_is_read(supplier: Supplier, files: dict[str, bytes]) -> None:
    content = supplier.content(files)
    path = supplier.write(content, "round-trip.tar")
    with BundleReader(path) as reader:
        judged, _verified = judge(reader, supplier.verifier())
        assert judged.manifest == content.manifest
        assert judged.sbom == SBOM
        for member in reader.layout.blobs:
            assert member.data % ALIGNMENT == 0
            assert reader.read(member.data, member.size) in files.values()
    verify(path, supplier.verifier(), Silent())


@given(
    offset=st.integers(0, 2**40).map(lambda n: n * BLOCK),
    size=st.one_of(st.integers(0, 2**53 - 1), st.integers(8**11 - 2, 8**11 + 2)),
)
def test_any_header_is_a_valid_aligned_tar_header(offset: int, size: int) -> None:
    blob = BlobRef(path="p", digest=DIGEST, size=size)
    first = place([], [blob]).blobs[0]
    length = -(offset + 2 * BLOCK) % ALIGNMENT or ALIGNMENT
    member = Place(first.name, size, offset, offset + 2 * BLOCK + length)
    header = header_of(member)
    assert len(header) == member.data - member.header
    pax, body = tarfile.TarInfo.frombuf(header[:BLOCK], "ascii", "strict"), header[BLOCK:-BLOCK]
    records = dict(_pax_records(body))
    assert pax.type == b"x"
    assert pax.size == len(body)
    assert set(records) == ({"size", "comment"} if size >= 8**11 else {"comment"})
    said = tarfile.TarInfo.frombuf(header[-BLOCK:], "ascii", "strict").size
    assert int(records.get("size", said)) == size


def _pax_records(body: bytes) -> list[tuple[str, str]]:
    records = []
    while body:
        length = int(body.split(b" ", 1)[0])
        record, body = body[:length], body[length:]
        assert record.endswith(b"\n")
        key, _, value = record[:-1].split(b" ", 1)[1].decode().partition("=")
        records.append((key, value))
    return records


def _refused(path: Path, supplier: Supplier) -> ApplianceError:
    with pytest.raises(ApplianceError) as refusal:
        verify(path, supplier.verifier(), Silent())
    assert refusal.value.exit_code != 1
    return refusal.value


def _offsets(bundle: Path) -> list[int]:
    """Every bit of interest: all of the framing, and a sample of everything else."""
    with BundleReader(bundle) as reader:
        layout = reader.layout
    edges = [
        offset
        for member in (*layout.front, *layout.blobs)
        for offset in (member.header, member.header + 100, member.data - 1, member.end - 1)
    ]
    random_ones = random.Random(5).sample(range(layout.size), 150)
    end = [layout.end, layout.size - 1]
    return [*edges, *random_ones, *end]


def test_one_flipped_bit_anywhere_is_refused(supplier: Supplier, bundle: Path) -> None:
    data = bytearray(bundle.read_bytes())
    path = bundle.with_name("flipped.tar")
    chance = random.Random(7)
    for offset in _offsets(bundle):
        bit = 1 << chance.randrange(8)
        data[offset] ^= bit
        path.write_bytes(data)
        data[offset] ^= bit
        error = _refused(path, supplier)
        assert isinstance(
            error, BundleTampered | NotABundle | BundleUntrusted | BundleUnsigned | BundleTooNew
        ), (offset, error)


def test_every_truncation_is_refused(supplier: Supplier, bundle: Path) -> None:
    data = bundle.read_bytes()
    with BundleReader(bundle) as reader:
        places = [*reader.layout.front, *reader.layout.blobs]
    path = bundle.with_name("cut.tar")
    for member in places:
        for cut in (member.header, member.header + 1, member.data, member.data + member.size // 2):
            path.write_bytes(data[:cut])
            error = _refused(path, supplier)
            assert isinstance(error, BundleTruncated | NotABundle), (member, cut, error)
    path.write_bytes(data[:-1])
    assert isinstance(_refused(path, supplier), BundleTruncated)
    path.write_bytes(data + b"\0")
    assert isinstance(_refused(path, supplier), BundleTampered)


def test_what_is_not_a_bundle_says_so(supplier: Supplier, tmp_path: Path) -> None:
    for name, data in {"empty": b"", "text": b"x" * 5000, "zeros": bytes(20000)}.items():
        (tmp_path / name).write_bytes(data)
        assert isinstance(_refused(tmp_path / name, supplier), NotABundle)
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as tar:
        tar.add(tmp_path / "text", "text")
    assert isinstance(_refused(other, supplier), NotABundle)
    assert isinstance(_refused(tmp_path, supplier), NotABundle)
    assert _refused(tmp_path / "absent", supplier).code == "file-unreadable"


def test_a_bundle_without_metadata_is_unsigned(supplier: Supplier, bundle: Path) -> None:
    data = bundle.read_bytes()
    with BundleReader(bundle) as reader:
        start = next(m for m in reader.layout.front if m.name == "bundle.json").header
    (bundle.parent / "bare.tar").write_bytes(data[start:])
    assert isinstance(_refused(bundle.parent / "bare.tar", supplier), BundleUnsigned)


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/x", "a/../b", "a//b", "a/./b", "", ".", "a\\b", "a\nb", "e\u0301", "a" * 256],
)
def test_unsafe_paths_are_refused(path: str) -> None:
    with pytest.raises(ValueError):
        check_path(path)


@pytest.mark.parametrize("paths", [["a", "a"], ["Readme", "README"], ["a", "a/b"], ["x/A", "X/a"]])
def test_colliding_paths_are_refused(paths: list[str]) -> None:
    files = tuple(BlobRef(path=p, digest=DIGEST, size=1) for p in paths)
    with pytest.raises(ValidationError):
        Artefact(kind="dataset", name="d", version="1", licence="MIT", files=files)


def test_pickles_are_not_weights() -> None:
    with pytest.raises(ValidationError, match="safetensors"):
        Artefact(
            kind="model",
            name="m",
            version="1",
            licence="MIT",
            files=(BlobRef(path="pytorch_model.bin", digest=DIGEST, size=1),),
        )


def test_only_canonical_manifests_are_read(supplier: Supplier) -> None:
    data = supplier.content().manifest.canonical()
    assert BundleManifest.parse(data).canonical() == data
    for other in (b" " + data, data.replace(b'"name":"m"', b'"name":"m","name":"m"')):
        with pytest.raises(ValueError):
            BundleManifest.parse(other)


@given(st.text(st.characters(exclude_categories=["C"])), st.integers(0, 2**53 - 1))
def test_the_manifests_canonical_form_is_rfc_8785(text: str, size: int) -> None:
    files = (BlobRef(path="p", digest=DIGEST, size=size),)
    artefact = Artefact(
        kind="dataset",
        name="d",
        version="1",
        licence="MIT",
        description=text[:2000],
        files=files,
        attributes={"b": text, "B": "", "a-1": "x"},
    )
    manifest = BundleManifest(
        schema_version=1,
        name="n",
        version="1",
        created="2026-11-01T00:00:00Z",
        platform=Platform(python="3.11", system="linux", machine="x86_64"),
        artefacts=(artefact,),
    )
    assert manifest.canonical() == rfc8785.dumps(manifest.model_dump(mode="json"))
    assert BundleManifest.parse(manifest.canonical()) == manifest


def test_a_header_that_cannot_be_said_is_not_written() -> None:
    with pytest.raises(ValueError, match="ustar"):
        ustar_header("n" * 101, 1, b"0")
