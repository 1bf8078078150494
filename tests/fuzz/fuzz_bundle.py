"""Fuzz what reads a bundle: reader, TUF metadata, statements, model signatures, manifest.

    python tests/fuzz/fuzz_bundle.py -max_total_time=60 [-runs=N] [CORPUS …]

The options are libFuzzer's. An input's first byte picks a target, the rest is its food. Only a
refusal an operator could be shown may come out of a target; anything else is a finding, and
libFuzzer writes the input to ``crash-…``. Seeds are made by code, with real keys.

Half of the mutations know the structure: a tar gets one member's *content* changed, its headers put
right; a JSON text one of its values, and stays canonical; and what must be signed is signed
inside the target. So the fuzzer gets past form and signatures. Another parser is one more function
in ``TARGETS``.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris
import rfc8785
from securesystemslib.exceptions import Error as UnserialisableError
from securesystemslib.formats import encode_canonical

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

with atheris.instrument_imports(include=["appliance", "tuf", "securesystemslib"]):
    from appliance.bundle.format import (
        BLOCK,
        END,
        metadata_members,
        padding,
        read_header,
        ustar_header,
    )
    from appliance.bundle.load import load, verify
    from appliance.bundle.opening import Opening
    from appliance.bundle.reader import BundleReader
    from appliance.bundle.split import split
    from appliance.errors import ApplianceError, InternalError
    from appliance.manifests.bundle import BundleManifest
    from appliance.progress import Silent
    from appliance.store.blobs import Store
    from appliance.trust import model_signature, statement
    from appliance.trust.keys import open_signer
    from appliance.trust.repository import Repository, Threshold

from bundle_samples import Supplier, artefacts_of  # noqa: E402 - after ``appliance`` was instrumented

_FAST = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-bundle-", dir=_FAST))


class Bench:
    """One supplier, one good bundle and the file inputs are put into."""

    def __init__(self, folder: Path) -> None:
        repository = Repository.create_demo(folder / "keys", Threshold(1, 1))
        supplier = Supplier(folder, repository)
        content = supplier.content({"a.safetensors": b"weights" * 9, "empty": b""})
        self.folder = folder
        self.repository = repository
        self.verifier = supplier.verifier()
        self.good = supplier.write(content).read_bytes()
        self.manifest = content.manifest.canonical()
        self.signature = content.signatures["m"]
        self.metadata = dict(content.metadata)
        self.members = {k: v for k, v in content.members().items() if not k.startswith("metadata/")}
        self.model = {f.path: f.hex for f in content.manifest.artefacts[0].files}
        names = {"1.root.json": "root-1"}
        self.signers = {
            name: open_signer(str(folder / f"keys/keys/{names.get(name, name[:-5])}.pem"), bytes)
            for name in self.metadata
        }
        targets_key = self.signers["targets.json"]
        self.keys = {targets_key.public_key.keyid: targets_key.public_key}
        self.statement = statement.sign(b'{"of":"m"}', statement.IN_TOTO, [targets_key])
        self.file = folder / "input.tar"
        self.store = Store(folder / "store")
        (folder / "parts").mkdir()
        whole = folder / "good.tar"
        whole.write_bytes(self.good)
        first, *_others = split(whole, 4096 * 6, folder / "parts", repository, Silent()).paths
        self.part = first.read_bytes()
        first.unlink()  # so that nothing but the input can be the first part
        self.opening = Opening(parts=(folder / "parts",))


BENCH = Bench(FOLDER)


def good_manifest() -> BundleManifest:
    """That of the good bundle."""
    return BundleManifest.parse(BENCH.manifest)


def whole_file(data: bytes) -> None:
    """A file of any bytes."""
    BENCH.file.write_bytes(data)
    with BundleReader(BENCH.file) as bundle:
        for blob in bundle.layout.blobs[:20]:
            bundle.check_header(blob)
            bundle.check_padding(blob)
    # Not ``load``: of a blob that is in the store already, it reads the frame and not the data.
    verify(BENCH.file, BENCH.verifier, Silent())
    assert data == BENCH.good, "other bytes than the signed ones were taken"


def signed_manifest(data: bytes) -> None:
    """A ``bundle.json`` of any bytes by a supplier whose keys are trusted."""
    members = {"bundle.json": data, "sbom.cdx.json": b"{}"}
    metadata = BENCH.repository.sign("sample", members, artefacts=artefacts_of(data))
    BENCH.file.write_bytes(_front({**metadata_members(metadata), **members}) + END)
    load(BENCH.file, BENCH.store, BENCH.verifier, Silent())


def manifest(data: bytes) -> None:
    """``bundle.json`` alone: what is accepted is canonical and stays below its folder."""
    parsed = BundleManifest.parse(data)
    assert parsed.canonical() == data
    for artefact in parsed.artefacts:
        for file in artefact.files:
            path = os.path.normpath(f"/base/{artefact.folder}/{file.path}")
            assert path == f"/base/{artefact.folder}/{file.path}"


def metadata(data: bytes) -> None:
    """One TUF file of any bytes; the first byte picks it."""
    names = sorted(BENCH.metadata)
    name = names[data[0] % len(names)] if data else names[0]
    files = {**BENCH.metadata, name: data[1:]}
    BENCH.verifier.verify("fuzz", files, BENCH.members, good_manifest)
    assert data[1:] == BENCH.metadata[name], "other metadata than the signed was taken"


def signed_metadata(data: bytes) -> None:
    """One TUF file that says anything, signed with the real key; the first byte picks it."""
    names = sorted(BENCH.metadata)
    name = names[data[0] % len(names)] if data else names[0]
    try:
        signed = json.loads(data[1:])
        payload = encode_canonical(signed).encode()
        signer = BENCH.signers[name]
        signature = {"keyid": signer.public_key.keyid, "sig": signer.sign(payload).signature}
        whole = rfc8785.dumps({"signatures": [signature], "signed": signed})
    except (ValueError, RecursionError, UnserialisableError, rfc8785.CanonicalizationError):
        return  # nothing to sign
    BENCH.verifier.verify("fuzz", {**BENCH.metadata, name: whole}, BENCH.members, good_manifest)


def dsse_statement(data: bytes) -> None:
    """A statement beside TUF."""
    statement.verify(data, statement.IN_TOTO, BENCH.keys, 1)
    assert data == BENCH.statement, "another statement than the signed one was taken"


def part(data: bytes) -> None:
    """The first of two parts, of any bytes; the second is good."""
    BENCH.file.write_bytes(data)
    verify(BENCH.file, BENCH.verifier, Silent(), BENCH.opening)
    known = (BENCH.part, BENCH.good)
    assert data in known, "another part than the signed one was taken"


def oms(data: bytes) -> None:
    """A model signature. (Its JSON may be written in more than one way; see ``trust``.)"""
    key = model_signature_key()
    assert model_signature.verify(data, BENCH.model, key) == "m"


def model_signature_key() -> bytes:
    """The public key models are signed with."""
    from appliance.trust.keys import public_pem

    return public_pem(BENCH.repository.model_key())


TARGETS: tuple[tuple[Callable[[bytes], None], type[Exception]], ...] = (
    (whole_file, ApplianceError),
    (signed_manifest, ApplianceError),
    (manifest, ValueError),
    (metadata, ApplianceError),
    (signed_metadata, ApplianceError),
    (dsse_statement, ValueError),
    (part, ApplianceError),
    (oms, ValueError),
)
"""Each with the one kind of exception that is a refusal."""


def seeds() -> list[bytes]:
    """Good inputs for each target, so that the fuzzer starts inside."""
    files = sorted(BENCH.metadata.items())
    food: dict[Callable[[bytes], None], list[bytes]] = {
        whole_file: [BENCH.good],
        signed_manifest: [BENCH.manifest],
        manifest: [BENCH.manifest],
        metadata: [bytes([n]) + data for n, (_name, data) in enumerate(files)],
        signed_metadata: [
            bytes([n]) + rfc8785.dumps(json.loads(data)["signed"])
            for n, (_name, data) in enumerate(files)
        ],
        dsse_statement: [BENCH.statement],
        part: [BENCH.part],
        oms: [BENCH.signature],
    }
    order = [target for target, _refusal in TARGETS]
    return [bytes([order.index(t)]) + data for t in order for data in food[t]]


def test_one_input(data: bytes) -> None:
    """libFuzzer's entry: refusals are what is wanted, everything else is a finding."""
    if not data:
        return
    target, refusal = TARGETS[data[0] % len(TARGETS)]
    try:
        target(data[1:])
    except refusal as error:
        if isinstance(error, InternalError):
            raise


