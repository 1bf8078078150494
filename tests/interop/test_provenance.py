"""Our provenance under other people's software: in-toto's own classes, securesystemslib's DSSE."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from tuf.api.metadata import Metadata, Root, Targets

from appliance.bundle.build import build
from appliance.bundle.cache import BuildCache
from appliance.bundle.format import PROVENANCE
from appliance.bundle.reader import BundleReader
from appliance.progress import Silent
from appliance.trust.repository import Repository, Threshold

RECIPE = """
name: tiny
version: 1.0.0
platform: {python: "3.11", system: linux, machine: x86_64}
artefacts:
  - kind: dataset
    name: rows
    version: "1"
    licence: CC0-1.0
    source: {type: path, path: rows.jsonl}
"""


@pytest.fixture
def bundle(tmp_path: Path) -> BundleReader:
    (tmp_path / "bundle.yaml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    repository = Repository.create_demo(tmp_path / "keys", Threshold(1, 1))
    cache = BuildCache(tmp_path / "cache")
    out = tmp_path / "tiny.tar"
    build(tmp_path / "bundle.yaml", repository, out, cache, Silent())
    return BundleReader(out)


def test_in_toto_reads_the_statement_and_finds_nothing_missing(bundle: BundleReader) -> None:
    payload = Envelope.from_dict(json.loads(bundle.others[PROVENANCE])).payload
    document = json.loads(payload)
    statement = Statement.copy_from_pb(ParseDict(document, Statement([], "", {}).pb))
    statement.validate()
    assert statement.pb.predicate_type == "https://slsa.dev/provenance/v1"
    assert statement.pb.subject[0].name == "bundle.json"
    predicate = ParseDict(document["predicate"], provenance_pb2.Provenance())
    definition = predicate.build_definition
    assert definition.build_type.startswith("tag:")
    assert definition.resolved_dependencies[0].name == "rows/path"
    assert predicate.run_details.builder.id
    assert predicate.run_details.metadata.started_on.ToJsonString() == bundle.manifest.created


def test_securesystemslib_verifies_the_envelope(bundle: BundleReader) -> None:
    root = Metadata[Root].from_bytes(bundle.metadata["1.root.json"]).signed
    keys = [root.keys[keyid] for keyid in root.roles[Targets.type].keyids]
    envelope = Envelope.from_dict(json.loads(bundle.others[PROVENANCE]))
    assert len(envelope.verify(keys, 1)) == 1
    envelope.payload = envelope.payload.replace(b"rows", b"sows")
    with pytest.raises(VerificationError):
        envelope.verify(keys, 1)
