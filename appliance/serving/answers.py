"""From a validated request to an engine's deltas, and from deltas to OpenAI's answers.

Everything that can be refused is refused in :meth:`Answers.admit`, before the request takes a place
in the queue. Prompts and answers are never logged.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from appliance.engines.engine import Delta, Engine, FinishReason, GenerationRequest
from appliance.serving.openai import (
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatDelta,
    ChatRequest,
    ChunkChoice,
    CompletionAnswer,
    CompletionChoice,
    CompletionRequest,
    ModelName,
    RequestRefused,
    UsageBody,
)

# Tokenising this many characters takes about a millisecond; longer prompts leave the event loop.
_QUICK_CHARACTERS = 16_384
_DONE = b"data: [DONE]\n\n"


@dataclass
class Admission:
    """A bounded queue: so many requests at a time, and the next is told when to come back."""

    places: int
    taken: int = 0

    def enter(self) -> None:
        """Take a place. Raises ``RequestRefused`` (429)."""
        if self.taken >= self.places:
            raise RequestRefused(
                429,
                "All places in the queue are taken. Try again in a few seconds.",
                code="queue_full",
                headers={"Retry-After": "2"},
            )
        self.taken += 1

    def leave(self) -> None:
        """Give the place back."""
        self.taken -= 1


@dataclass(slots=True)
class Answer:
    """One admitted request on its way: its identity and what it has generated so far."""

    id: str
    model: str
    request: GenerationRequest
    created: int = field(default_factory=lambda: int(time.time()))
    completion_tokens: int = 0

    def usage(self) -> UsageBody:
        """Tokens so far."""
        prompt = len(self.request.prompt_token_ids)
        return UsageBody(
            prompt_tokens=prompt,
            completion_tokens=self.completion_tokens,
            total_tokens=prompt + self.completion_tokens,
        )


@dataclass
class Answers:
    """Answers requests for one model with one engine."""

    engine: Engine
    model_name: str
    admission: Admission

    async def admit(self, wanted: ChatRequest | CompletionRequest) -> Answer:
        """Check a request against the model. Raises ``RequestRefused`` (400 or 404)."""
        name = self.check_model(wanted.model)
        prompt = await self._encode(wanted)
        context = self.engine.capabilities.context_tokens
        room = context - len(prompt)
        max_tokens = wanted.wanted_tokens() or room
        if room < 1 or max_tokens > room:
            total = len(prompt) + (max_tokens if room > 0 else 1)
            raise RequestRefused(
                400,
                f"This model's context is {context} tokens, and the request needs at least {total}"
                f" ({len(prompt)} of them the prompt).",
                code="context_length_exceeded",
                param="messages" if isinstance(wanted, ChatRequest) else "prompt",
            )
        kind = "chatcmpl" if isinstance(wanted, ChatRequest) else "cmpl"
        identity = f"{kind}-{uuid.uuid4().hex}"
        return Answer(
            identity,
            wanted.model,
            GenerationRequest(identity, prompt, wanted.sampling(max_tokens), name.adapter),
        )

    def check_model(self, text: str) -> ModelName:
        """The parts of a model's name. Raises ``RequestRefused`` (404) if it is not served."""
        name = ModelName.parse(text)
        known = name.adapter is None or name.adapter in self.engine.adapters
        if name.base != self.model_name or not known:
            raise RequestRefused(
                404,
                f"There is no model '{text}' here. GET /v1/models lists those there are.",
                code="model_not_found",
                param="model",
            )
        return name

    async def deltas(self, answer: Answer) -> AsyncIterator[Delta]:
        """Generate, counting tokens. Raises ``RequestRefused`` (429) when the queue is full."""
        self.admission.enter()
        try:
            stream = self.engine.generate(answer.request)
            async for delta in stream:
                answer.completion_tokens += delta.tokens
                yield delta
        finally:
            self.admission.leave()
            # Not left to the garbage collector: the cache is freed when the caller goes.
            await stream.aclose()  # type: ignore[attr-defined]

    async def _encode(self, wanted: ChatRequest | CompletionRequest) -> tuple[int, ...]:
        if isinstance(wanted, ChatRequest):
            messages = [message.as_message() for message in wanted.messages]
            if sum(len(message.content) for message in messages) > _QUICK_CHARACTERS:
                return await asyncio.to_thread(self.engine.encode_chat, messages)
            return self.engine.encode_chat(messages)
        if not isinstance(wanted.prompt, str):
            return tuple(wanted.prompt)
        if len(wanted.prompt) > _QUICK_CHARACTERS:
            return await asyncio.to_thread(self.engine.encode_text, wanted.prompt)
        return self.engine.encode_text(wanted.prompt)


async def whole(answer: Answer, deltas: AsyncIterator[Delta]) -> tuple[str, FinishReason]:
    """Wait for the end: the text and why it ended."""
    texts: list[str] = []
    reason: FinishReason = "stop"
    async for delta in deltas:
        texts.append(delta.text)
        reason = delta.finish_reason or reason
    return "".join(texts), reason


def chat_answer(answer: Answer, text: str, reason: FinishReason) -> ChatAnswer:
    """A whole chat answer."""
    choice = ChatChoice(message=AnswerMessage(content=text), finish_reason=reason)
    return ChatAnswer(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=[choice],
        usage=answer.usage(),
    )


def completion_answer(answer: Answer, text: str, reason: FinishReason) -> CompletionAnswer:
    """A whole text answer."""
    return CompletionAnswer(
        id=answer.id,
        created=answer.created,
        model=answer.model,
        choices=[CompletionChoice(text=text, finish_reason=reason)],
        usage=answer.usage(),
    )


async def chat_events(
    answer: Answer, deltas: AsyncIterator[Delta], with_usage: bool
) -> AsyncIterator[bytes]:
    """A chat answer as server-sent events, one per delta that says something."""
    role: dict[str, str] = {"role": "assistant"}
    async for delta in deltas:
        if not (delta.text or delta.finish_reason or role):
            continue
        said = ChatDelta.model_validate(role | {"content": delta.text})
        role = {}
        yield _event(_chat_chunk(answer, [ChunkChoice(delta=said)]))
        if delta.finish_reason:
            last = ChunkChoice(delta=ChatDelta(), finish_reason=delta.finish_reason)
            yield _event(_chat_chunk(answer, [last]))
    if with_usage:
        yield _event(_chat_chunk(answer, []).model_copy(update={"usage": answer.usage()}))
    yield _DONE


async def completion_events(
    answer: Answer, deltas: AsyncIterator[Delta], with_usage: bool
) -> AsyncIterator[bytes]:
    """A text answer as server-sent events, one per delta that says something."""
    async for delta in deltas:
        if delta.text or delta.finish_reason:
            choice = CompletionChoice(text=delta.text, finish_reason=delta.finish_reason)
            yield _event(_completion_chunk(answer, [choice]))
    if with_usage:
        last = _completion_chunk(answer, [])
        yield _event(last.model_copy(update={"usage": answer.usage()}))
    yield _DONE


def _chat_chunk(answer: Answer, choices: list[ChunkChoice]) -> ChatChunk:
    return ChatChunk(id=answer.id, created=answer.created, model=answer.model, choices=choices)


def _completion_chunk(answer: Answer, choices: list[CompletionChoice]) -> CompletionAnswer:
    return CompletionAnswer(
        id=answer.id, created=answer.created, model=answer.model, choices=choices
    )


def _event(chunk: ChatChunk | CompletionAnswer) -> bytes:
    return b"data: " + chunk.model_dump_json(exclude_none=True).encode() + b"\n\n"
