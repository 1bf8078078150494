"""Hostile bundles: by anybody who touched the file, and by a supplier whose keys are trusted.

Every one is refused with a code and the member's name, by ``inspect``, ``verify`` and ``load``, and
leaves nothing behind outside the store.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import hostile
import pytest
from hostile import Parts, artefact, canonical, file, header, manifest, member, pax, signed

from appliance.bundle.format import BLOCK
from appliance.bundle.load import judge, load, verify
from appliance.bundle.medium import FileMedium, ReadFailed
from appliance.bundle.reader import BundleReader
from appliance.errors import (
    ApplianceError,
    BundleTampered,
    BundleTooNew,
    BundleTruncated,
    BundleUntrusted,
    InternalError,
    MediumFailed,
    NotABundle,
)
from appliance.progress import Silent
from appliance.store.blobs import Store
from appliance.trust.pin import TrustState
from appliance.trust.repository import Repository, Threshold
from appliance.trust.verifier import Verifier

CHECKOUT = Path(__file__).parents[2]
NAMES = {"bundle-tampered", "bundle-truncated", "not-a-bundle", "bundle-unsigned"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository.create_demo(tmp_path_factory.mktemp("keys"), Threshold(1, 1))


@pytest.fixture(scope="module")
def parts(repository: Repository) -> Parts:
    """A good bundle, a few kilobytes."""
    return signed(repository, canonical(manifest()))


class Site:
    """Where bundles arrive: everything in the folder but the store must stay as it is."""

    def __init__(self, folder: Path, repository: Repository) -> None:
        self.folder = folder
        self.verifier = Verifier(TrustState().pinned_to(repository.fingerprint))
        self.path = folder / "b.tar"
        self.store = Store(folder / "home" / "store")

    def refusal(self, data: bytes) -> ApplianceError:
        """The error all three ways of taking it in agree on."""
        self.path.write_bytes(data)
        errors = {}
        for work in (self._judge, self._verify, self._load):
            with pytest.raises(ApplianceError) as refusal:
                work()
            errors[refusal.value.code] = refusal.value
        assert len(errors) == 1, errors
        assert not isinstance(refusal.value, InternalError)
        assert {path.name for path in self.folder.iterdir()} <= {"b.tar", "home"}
        assert not self.store.root.exists() or not [
            path for path in self.store.root.rglob("*") if path.is_file()
        ]
        return refusal.value

    def _judge(self) -> None:
        with BundleReader(self.path) as bundle:
            judge(bundle, self.verifier)
            bundle.check_end()
            for blob in bundle.layout.blobs:
                bundle.check_header(blob)
                bundle.check_padding(blob)

    def _verify(self) -> None:
        verify(self.path, self.verifier, Silent())

    def _load(self) -> None:
        load(self.path, self.store, self.verifier, Silent())


@pytest.fixture
def site(tmp_path: Path, repository: Repository) -> Site:
    return Site(tmp_path, repository)


def test_the_good_one_is_taken(site: Site, parts: Parts) -> None:
    site.path.write_bytes(parts.tar())
    assert load(site.path, site.store, site.verifier, Silent()).written == len(hostile.DATA)


# --- by anybody: tar tricks ----------------------------------------------------------------------

OUTSIDE = ["../../etc/cron.d/x", "/etc/cron.d/x", "metadata/../../x.json", "./bundle.json", "C:\\x"]
KINDS = {
    "hard link": b"1", "symbolic link": b"2", "character device": b"3", "block device": b"4",
    "folder": b"5", "pipe": b"6", "contiguous": b"7", "old file": b"\0", "GNU long name": b"L",
    "GNU long link": b"K", "GNU sparse": b"S", "GNU volume": b"V", "GNU continued": b"M",
    "Solaris extended": b"X", "global pax": b"g", "unknown": b"~",
}  # fmt: skip

STRAYS = {
    **{f"outside: {name}": member(name, b"evil") for name in OUTSIDE},
    **{f"a {what}": member("bundle.json", b"", k, link=b"/etc/x") for what, k in KINDS.items()},
    "unknown name": member("readme.txt", b"hello"),
    "case": member("BUNDLE.JSON", b"{}"),
    "again": member("metadata/1.root.json", b"{}"),
    "root 0": member("metadata/0.root.json", b"{}"),
    "root 01": member("metadata/01.root.json", b"{}"),
    "not ASCII": member("bundlé.json", b"{}"),
    "name runs on": header("bundle.json\0../x"),
    "prefix": member("bundle.json", b"{}", prefix=b"../../.."),
    "GNU magic": member("bundle.json", b"{}", magic=b"ustar  \0"),
    "v7": member("bundle.json", b"{}", magic=b""),
    "set-uid": member("bundle.json", b"{}", mode=b"0004755\0"),
    "owner": member("bundle.json", b"{}", uid=b"0000001\0"),
    "date": member("bundle.json", b"{}", mtime=b"00000000001\0"),
    "user name": member("bundle.json", b"{}", uname=b"root"),
    "base-256 size": header("bundle.json", size_field=b"\x80" + bytes(10) + b"\2"),
    "negative size": header("bundle.json", size_field=b"\xff" * 12),
    "signed size": header("bundle.json", size_field=b"-0000000001\0"),
    "size with a prefix": header("bundle.json", size_field=b"0o000000002\0"),
    "size with underlines": header("bundle.json", size_field=b"0000_000002\0"),
    "size with spaces": header("bundle.json", size_field=b"          2 "),
    "no size": header("bundle.json", size_field=b""),
    "huge size": header("bundle.json", 8**11 - 1),
    "GNU long name": member("././@LongLink", b"../" * 60 + b"\0", b"L") + member("x", b"{}"),
    **{
        f"tarfile {style}": hostile.by_tarfile(Path(), style, name="d/" * 60 + "x")
        for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    },
    "pax path": pax({"path": "../../x"}) + member("bundle.json", b"{}"),
    "pax size": pax({"size": "99999"}) + member("bundle.json", b"{}"),
    "pax link": pax({"linkpath": "/etc/passwd"}) + member("bundle.json", b"", b"2"),
    "pax sparse": pax({"GNU.sparse.major": "1", "GNU.sparse.realsize": "9"}) + member("x"),
    "pax for all": pax({"path": "../../x"}, b"g"),
    "wrong checksum": member("bundle.json", b"{}")[:148] + b"0000000\0" + bytes(356),
}  # fmt: skip


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("place", ["first", "before bundle.json", "before the blobs"])
def test_tar_tricks_are_refused(stray: str, place: str, site: Site, parts: Parts) -> None:
    data = parts.tar()
    offset = {
        "first": 0,
        "before bundle.json": _header_of(data, "bundle.json"),
        "before the blobs": _header_of(data, f"pax/{hostile.HEX}"),
    }[place]
    error = site.refusal(data[:offset] + STRAYS[stray] + data[offset:])
    assert error.code in NAMES, error
    if place != "first":
        assert error.values.get("member") or error.values.get("expected")


def _header_of(tar: bytes, name: str) -> int:
    """Where the header with that name is."""
    offset = tar.index(name.encode().ljust(100, b"\0"))
    assert offset % BLOCK == 0
    return offset


BLOB = f"blobs/sha256/{hostile.HEX}"
FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "other name": lambda tar: tar.replace(BLOB.encode(), b"blobs/sha256/../../../evil".ljust(77)),
    "link": lambda tar: _reheader(tar, BLOB, member(BLOB, b"", b"2", link=b"/etc/passwd")),
    "device": lambda tar: _reheader(tar, BLOB, member(BLOB, b"", b"3")),
    "sparse": lambda tar: _reheader(tar, BLOB, member(BLOB, b"", b"S")),
    "smaller": lambda tar: _reheader(tar, BLOB, header(BLOB, len(hostile.DATA) - 1)),
    "larger": lambda tar: _reheader(tar, BLOB, header(BLOB, len(hostile.DATA) + 1)),
    "base-256": lambda tar: _reheader(tar, BLOB, header(BLOB, size_field=b"\x80" + bytes(11))),
    "pax path": lambda tar: _repax(tar, b"path=../../../evil"),
    "pax size": lambda tar: _repax(tar, b"size=1"),
    "pax sparse": lambda tar: _repax(tar, b"GNU.sparse.size=1"),
    "global": lambda tar: _reheader(
        tar, f"pax/{hostile.HEX}", header(f"pax/{hostile.HEX}", _pax_size(tar), b"g")
    ),
}


def _reheader(tar: bytes, name: str, block: bytes) -> bytes:
    offset = _header_of(tar, name)
    return tar[:offset] + block[:BLOCK] + tar[offset + BLOCK :]


def _pax_size(tar: bytes) -> int:
    return int(tar[_header_of(tar, f"pax/{hostile.HEX}") + 124 :][:11], 8)


def _repax(tar: bytes, record: bytes) -> bytes:
    """Put a record in front of the filler, keeping every length right."""
    start, size = _header_of(tar, f"pax/{hostile.HEX}") + BLOCK, _pax_size(tar)
    first = f"{len(record) + 4} ".encode() + record + b"\n"
    rest = size - len(first)
    filler = f"{rest} comment=".encode()
    body = first + filler + b"." * (rest - len(filler) - 1) + b"\n"
    return tar[:start] + body + tar[start + size :]


@pytest.mark.parametrize("frame", FRAMES)
def test_a_blobs_header_has_one_form(frame: str, site: Site, parts: Parts) -> None:
    error = site.refusal(FRAMES[frame](parts.tar()))
    assert isinstance(error, BundleTampered)
    begins = "the header after sbom.cdx.json" if frame == "global" else BLOB  # no longer a blob's
    assert error.values["member"] == begins


def test_what_follows_the_end_is_refused(site: Site, parts: Parts) -> None:
    tar = parts.tar()
    for more in (b"\0", bytes(BLOCK), bytes(10240), member("x", b"{}"), tar):
        error = site.refusal(tar + more)
        assert isinstance(error, BundleTampered)
        assert error.values["member"] == "its end"


# --- by anybody: every byte ----------------------------------------------------------------------


def test_every_truncation_is_refused(site: Site, parts: Parts) -> None:
    """At every block of the file, one byte before and one after it."""
    tar = parts.tar()
    cuts = {block + by for block in range(0, len(tar), BLOCK) for by in (-1, 0, 1)}
    site.path.write_bytes(tar)
    with site.path.open("r+b") as opened:
        for cut in sorted(cuts - {-1}, reverse=True):
            opened.truncate(cut)
            with pytest.raises((BundleTruncated, NotABundle)) as refusal:
                site._judge()
            assert cut < BLOCK or isinstance(refusal.value, BundleTruncated), cut


def test_a_flipped_bit_in_every_byte_is_refused(site: Site, parts: Parts) -> None:
    """One random bit of each byte: names, sizes, signatures, padding, fillers, data, the end."""
    tar = parts.tar()
    chance = random.Random(8)
    site.path.write_bytes(tar)
    unjudged = _Unjudged(site)
    with site.path.open("r+b", buffering=0) as opened:
        for offset in range(len(tar)):
            flipped = bytes([tar[offset] ^ (1 << chance.randrange(8))])
            os.pwrite(opened.fileno(), flipped, offset)
            with pytest.raises(ApplianceError) as refusal:
                unjudged.take(offset)
            assert refusal.value.exit_code != 1, (offset, refusal.value)
            os.pwrite(opened.fileno(), tar[offset : offset + 1], offset)


class _Unjudged:
    """``verify`` without judging the signatures of an untouched front again for every byte."""

    def __init__(self, site: Site) -> None:
        self._site = site
        with BundleReader(site.path) as bundle:
            judge(bundle, site.verifier)
            self._layout = bundle.layout

    def take(self, offset: int) -> None:
        if offset < self._layout.front[-1].data + self._layout.front[-1].size:
            return self._site._judge()
        with BundleReader(self._site.path) as bundle:
            bundle.check_size()
            bundle.check_end()
            for blob in bundle.layout.blobs:
                bundle.check_header(blob)
                bundle.check_padding(blob)
        return self._site._verify()


# --- by anybody: bounds --------------------------------------------------------------------------


def test_a_front_without_end_is_refused(site: Site) -> None:
    """Any number of members, roots of the most bytes one may have: read up to the limit only."""
    many = b"".join(member(f"signatures/m{n:07}.oms.json") for n in range(20_000))
    error = site.refusal(many)
    assert isinstance(error, BundleTampered)
    assert error.values["member"] == "signatures/m0010000.oms.json"
    with site.path.open("wb") as sparse:
        for number in range(1, 300):
            sparse.write(header(f"metadata/{number}.root.json", 1 << 20))
            sparse.seek(1 << 20, os.SEEK_CUR)
        sparse.write(bytes(1024))
    with pytest.raises(BundleTampered) as refusal:
        BundleReader(site.path)
    assert refusal.value.values["member"] == "metadata/256.root.json"


@pytest.mark.parametrize("name", ["metadata/1.root.json", "bundle.json", "signatures/m.oms.json"])
def test_a_member_larger_than_it_may_be_is_not_read(name: str, site: Site) -> None:
    error = site.refusal(header(name, 1 << 30) + bytes(1 << 20))
    assert isinstance(error, BundleTampered)
    assert error.values["member"] == name


def test_a_read_error_in_the_front_names_what_came_before(
    site: Site, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = parts.tar()
    site.path.write_bytes(tar)
    bad = _header_of(tar, "bundle.json") + 700
    whole = FileMedium.read_into

    def failing(medium: FileMedium, buffer: memoryview, offset: int) -> None:
        if offset <= bad < offset + len(buffer):
            raise ReadFailed(bad, "Input/output error")
        whole(medium, buffer, offset)

    monkeypatch.setattr(FileMedium, "read_into", failing)
    with pytest.raises(MediumFailed) as failure:
        BundleReader(site.path)
    assert failure.value.values["member"] == "the member after metadata/platform.json"
    assert failure.value.values["offset"] == str(bad)


BOMBS: dict[str, bytes] = {
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "deep in a field": b'{"artefacts":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "10^6 fields": b"{" + b",".join(b'"%x":1' % n for n in range(1_000_000)) + b"}",
    "10^6 lists": b'{"artefacts":[' + b",".join([b"[]"] * 1_000_000) + b"]}",
    "10^7 lists": b'{"artefacts":[' + b",".join([b"[]"] * 10_000_000) + b"]}",
    "10^6 attributes": canonical(
        manifest(artefacts=[artefact(attributes={f"a{n}": "" for n in range(1_000_000)})])
    ),
    "huge number": b'{"schema_version":' + b"9" * 1_000_000 + b"}",
    "huge exponent": b'{"schema_version":1e999999999}',
    "NaN": b'{"schema_version":NaN}',
    "infinity": b'{"schema_version":-Infinity}',
    "a long text": b'{"name":"' + b"a" * (60 << 20) + b'"}',
    "a surrogate": b'{"name":"\\ud800"}',
    "not UTF-8": b'{"name":"\xff\xfe"}',
    "UTF-16": '{"name":"a"}'.encode("utf-16"),
    "a field twice": canonical(manifest()).replace(b'"name":"sample"', b'"name":"a","name":"a"'),
    "not an object": b"[]",
    "nothing": b"",
    "NUL": b"\0" * 4096,
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_json_bombs_signed_by_the_real_keys(
    bomb: str, tmp_path: Path, repository: Repository
) -> None:
    """In a child that may use 600 MiB beyond what the program itself takes."""
    path = tmp_path / "b.tar"
    path.write_bytes(signed(repository, BOMBS[bomb]).tar())
    error = _in_a_small_child(path, repository)
    assert error["code"] == "bundle-tampered"
    assert error["fields"]["member"] == "bundle.json"
    assert len(json.dumps(error)) < 10_000


def test_json_bombs_in_metadata(tmp_path: Path, repository: Repository, parts: Parts) -> None:
    for bomb in (
        "deep lists",
        "deep objects",
        "huge exponent",
        "NaN",
        "a surrogate",
        "not an object",
    ):
        for name in ("metadata/1.root.json", "metadata/timestamp.json"):
            path = tmp_path / "b.tar"
            path.write_bytes(Parts({**parts.front, name: BOMBS[bomb]}, parts.blobs).tar())
            with pytest.raises(ApplianceError) as refusal:
                verify(path, Verifier(TrustState().pinned_to(repository.fingerprint)), Silent())
            assert refusal.value.values["member"] == name, bomb


_CHILD = """
import json, resource, sys
from pathlib import Path
from appliance.bundle.load import verify
from appliance.errors import ApplianceError
from appliance.progress import Silent
from appliance.trust.fingerprint import Fingerprint
from appliance.trust.pin import TrustState
from appliance.trust.verifier import Verifier
verifier = Verifier(TrustState().pinned_to(Fingerprint.parse(sys.argv[2])))
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (600 << 20),) * 2)
try:
    verify(Path(sys.argv[1]), verifier, Silent())
