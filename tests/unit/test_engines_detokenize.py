"""Text comes out whole however its tokens were cut, and never past a stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.engines.detokenize import IncrementalDetokenizer, StopStrings


def cut(data, sizes):
    """Cut bytes into tokens of the given sizes, cycling."""
    tokens, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        tokens.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return tokens


def pieces_of(vocabulary, steps):
    detokenizer = IncrementalDetokenizer(
        lambda ids: b"".join(vocabulary[i] for i in ids).decode("utf-8", errors="replace")
    )
    pieces, at = [], 0
    for step in steps:
        pieces.append(detokenizer.push(range(at, min(at + step, len(vocabulary)))))
        at += step
    pieces.append(detokenizer.push(range(at, len(vocabulary))))
    return pieces, detokenizer.flush()


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=8)


@given(st.text(), sizes, sizes)
def test_the_pieces_of_a_text_join_to_the_text(text, token_sizes, steps):
    pieces, rest = pieces_of(cut(text.encode(), token_sizes), steps)
    assert "".join(pieces) + rest == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd")), sizes)
def test_no_piece_shows_half_a_character(text, token_sizes):
    tokens = cut(text.encode(), token_sizes)
    pieces, rest = pieces_of(tokens, [1] * len(tokens))
    assert not any("\ufffd" in piece for piece in [*pieces, rest])


def test_bytes_that_are_no_text_are_not_held_back_for_ever():
    pieces, _ = pieces_of([b"\xff"] * 40, [1] * 40)
    assert "".join(pieces[:10])


short = st.text("ab<", max_size=40)


@given(short, st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3), sizes)
def test_text_ends_at_the_first_stop_string_however_it_is_cut(text, stops, step_sizes):
    machine = StopStrings(tuple(stops))
    shown = "".join(machine.push(piece) for piece in cut(text, step_sizes))
    shown += machine.flush()
    stopped = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert machine.stopped == bool(stopped)
    if not stopped:
        assert shown == text
    else:
        # Cut differently, a longer stop string that begins earlier may complete later.
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert len(shown) >= min(stopped)


def test_what_may_become_a_stop_string_waits_and_nothing_else_does():
    machine = StopStrings(("</s>",))
    assert [machine.push(t) for t in ("Hi <", "/", "b> ", "</s", "> more")] == [
        "Hi ",
        "",
        "</b> ",
        "",
        "",
    ]
    assert machine.stopped
