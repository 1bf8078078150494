"""What is refused is refused in OpenAI's shape, naming the field; what is accepted is honoured."""

from __future__ import annotations

import json

import pytest

from appliance.serving.openai import (
    ChatRequest,
    CompletionRequest,
    ModelName,
    RequestRefused,
    parse,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def read(kind, **fields):
    return parse(kind, json.dumps(fields).encode())


def test_the_fields_that_are_honoured():
    wanted = read(
        ChatRequest,
        **CHAT,
        max_completion_tokens=5,
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        stop="\n",
        stream=True,
        stream_options={"include_usage": True},
        n=1,
        logprobs=False,
        presence_penalty=0,
        tools=[],
        user="someone",
    )
    assert wanted.wanted_tokens() == 5
    sampling = wanted.sampling(5)
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 3)
    assert sampling.stop == ("\n",)


def test_text_parts_join_and_developer_is_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    wanted = read(ChatRequest, model="m", messages=[{"role": "developer", "content": parts}])
    message = wanted.messages[0].as_message()
    assert (message.role, message.content) == ("system", "ab")


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_value"),
        ({"logprobs": True}, "logprobs", "unsupported_value"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_value"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_value"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_value"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "unsupported_value"),
        ({"top_k": 5}, "top_k", "unsupported_parameter"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "unsupported_value"),
        ({"stop": ""}, "stop.0", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "unsupported_value"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(change, param, code):
    with pytest.raises(RequestRefused) as refused:
        read(ChatRequest, **{**CHAT, **change})
    body = refused.value.answer.error
    assert (refused.value.status, body.param, body.code) == (400, param, code)
    assert body.type == "invalid_request_error"
    assert body.message


def test_an_image_is_refused_at_its_place():
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(RequestRefused) as refused:
        read(ChatRequest, model="m", messages=[{"role": "user", "content": [image]}])
    assert refused.value.answer.error.param.startswith("messages.0.content")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"", "invalid_json"),
        (b"\xff", "invalid_json"),
        (b'{"messages":[{"role":"user","content":"x"}]}', "missing_required_parameter"),
    ],
)
def test_a_body_that_is_no_request(body, code):
    with pytest.raises(RequestRefused) as refused:
        parse(ChatRequest, body)
    assert refused.value.answer.error.code == code


def test_a_refusal_never_repeats_the_prompt():
    with pytest.raises(RequestRefused) as refused:
        read(CompletionRequest, model="m", prompt={"secret": "the patient"})
    assert "patient" not in refused.value.answer.model_dump_json()


def test_prompts_are_text_or_token_ids():
    assert read(CompletionRequest, model="m", prompt="x").wanted_tokens() == 16
    assert read(CompletionRequest, model="m", prompt=[1, 2]).prompt == [1, 2]
    for prompt in ([], [-1], ["a", "b"], [[1]]):
        with pytest.raises(RequestRefused):
            read(CompletionRequest, model="m", prompt=prompt)


def test_adapters_are_named_after_a_colon():
    assert ModelName.parse("base") == ModelName("base", None)
    assert ModelName.parse("base:icd") == ModelName("base", "icd")
    assert ModelName.parse("base:") == ModelName("base", "")