except ApplianceError as error:
    print(json.dumps(error.as_json()))
"""


def _in_a_small_child(path: Path, repository: Repository) -> dict:  # type: ignore[type-arg]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, path, repository.fingerprint.hex],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)  # type: ignore[no-any-return]


# --- by a supplier whose keys are trusted --------------------------------------------------------


def _one(path: str) -> dict:  # type: ignore[type-arg]
    return manifest(artefacts=[artefact(path)])


SIGNED = {
    **{f"path {path!r}": _one(path) for path in (
        "../x", "/etc/passwd", "a/../../x", "a//b", "./a", "", ".", "..", "a/", "a\\b", "a\0b",
        "a\nb", "a\x1b[2Jb", "a\u202eb", "a\ud800", "e\u0301", "x" * 256, "x/" * 600 + "x",
    )},
    "two files of one name": manifest(artefacts=[artefact("a", "a")]),
    "case": manifest(artefacts=[artefact("README", "Readme")]),
    "case that folds": manifest(artefacts=[artefact("straße", "STRASSE")]),
    "file and folder": manifest(artefacts=[artefact("a", "b", "a/b")]),
    "file and folder, case": manifest(artefacts=[artefact("A", "a-b", "a/b")]),
    "artefact outside": manifest(artefacts=[artefact(name="..")]),
    "artefact with a slash": manifest(artefacts=[artefact(name="a/b")]),
    "artefact twice": manifest(artefacts=[artefact(), artefact()]),
    "artefact twice, case": manifest(artefacts=[artefact(name="d"), artefact(name="D")]),
    "two wheelhouses": manifest(artefacts=[artefact(kind="wheelhouse", name=n) for n in "ab"]),
    "unknown kind": manifest(artefacts=[artefact(kind="firmware")]),
    "no files": manifest(artefacts=[artefact(files=[])]),
    "pickle": manifest(artefacts=[artefact("model.bin", kind="model")]),
    "pickle, case": manifest(artefacts=[artefact("model.PKL", kind="adapter")]),
    "two sizes": manifest(artefacts=[artefact(files=[file("a"), file("b", size=1)])]),
    "negative size": manifest(artefacts=[artefact(files=[file("a", size=-1)])]),
    "size too large": manifest(artefacts=[artefact(files=[file("a", size=2**53)])]),
    "size as text": manifest(artefacts=[artefact(files=[file("a", size="1")])]),
    "size as truth": manifest(artefacts=[artefact(files=[file("a", size=True)])]),
    "digest with a path": manifest(artefacts=[artefact(files=[file("a", digest="sha256:../x")])]),
    "digest in capitals": manifest(
        artefacts=[artefact(files=[file("a", digest="sha256:" + "A" * 64)])]
    ),
    "other digest": manifest(artefacts=[artefact(files=[file("a", digest="md5:" + "0" * 32)])]),
    "unknown field": manifest(run="rm -rf /"),
    "name with a path": manifest(name="../sample"),
    "another name": manifest(name="other"),
    "version with a path": manifest(version="../../1"),
    "terminal codes": manifest(artefacts=[artefact(licence="MIT\x1b]0;evil\x07")]),
    "text that turns": manifest(artefacts=[artefact(description="\u202egnp.exe")]),
    "field that steers": {**manifest(), "\x1b[2J": 1},
    "schema as text": manifest(schema_version="1"),
    "no schema": {k: v for k, v in manifest().items() if k != "schema_version"},
}  # fmt: skip


@pytest.mark.parametrize("what", SIGNED)
def test_a_signature_does_not_excuse_a_manifest(
    what: str, site: Site, repository: Repository
) -> None:
    error = site.refusal(signed(repository, canonical(SIGNED[what])).tar())
    assert isinstance(error, BundleTampered)
    assert error.values["member"] == "bundle.json"
    assert all(c.isprintable() or c in "\n" for s in error.sentences() for c in s)


def test_a_newer_schema_says_so(site: Site, repository: Repository) -> None:
    error = site.refusal(signed(repository, canonical(manifest(schema_version=2))).tar())
    assert isinstance(error, BundleTooNew)
    assert error.values["found"] == "2"


def test_sizes_that_lie_are_refused(site: Site, repository: Repository) -> None:
    """The manifest against the tar: the same bytes cannot have two lengths."""
    for size, code in ((0, "bundle-tampered"), (1, "bundle-tampered"), (2**52, "bundle-truncated")):
        lie = manifest(artefacts=[artefact(files=[file("a", size=size)])])
        assert site.refusal(signed(repository, canonical(lie)).tar()).code == code
    for by in (-1, 1):
        lie = manifest(artefacts=[artefact(files=[file("a", size=len(hostile.DATA) + by)])])
        error = site.refusal(signed(repository, canonical(lie)).tar())
        assert error.values["member"] == BLOB


def test_blobs_and_manifest_belong_together(site: Site, repository: Repository) -> None:
    data = canonical(manifest())
    wrong = signed(repository, data, blobs={hostile.HEX: hostile.DATA[::-1]})
    site.path.write_bytes(wrong.tar())
    with pytest.raises(BundleTampered) as refusal:
        site._load()
    assert refusal.value.values["member"] == BLOB
    more = {hostile.HEX: hostile.DATA, "f" * 64: b"stowaway"}
    assert isinstance(site.refusal(signed(repository, data, blobs=more).tar()), BundleTampered)
    assert isinstance(site.refusal(signed(repository, data, blobs={}).tar()), BundleTruncated)


def test_a_signature_without_a_model_is_refused(site: Site, repository: Repository) -> None:
    name = "signatures/m.oms.json"
    others = {name: b'{"dsseEnvelope":' + b"[" * 100_000 + b"]" * 100_000 + b"}"}
    error = site.refusal(signed(repository, canonical(manifest()), others).tar())
    assert error.values["member"] == name


def test_a_model_signature_is_judged_before_it_is_unfolded(
    site: Site, repository: Repository
) -> None:
    """By a trusted supplier, and still a bomb."""
    name = "signatures/m.oms.json"
    model = canonical(manifest(artefacts=[artefact("a.safetensors", kind="model", name="m")]))
    for bomb in ("deep lists", "deep objects", "huge number", "a surrogate", "nothing", "NUL"):
        error = site.refusal(signed(repository, model, {name: BOMBS[bomb]}).tar())
        assert isinstance(error, BundleTampered)
        assert error.values["member"] == name


def test_other_keys_do_not_help(site: Site, tmp_path_factory: pytest.TempPathFactory) -> None:
    others = Repository.create_demo(tmp_path_factory.mktemp("others"), Threshold(1, 1))
    assert isinstance(site.refusal(signed(others, canonical(manifest())).tar()), BundleUntrusted)


def test_nothing_is_carried_beside_what_is_signed(site: Site, parts: Parts) -> None:
    """python-tuf keeps unknown fields around the signed part: bytes that no signature covers."""
    for name in ("metadata/1.root.json", "metadata/timestamp.json"):
        tree = json.loads(parts.front[name])
        beside = {**tree["signatures"][0], "x": "y"}
        for spoilt in ({**tree, "x": "y"}, {**tree, "signatures": [beside]}):
            front = {**parts.front, name: canonical(spoilt)}
            error = site.refusal(Parts(front, parts.blobs).tar())
            assert isinstance(error, BundleTampered)
            assert error.values["member"] == name


# --- many ----------------------------------------------------------------------------------------


def test_deep_and_many_paths_cost_little(site: Site, repository: Repository) -> None:
    """20,000 paths of 500 folders each once took gigabytes of folder names."""
    deep = "/".join("d" * 490)
    files = [file(f"{n}/{deep}") for n in range(20_000)]
    parts = signed(repository, canonical(manifest(artefacts=[artefact(files=files)])))
    site.path.write_bytes(parts.tar())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    site._judge()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10
