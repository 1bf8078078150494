"""The embedded engine on a tiny random model: every answer as if the request were alone."""

from __future__ import annotations

import asyncio

import pytest
import torch
from engine_fixtures import make_adapter, make_model

from appliance.engines.engine import (
    GenerationRequest,
    Message,
    Sampling,
    UnknownAdapter,
)
from appliance.engines.transformers_engine import EngineSize, TransformersEngine

SIZE = EngineSize(threads=1, concurrent_requests=8, cache_tokens=2048, batch_tokens=64)
PROMPTS = ("one", "a second prompt, rather longer than the first", "three", "four is here " * 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
async def engine(folder):
    engine = TransformersEngine.open(folder, SIZE)
    yield engine
    await engine.close()


def request(engine, prompt, name, *, adapter=None, **sampling):
    settings = {"max_tokens": 24, "temperature": 0.0} | sampling
    return GenerationRequest(name, engine.encode_text(prompt), Sampling(**settings), adapter)


async def answer(engine, wanted):
    deltas = [delta async for delta in engine.generate(wanted)]
    assert [d.finish_reason is None for d in deltas] == [True] * (len(deltas) - 1) + [False]
    text = "".join(d.text for d in deltas)
    return text, sum(d.tokens for d in deltas), deltas[-1].finish_reason


async def test_concurrent_requests_equal_isolated_ones_and_the_plain_model(engine):
    wanted = [request(engine, p, f"r{i}") for i, p in enumerate(PROMPTS)]
    alone = [await answer(engine, w) for w in wanted]
    together = await asyncio.gather(*(answer(engine, w) for w in wanted))
    assert together == alone

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(engine._tokenizer.name_or_path)
    for w, (text, _, _) in zip(wanted, alone, strict=True):
        ids = torch.tensor([w.prompt_token_ids])
        plain = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        assert engine._decode(plain.tolist()) == text


async def test_base_and_adapters_in_one_batch_equal_their_isolated_runs(engine, tmp_path):
    for seed, name in enumerate(("icd", "law")):
        await engine.load_adapter(name, make_adapter(tmp_path / name, seed))
    wanted = [
        request(engine, prompt, f"{adapter}-{i}", adapter=adapter)
        for i, prompt in enumerate(PROMPTS[:2])
        for adapter in (None, "icd", "law")
    ]
    alone = [await answer(engine, w) for w in wanted]
    together = await asyncio.gather(*(answer(engine, w) for w in wanted))
    assert together == alone
    assert len({text for text, _, _ in alone[:3]}) == 3  # each adapter does change the answer

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(engine._tokenizer.name_or_path)
    tuned = PeftModel.from_pretrained(base, tmp_path / "icd")
    ids = torch.tensor([wanted[1].prompt_token_ids])
    plain = tuned.generate(input_ids=ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert engine._decode(plain.tolist()) == alone[1][0]


async def test_a_seed_gives_the_same_answer_whatever_else_runs(engine):
    seeded = {"temperature": 0.9, "top_p": 0.8, "seed": 11}
    first = await answer(engine, request(engine, "dice", "s1", **seeded))
    others = [request(engine, p, f"o{i}", temperature=1.5) for i, p in enumerate(PROMPTS)]
    again, *_ = await asyncio.gather(
        answer(engine, request(engine, "dice", "s2", **seeded)),
        *(answer(engine, o) for o in others),
    )
    different = await answer(engine, request(engine, "dice", "s3", **{**seeded, "seed": 12}))
    assert first == again != different


async def test_a_stop_string_ends_the_answer_before_it(engine):
    text, _, reason = await answer(engine, request(engine, "one", "whole"))
    assert reason == "length"
    stop = text[4:7]
    cut, tokens, reason = await answer(engine, request(engine, "one", "cut", stop=(stop,)))
    assert (cut, reason) == (text[: text.index(stop)], "stop")
    assert tokens < 24


async def test_closing_a_generation_frees_its_cache(engine):
    await answer(engine, request(engine, "warm", "warm", max_tokens=1))
    free = engine.free_cache_tokens
    stream = engine.generate(request(engine, PROMPTS[1], "left", max_tokens=400))
    await anext(stream)
    await stream.aclose()
    for _ in range(100):
        if (
            engine.free_cache_tokens == free
            and not engine._manager.batch_processor.has_pending_requests()
        ):
            break
        await asyncio.sleep(0.02)
    assert engine.free_cache_tokens == free
    assert not engine._manager.output_router.result_handlers
    assert not engine._plan._plans


async def test_unloading_an_adapter_leaves_a_running_request_alone(engine, tmp_path):
    await engine.load_adapter("icd", make_adapter(tmp_path / "icd", 3))
    wanted = request(engine, "one", "alone", adapter="icd")
    alone = await answer(engine, wanted)
    stream = engine.generate(request(engine, "one", "running", adapter="icd"))
    text = (await anext(stream)).text
    await engine.unload_adapter("icd")
    text += "".join([delta.text async for delta in stream])
    assert text == alone[0]
    with pytest.raises(UnknownAdapter):
        await answer(engine, request(engine, "one", "late", adapter="icd"))
    with pytest.raises(UnknownAdapter):
        await engine.unload_adapter("icd")


async def test_a_conversation_follows_the_models_template(engine):
    ids = engine.encode_chat([Message("user", "hi")])
    assert engine._decode(ids) == "[user]hi\n[assistant]"
