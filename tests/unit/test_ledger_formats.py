"""Notes, checkpoints, tiles and entries against their specifications' own examples."""

import json
from datetime import UTC, datetime

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from appliance.ledger.edge import Edge
from appliance.ledger.event import MAX_ENTRY_BYTES, Event, EventInvalid
from appliance.ledger.merkle import CompactRange, leaf_hash
from appliance.ledger.note import (
    Checkpoint,
    NoteInvalid,
    Signer,
    Verifier,
    parse_note,
    verify_checkpoint,
    verify_note,
)
from appliance.ledger.tiles import (
    Tile,
    decode_entries,
    encode_entries,
    index_path,
    tiles_of,
)

# golang.org/x/mod/sumdb/note: the package's documented example
SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
NOTE = (
    f"{TEXT}\n\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXg"
    "KvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
# c2sp.org/tlog-checkpoint: the example in the specification
CHECKPOINT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"


def test_go_notes_are_made_and_read_byte_for_byte():
    signer = Signer.parse(SIGNER)
    assert signer.export() == SIGNER
    assert str(signer.verifier) == VERIFIER == str(Verifier.parse(VERIFIER))
    assert signer.sign(TEXT) == NOTE
    assert verify_note(NOTE.encode(), [Verifier.parse(VERIFIER)]).text == TEXT


@pytest.mark.parametrize("at", range(0, len(NOTE.encode()), 7))
def test_a_changed_note_is_refused(at: int):
    note = bytearray(NOTE.encode())
    note[at] ^= 1
    with pytest.raises(NoteInvalid):
        verify_note(bytes(note), [Verifier.parse(VERIFIER)])


def test_mangled_keys_are_refused():
    for start in range(len(VERIFIER)):
        with pytest.raises(NoteInvalid):
            Verifier.parse(VERIFIER[start + 1 :])
        with pytest.raises(NoteInvalid):
            Verifier.parse(VERIFIER[:start] + chr(ord(VERIFIER[start]) + 1) + VERIFIER[start + 1 :])
    with pytest.raises(NoteInvalid, match="private"):
        Signer.parse(VERIFIER)


def test_unknown_signatures_are_ignored_and_a_bad_known_one_condemns():
    ours, witness = Signer.generate("log.example/a"), Signer.generate("witness.example/b")
    text = Checkpoint("log.example/a", 0, CompactRange().root()).text
    cosigned = (ours.sign(text) + witness.sign(text).rpartition("\n\n")[2]).encode()
    assert verify_checkpoint(cosigned, ours.verifier).size == 0
    assert len(parse_note(cosigned).signatures) == 2
    with pytest.raises(NoteInvalid, match="no trusted key"):
        verify_note(cosigned, [Signer.generate("log.example/a").verifier])
    forged = (witness.sign(text) + ours.sign("x\n").rpartition("\n\n")[2]).encode()
    with pytest.raises(NoteInvalid, match="does not verify"):
        verify_note(forged, [witness.verifier, ours.verifier])


def test_the_checkpoint_of_the_specification():
    checkpoint = Checkpoint.parse(CHECKPOINT)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.text == CHECKPOINT
    for wrong in (
        CHECKPOINT.replace("20852163", "020852163"),
        CHECKPOINT.replace("20852163", "-1"),
        CHECKPOINT.replace("20852163", "٣"),
        CHECKPOINT + "extension\n",
        CHECKPOINT.replace("q2I=", "q2J="),
    ):
        with pytest.raises(NoteInvalid):
            Checkpoint.parse(wrong)


def test_a_checkpoint_of_another_log_is_refused():
    signer = Signer.generate("log.example/a")
    other = Checkpoint("log.example/b", 0, CompactRange().root())
    with pytest.raises(NoteInvalid, match="another log"):
        verify_checkpoint(signer.sign(other.text).encode(), signer.verifier)


def test_a_signer_does_not_show_its_key():
    signer = Signer.generate("log.example/a")
    assert signer.export().rpartition("+")[2] not in repr(signer)


def test_tile_paths_are_those_of_the_specification():
    assert index_path(1234067) == "x001/x234/067"
    assert Tile(0, 0).path == "tile/0/000"
    assert Tile("entries", 1000, 5).path == "tile/entries/x001/000.p/5"
    assert Tile(63, 999).path == "tile/63/999"


def test_a_tree_of_70000_has_the_tiles_the_specification_counts():
    zero, one, two = (list(tiles_of(70_000, level)) for level in range(3))
    assert (len(zero), zero[-1]) == (274, Tile(0, 273, 112))
    assert one == [Tile(1, 0), Tile(1, 1, 17)]
    assert two == [Tile(2, 0, 1)]
    assert list(tiles_of(256, 0)) == [Tile(0, 0)]
    assert list(tiles_of(256, 1)) == [Tile(1, 0, 1)]


tiles = st.builds(
    Tile,
    st.one_of(st.just("entries"), st.integers(0, 63)),
    st.integers(0, 10**12),
    st.integers(1, 256),
)


@given(tiles)
def test_a_tile_path_reads_back(tile: Tile):
    assert Tile.parse(tile.path) == tile


@given(st.text(alphabet="tile/0123456789x.pentris", max_size=30))
def test_only_a_tiles_own_path_reads(path: str):
    tile = Tile.parse(path)
    assert tile is None or tile.path == path


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_entry_bundles_read_back(entries: list[bytes]):
    assert decode_entries(encode_entries(entries), len(entries)) == entries


@given(st.binary(max_size=200), st.integers(0, 5))
def test_any_bytes_are_a_bundle_or_a_clear_refusal(data: bytes, width: int):
    try:
        assert encode_entries(decode_entries(data, width)) == data
    except ValueError as error:
        assert "entr" in str(error)


@given(st.lists(st.integers(1, 400), max_size=6))
def test_an_edge_grown_in_batches_has_the_root_of_its_leaves(batches: list[int]):
    edge, tree, at = Edge.empty(), CompactRange(), 0
    for batch in batches:
        entries = [str(at + i).encode() for i in range(batch)]
        at += batch
        growth = edge.extend(entries)
        for entry in entries:
            tree.append(leaf_hash(entry))
        assert growth.edge.root() == tree.root()
        for tile, _data in growth.full + growth.partial:
            assert tile.within(at)
            assert not tile.within(edge.size)
        edge = growth.edge


AT = datetime(2026, 11, 24, 3, 1, 39, 123456, UTC)


def test_an_entry_has_this_one_form():
    event = Event(
        "operator:alice", "adapter.promote", {"digest": "sha256:ab", "adapter": "x"}, at=AT
    )
    assert event.encode() == (
        b'{"action":"adapter.promote","actor":"operator:alice","at":"2026-11-24T03:01:39.123456Z",'
        b'"outcome":"ok","subject":{"adapter":"x","digest":"sha256:ab"},"v":1}'
    )
    assert Event.decode(event.encode()) == event


printable = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"\\'),
    min_size=1,
    max_size=60,
)


