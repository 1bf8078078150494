"""The verdict: no combination of results talks a way out away."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.egress.probe import Outcome, ProbeResult, dns_query
from appliance.egress.verdict import judge, results_from_json

OUTCOMES = get_args(Outcome)
results = st.builds(
    ProbeResult, st.just("tcp"), st.just("192.0.2.1"), st.sampled_from(OUTCOMES), st.text()
)
places = st.dictionaries(st.text(min_size=1, max_size=8), st.lists(results, max_size=5), max_size=4)


def outcomes(*names: Outcome) -> list[ProbeResult]:
    return [ProbeResult("tcp", "192.0.2.1", name, "") for name in names]


@given(places)
def test_anything_reached_is_open_and_closed_needs_everything(
    found: dict[str, list[ProbeResult]],
) -> None:
    answer = judge(found).answer
    seen = {result.outcome for results in found.values() for result in results}
    assert (answer == "open") == bool(seen & {"reached", "not-sealed"})
    if answer == "closed":
        assert seen == {"blocked", "control-ok"}
        assert all(
            {"blocked", "control-ok"} <= {result.outcome for result in results}
            for results in found.values()
        )


@pytest.mark.parametrize(
    ("found", "answer"),
    [
        ({"a": outcomes("blocked", "control-ok")}, "closed"),
        ({"a": outcomes("blocked", "control-failed")}, "inconclusive"),
        ({"a": outcomes("blocked")}, "inconclusive"),
        ({"a": outcomes("control-ok")}, "inconclusive"),
        ({"a": outcomes("blocked", "control-ok"), "b": []}, "inconclusive"),
        ({"a": outcomes("blocked", "control-ok", "unclear")}, "inconclusive"),
        ({"a": outcomes("reached", "control-failed")}, "open"),
        ({}, "inconclusive"),
    ],
)
def test_cases(found: dict[str, list[ProbeResult]], answer: str) -> None:
    assert judge(found).answer == answer


@given(st.lists(results, max_size=5))
def test_results_survive_the_wire(found: list[ProbeResult]) -> None:
    verdict = judge({"place": found}).as_json()
    sent = json.loads(json.dumps(verdict))["places"][0]["results"]
    assert results_from_json(sent) == tuple(found)


@given(st.recursive(st.none() | st.text() | st.integers(), st.lists))
def test_junk_on_the_wire_is_refused_by_name(junk: object) -> None:
    if junk != []:
        with pytest.raises(ValueError, match="probe"):
            results_from_json(junk)


def test_dns_query_is_rfc_1035() -> None:
    packet = dns_query("probe.invalid")
    assert packet[4:12] == b"\0\1\0\0\0\0\0\0"
    assert packet[12:] == b"\5probe\7invalid\0\0\1\0\1"
