"""The gateway's decisions, without a network: paths, limits, back-off, group commit, usage."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ApplianceError, AuditUnavailable, RateLimited, RequestMalformed
from appliance.gateway.audit import Audit
from appliance.gateway.fine_tuning import FineTune, spec_of
from appliance.gateway.inference import Question, counts
from appliance.gateway.languages import preferred
from appliance.gateway.limits import Allowance, Backoff, Limiter
from appliance.gateway.paths import canonical, encoded
from appliance.gateway.problems import problem, status_of
from appliance.gateway.routes import ROUTES, find
from appliance.ledger.event import Event
from appliance.manifests.tuning import TuningSpec


@given(st.one_of(st.binary(max_size=64), st.text(max_size=40).map(lambda t: quote(t).encode())))
def test_a_path_is_canonical_or_refused(raw: bytes) -> None:
    try:
        path = canonical(raw)
    except RequestMalformed:
        return
    assert path.startswith("/")
    assert not {".", ".."} & set(path.split("/"))
    assert "" not in path[1:].split("/")[:-1]
    assert not set("\\%;?#\0\r\n") & set(path)
    # What is sent upstream decodes to exactly what was decided on, and is canonical itself.
    assert canonical(encoded(path).encode()) == path


@given(st.text(alphabet="ab.é:-_ ~@", min_size=1, max_size=20))
def test_ordinary_segments_pass(segment: str) -> None:
    if segment in (".", ".."):
        return
    assert canonical(f"/v1/models/{quote(segment)}".encode()) == f"/v1/models/{segment}"


def test_routes_take_one_segment_or_the_rest() -> None:
    assert find("GET", "/admin/v1/jobs/a/b") is None
    found = find("GET", "/ray/api/jobs/")
    assert found is not None
    assert found[1] == {"path": "api/jobs/"}
    assert find("HEAD", "/ray/") is not None
    assert find("PATCH", "/v1/models") is None
    assert len({(route.method, route.pattern) for route in ROUTES}) == len(ROUTES)


def test_the_bucket_refills_and_the_count_is_given_back() -> None:
    limiter = Limiter(Allowance(rate=2.0, burst=2, together=2))
    limiter.enter("k", 0.0)
    limiter.enter("k", 0.0)
    with pytest.raises(RateLimited, match="at once"):
        limiter.enter("k", 0.0)
    limiter.leave("k")
    with pytest.raises(RateLimited, match="2/s"):
        limiter.enter("k", 0.0)
    limiter.enter("k", 0.5)
    limiter.enter("other", 0.0)


def test_failed_logins_double_their_wait_and_are_forgotten() -> None:
    backoff = Backoff()
    waits = [backoff.failed("a", float(turn)) for turn in range(7)]
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert backoff.failed("a", 1000.0) == 0.25
    for number in range(3000):
        backoff.failed(str(number), 0.0)
    assert len(backoff._failures) <= 1024


async def test_events_that_wait_go_together_and_none_is_lost() -> None:
    batches: list[int] = []
    gate = threading.Event()

    def append(events: Sequence[Event]) -> None:
        gate.wait(5)
        batches.append(len(events))

    async with Audit(append) as audit:
        waiting = [asyncio.create_task(audit.record(_event(n))) for n in range(50)]
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(*waiting)
        late = asyncio.create_task(audit.record(_event(50)))
        await asyncio.sleep(0)
        late.cancel()  # the caller left; the event is recorded all the same
    assert sum(batches) == 51
    assert len(batches) <= 3


async def test_what_is_owed_is_written_first_and_service_resumes() -> None:
    written: list[str] = []
    broken = True

    def append(events: Sequence[Event]) -> None:
        if broken:
            raise OSError(28, "No space left on device")
        written.extend(event.subject["n"] for event in events)

    async with Audit(append) as audit:
        with pytest.raises(AuditUnavailable):
            await audit.record(_event(1))
        with pytest.raises(AuditUnavailable):
            audit.demand()
        broken = False
        for _turn in range(40):
            await asyncio.sleep(0.05)
            if audit.writable:
                break
        audit.demand()
        await audit.record(_event(2))
    assert written == ["1", "2"]


def _event(number: int) -> Event:
    return Event("key:a", "inference", {"n": str(number)})


def test_a_stream_is_asked_for_its_counts_without_changing_the_rest() -> None:
    content = {"model": "base", "stream": True, "messages": [{"content": "é"}]}
    question = Question.of(b"{}", dict(content))
    assert not question.wants_usage
    assert b'"include_usage": true' in question.body
    whole = Question.of(b"as it was", {"model": "base"})
    assert (whole.body, whole.wants_usage) == (b"as it was", True)
    assert Question.of(b"", {"model": {"not": "a name"}}).model == "(invalid)"
    assert Question.of(b"x", {"stream": True, "stream_options": "nonsense"}).body == b"x"


def test_counts_are_whole_numbers_only() -> None:
    assert counts({"usage": {"prompt_tokens": 1, "completion_tokens": True}}) == {
        "prompt_tokens": 1
    }
    assert counts({"usage": None}) == {}


def test_every_error_has_a_status_and_a_body() -> None:
    for kind in ApplianceError.catalogue.values():
        error = kind(**dict.fromkeys(kind.fields(), "1"))
        assert 400 <= status_of(error) < 600
        assert error.code.encode() in problem(error).body


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("fr", "fr"),
        ("de, fr;q=0.5", "fr"),
        ("en;q=0.2, fr;q=0.9", "fr"),
        ("", "en"),
        (";;q=", "en"),
    ],
)
def test_the_page_speaks_what_the_browser_asks(header: str, language: str) -> None:
    assert preferred(header) == language


def test_openais_hyperparameters_become_a_spec() -> None:
    wanted = FineTune.model_validate(
        {
            "model": "base",
            "training_file": "file-icd10cm",
            "suffix": "My Ward!",
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 8}},
            },
        }
    )
    spec = TuningSpec.model_validate(spec_of(wanted, rows=100, tag="x"))
    assert (spec.name, spec.dataset, spec.steps, spec.batch_rows) == ("my-ward", "icd10cm", 25, 8)
    plain = FineTune(model="base", training_file="icd10cm")
    assert TuningSpec.model_validate(spec_of(plain, 100, "abc")).name == "icd10cm-abc"