@given(
    printable,
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_.-]{0,47}", fullmatch=True), printable, max_size=24
    ),
    st.datetimes(timezones=st.just(UTC)),
)
def test_every_entry_is_canonical_json_and_reads_back(name, subject, at):
    event = Event(f"operator:{name}", "login", subject, "refused", at)
    assert event.encode() == rfc8785.dumps(event.as_json())
    assert len(event.encode()) <= MAX_ENTRY_BYTES
    assert Event.decode(event.encode()) == event


def test_the_largest_event_fits():
    subject = {f"{i:x>48}".replace("0", "o", 1): "~" * 256 for i in range(10, 34)}
    event = Event(f"{'k' * 32}:{'~' * 128}", ".".join(["a" * 32] * 4), subject, "refused")
    assert 7800 < len(event.encode()) <= MAX_ENTRY_BYTES


@pytest.mark.parametrize(
    ("actor", "action", "subject"),
    [
        ("alice", "login", {}),
        ("operator:alice", "Login", {}),
        ("operator:alice", "login", {"prompt": "What has Mr Smith got?"}),
        ("operator:alice", "login", {"name": "José"}),
        ("operator:alice", "login", {"x": "a\nb"}),
        ("operator:alice", "login", {"x": ""}),
        ("operator:alice", "login", {"x": "a" * 257}),
        ("operator:al\nice", "login", {}),
        ("operator:alice", "login", {"a b": "c"}),
        ("operator:alice", "login", {f"k{i}": "v" for i in range(25)}),
    ],
)
def test_what_could_be_a_sentence_or_a_person_is_not_recorded(actor, action, subject):
    with pytest.raises(EventInvalid):
        Event(actor, action, subject)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    )
)
def test_any_json_is_an_event_or_is_refused(value):
    template = {
        "action": "a",
        "actor": "a:b",
        "at": value,
        "outcome": "ok",
        "subject": value,
        "v": 1,
    }
    for candidate in (value, template, {**template, "v": value}):
        with pytest.raises(EventInvalid):
            Event.decode(json.dumps(candidate).encode())
