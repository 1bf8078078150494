"""From probe results to an answer. Pure, but for :func:`no_way_out_here`.

``open`` if anything was reached or a place was not sealed; else ``inconclusive`` if a place's
control failed, a probe's end is unclear, a place has no results or none was asked; else ``closed``.
Evidence of a way out is never outweighed by a failed control.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, cast, get_args

from appliance.egress import live
from appliance.egress.probe import Outcome, ProbeResult, control_listener, probe_all

Answer = Literal["closed", "open", "inconclusive"]

_OPEN = {"reached", "not-sealed"}
_CONTROLS = {"control-ok", "control-failed"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where probes were made (``gateway``, ``serve-replica``, ``ray-task``, ``ray-job``)."""

    name: str
    answer: Answer
    results: tuple[ProbeResult, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer over all places."""

    answer: Answer
    places: tuple[Place, ...]

    def as_json(self) -> dict[str, object]:
        """For the admin API, ``--json`` and the evidence pack."""
        return asdict(self)


def judge(results: Mapping[str, Iterable[ProbeResult]]) -> Verdict:
    """The verdict over the results of each place, by the place's name."""
    places = tuple(
        Place(name, _answer(tuple(found)), tuple(found))
        for name, found in ((name, tuple(found)) for name, found in results.items())
    )
    answers = {place.answer for place in places}
    if "open" in answers:
        return Verdict("open", places)
    return Verdict("closed" if answers == {"closed"} else "inconclusive", places)


def _answer(results: tuple[ProbeResult, ...]) -> Answer:
    outcomes = [result.outcome for result in results]
    if _OPEN & set(outcomes):
        return "open"
    attempts = [outcome for outcome in outcomes if outcome not in _CONTROLS]
    controls = [outcome for outcome in outcomes if outcome in _CONTROLS]
    proven = controls and all(outcome == "control-ok" for outcome in controls)
    blocked = attempts and all(outcome == "blocked" for outcome in attempts)
    return "closed" if proven and blocked else "inconclusive"


def no_way_out_here() -> bool:
    """Whether this process has no way out, as it can tell itself.

    In a namespace of its own: that there is loopback only, and no route. Under a host's firewall
    (``SOVCTL_SEAL``): that every attempt to send was refused, while the control answered.
    """
    if os.environ.get("SOVCTL_SEAL") != "firewall":
        return live.observe("self").no_way_out
    with control_listener() as listener:
        return _answer(tuple(probe_all(listener))) == "closed"


def results_from_json(value: object) -> tuple[ProbeResult, ...]:
    """Results that another process sent. Raises :class:`ValueError` if they are not results."""
    if not isinstance(value, list):
        raise ValueError("probe results are a list")
    return tuple(_result(item) for item in value)


def _result(item: object) -> ProbeResult:
    names = ("probe", "target", "outcome", "detail")
    if not isinstance(item, dict) or not all(isinstance(item.get(name), str) for name in names):
        raise ValueError("a probe result has probe, target, outcome and detail")
    if item["outcome"] not in get_args(Outcome):
        raise ValueError(f"unknown outcome {item['outcome']!r}")
    return ProbeResult(
        item["probe"], item["target"], cast("Outcome", item["outcome"]), item["detail"]
    )
