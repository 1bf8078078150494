"""The ingress over real HTTP messages, around a scripted engine: no Ray, no model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import httpx
import pytest

from appliance.engines.engine import (
    AdapterUnusable,
    Capabilities,
    Delta,
    EngineFailure,
    UnknownAdapter,
)
from appliance.errors import NotRunning
from appliance.serving.adapters import AdapterPin, ServedAdapters
from appliance.serving.answers import Admission, Answers
from appliance.serving.app import build_app

KEY = b"gateway-key"
DIGEST = "sha256:" + "0" * 64
PARROT_CAN = Capabilities(64, 2, adapters=True)


@dataclass
class Parrot:
    """An engine that says the prompt's words back, one a delta; a token is a character."""

    capabilities: Capabilities = PARROT_CAN
    loaded: set[str] = field(default_factory=set)
    asked: list[object] = field(default_factory=list)
    running: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    fail_after: int | None = None

    @property
    def adapters(self):
        return sorted(self.loaded)

    def encode_chat(self, messages):
        return self.encode_text(" ".join(m.content for m in messages))

    def encode_text(self, text):
        return tuple(map(ord, text))

    async def generate(self, request):
        self.asked.append(request)
        self.running += 1
        try:
            words = "".join(map(chr, request.prompt_token_ids)).split()
            for index, word in enumerate(words):
                if index == self.fail_after:
                    raise EngineFailure("broken")
                await self.gate.wait()
                last = index == len(words) - 1
                yield Delta(word, 1, "stop" if last else None)
        finally:
            self.running -= 1

    async def load_adapter(self, name, path):
        if not path.exists():
            raise AdapterUnusable("it is not there")
        self.loaded.add(name)

    async def unload_adapter(self, name):
        if name not in self.loaded:
            raise UnknownAdapter(name)
        self.loaded.remove(name)

    def check(self):
        pass

    async def close(self):
        pass


async def until(holds):
    """Give the other tasks of the loop their turns, for at most a minute."""
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


def refuse_retired(pin):
    if pin.name == "retired":
        raise NotRunning(home="x", reason="retired")


@pytest.fixture
def engine():
    engine = Parrot()
    engine.gate.set()
    return engine


@pytest.fixture
def served(engine, tmp_path):
    return ServedAdapters(engine, refuse_retired, tmp_path / "run" / "loaded-adapters.json")


@pytest.fixture
async def client(engine, served):
    app = build_app(Answers(engine, "base", Admission(2)), served, KEY, created=1, release="demo")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://serve",
        headers={"X-Appliance-Gateway": KEY.decode()},
    ) as client:
        yield client


def chat(text="hello there", **fields):
    return {"model": "base", "messages": [{"role": "user", "content": text}]} | fields


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("key", ["", "gateway-kez", "gateway-key2"])
async def test_only_the_gateway_may_ask(client, key):
    for path in ("/v1/models", "/internal/state"):
        response = await client.get(path, headers={"X-Appliance-Gateway": key})
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "gateway_only"


async def test_a_whole_answer(client):
    response = await client.post("/v1/chat/completions", json=chat())
    body = response.json()
    assert body["choices"][0]["message"]["content"] == "hellothere"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}


async def test_a_streamed_answer_with_its_usage_last(client):
    options = {"include_usage": True}
    response = await client.post(
        "/v1/chat/completions", json=chat(stream=True, stream_options=options)
    )
    assert response.headers["content-type"] == "text/event-stream"
    *chunks, usage = events(response)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "hello"}
    assert chunks[1]["choices"][0]["delta"] == {"content": "there"}
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 13


async def test_a_streamed_text_answer(client):
    body = {"model": "base", "prompt": "a b", "stream": True}
    chunks = events(await client.post("/v1/completions", json=body))
    assert "".join(c["choices"][0]["text"] for c in chunks) == "ab"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_the_context_bounds_prompt_and_answer_together(client, engine):
    for body in (chat("x" * 64), chat("x" * 60, max_tokens=5)):
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
    assert not engine.asked
    await client.post("/v1/chat/completions", json=chat("x" * 60))
    assert engine.asked[0].sampling.max_tokens == 4