HOSTILE = (
    None, True, 0, -1, 2**53, 1.5, "", "..", "../x", "/x", "a\0", "\x1b[2J", "\ud800", "x" * 300,
    [], {}, [[]], {"": {}}, "sha256:" + "0" * 64, "1.0.31", "2026-11-24T00:00:00Z", "99999-01-01",
)  # fmt: skip


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Half of the time something that keeps the form, else any bytes."""
    chance = random.Random(seed)
    if data and chance.random() < 0.5:
        kept = _change_tar(data[1:], chance) if data[0] == 0 else _change_json(data[1:], chance)
        if kept is not None and len(kept) < max_size:
            return data[:1] + kept
    return data[:1] + atheris.Mutate(data[1:], max_size - 1)


def _change_tar(tar: bytes, chance: random.Random) -> bytes | None:
    """One member's content changed and its frame put right."""
    members = _members(tar)
    if not members:
        return None
    rest = tar[len(_front(members)) :]
    name = chance.choice(sorted(members))
    changed = _change_json(members[name], chance)
    members[name] = changed or atheris.Mutate(members[name], len(members[name]) + 256)
    return _front(members) + rest


def _change_json(data: bytes, chance: random.Random) -> bytes | None:
    """One value in a JSON text replaced, removed or doubled; still canonical."""
    start = data.find(b"{")
    try:
        tree = json.loads(data[start:])
        spots = list(_spots(tree))
        where, key = chance.choice(spots)
        what = chance.randrange(4)
        if what == 0:
            del where[key]
        elif what == 1 and isinstance(where, dict):
            where[chance.choice(["", "x", "../x", "path", "keys"])] = chance.choice(HOSTILE)
        elif what == 2:
            where[key] = chance.choice([other[name] for other, name in spots])
        else:
            where[key] = chance.choice(HOSTILE)
        return data[:start] + rfc8785.dumps(tree)
    except (ValueError, IndexError, RecursionError, rfc8785.CanonicalizationError):
        return None


def _spots(tree: object) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON tree: its container and its key or index there."""
    places = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in places:
        yield tree, key
        yield from _spots(value)


def _members(tar: bytes) -> dict[str, bytes]:
    """The members before the blobs, as far as they are in form."""
    members: dict[str, bytes] = {}
    offset = 0
    while True:
        try:
            name, size = read_header(tar[offset : offset + BLOCK])
        except ValueError:
            return members
        members[name] = tar[offset + BLOCK : offset + BLOCK + size]
        if len(members[name]) != size:
            return {}
        offset += BLOCK + size + padding(size)


def _front(members: dict[str, bytes]) -> bytes:
    return b"".join(
        ustar_header(name, len(data), b"0") + data + bytes(padding(len(data)))
        for name, data in members.items()
    )


def main() -> None:
    """Make the seeds and hand over to libFuzzer."""
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
        test_one_input(seed)  # the good ones must pass before the bad ones are told from them
    # A list means nothing to the fuzzer's own limit: inputs stay small, memory and time bounded.
    options = ["-max_len=65536", "-rss_limit_mb=1024", "-timeout=20"]
    atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
    atheris.Setup(
        [sys.argv[0], *options, *sys.argv[1:], str(corpus)], test_one_input, custom_mutator=mutate
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