@pytest.mark.parametrize("model", ["other", "base:nobody", "base:", "other:icd"])
async def test_a_model_that_is_not_here(client, model):
    response = await client.post("/v1/chat/completions", json=chat(model=model))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


async def test_a_full_queue_says_when_to_come_back_and_empties(client, engine):
    engine.gate.clear()
    waiting = [
        asyncio.ensure_future(client.post("/v1/chat/completions", json=chat())) for _ in range(2)
    ]
    await until(lambda: engine.running == 2)
    refused = await client.post("/v1/chat/completions", json=chat(stream=True))
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    engine.gate.set()
    assert [r.status_code for r in await asyncio.gather(*waiting)] == [200, 200]
    assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200


async def test_a_caller_who_leaves_frees_the_engine_and_the_place(client, engine):
    engine.gate.clear()
    for stream in (False, True):
        leaving = asyncio.ensure_future(
            client.post("/v1/chat/completions", json=chat(stream=stream))
        )
        await until(lambda: engine.running == 1)
        leaving.cancel()
        await until(lambda: engine.running == 0)
    assert (await client.get("/internal/state")).json()["requests"] == 0


async def test_an_engine_that_breaks_is_a_503_or_the_streams_last_event(client, engine):
    engine.fail_after = 0
    for stream in (False, True):
        response = await client.post("/v1/chat/completions", json=chat(stream=stream))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_failed")
    engine.fail_after = 1
    response = await client.post("/v1/chat/completions", json=chat(stream=True))
    assert "engine_failed" in response.text
    assert "[DONE]" not in response.text


async def test_an_adapter_is_loaded_served_remembered_and_unloaded(
    client, engine, served, tmp_path
):
    pin = {"path": str(tmp_path), "digest": DIGEST}
    assert (await client.post("/internal/adapters/icd", json=pin)).status_code == 204
    ids = [m["id"] for m in (await client.get("/v1/models")).json()["data"]]
    assert ids == ["base", "base:icd"]
    assert (await client.get("/v1/models/base:icd")).json()["id"] == "base:icd"
    assert (await client.get("/v1/models/base:law")).status_code == 404
    await client.post("/v1/chat/completions", json=chat(model="base:icd"))
    assert engine.asked[0].adapter == "icd"

    reborn = ServedAdapters(Parrot(), refuse_retired, served.file)
    await reborn.restore()
    assert reborn.engine.adapters == ["icd"]

    assert (await client.delete("/internal/adapters/icd")).status_code == 204
    assert (await client.delete("/internal/adapters/icd")).status_code == 404
    reborn = ServedAdapters(Parrot(), refuse_retired, served.file)
    await reborn.restore()
    assert reborn.engine.adapters == []


async def test_an_adapter_that_fails_verification_is_refused_also_after_a_restart(
    client, engine, tmp_path
):
    pin = {"path": str(tmp_path), "digest": DIGEST}
    response = await client.post("/internal/adapters/retired", json=pin)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "not-running")
    assert engine.adapters == []

    file = tmp_path / "loaded-adapters.json"
    pins = [AdapterPin(name=n, path=tmp_path, digest=DIGEST) for n in ("retired", "icd")]
    file.write_text(json.dumps({"adapters": [p.model_dump(mode="json") for p in pins]}))
    reborn = ServedAdapters(Parrot(), refuse_retired, file)
    await reborn.restore()
    assert reborn.engine.adapters == ["icd"]


@pytest.mark.parametrize(
    ("name", "change", "status"),
    [
        ("icd", {"path": "/nowhere"}, 409),
        ("icd", {"digest": "sha256:xyz"}, 400),
        ("I C D", {}, 400),
        ("icd", {"more": 1}, 400),
    ],
)
async def test_a_load_that_makes_no_sense(client, tmp_path, name, change, status):
    pin = {"path": str(tmp_path), "digest": DIGEST} | change
    assert (await client.post(f"/internal/adapters/{name}", json=pin)).status_code == status


async def test_paths_that_are_not_here(client):
    assert (await client.get("/v1/nothing")).json()["error"]["code"] == "unknown_url"
    assert (await client.get("/v1/completions")).json()["error"]["code"] == "method_not_allowed"
