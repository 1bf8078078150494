"""Questions to the model: passed to Serve, streamed back, accounted for by digest.

One ``inference`` event per call: key, model, SHA-256 of the question's body and of the answer's,
token counts, outcome; never the text. The answer's end (``data: [DONE]``, or the whole of an answer
that is not streamed) is held until that event is durable, so a client that saw an answer complete
can rely on its being on the record.

To know the token counts of a stream, ``stream_options.include_usage`` is set on its way in; the
chunk that carries them is taken out again for a client that did not ask (OpenAI API reference,
"include_usage").
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.errors import AuditUnavailable, ServiceUnavailable
from appliance.gateway import headers
from appliance.gateway.audit import Audit
from appliance.gateway.calls import Call
from appliance.gateway.model_service import ModelService
from appliance.gateway.paths import encoded
from appliance.gateway.problems import problem
from appliance.ledger.event import Event, Outcome

_LOG = logging.getLogger(__name__)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
_DONE = b"data: [DONE]"
# Inside a JSON text a quote is escaped, so these bytes are a field's name, not an answer's words.
_USAGE = b'"prompt_tokens"'


@dataclass
class Account:
    """What the ledger will say about one call."""

    actor: str
    route: str
    model: str
    request: str
    answer: Any = field(default_factory=hashlib.sha256)
    status: int = 0
    usage: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    recorded: bool = False

    def event(self) -> Event:
        """The entry; ``refused`` is Serve's 4xx, ``failed`` all that is not a whole answer."""
        outcome: Outcome = "ok" if self.complete and self.status < 400 else "failed"
        if self.complete and 400 <= self.status < 500:
            outcome = "refused"
        counts = {name: str(count) for name, count in self.usage.items()}
        subject = {
            "route": self.route,
            "model": self.model,
            "request": self.request,
            "response": f"sha256:{self.answer.hexdigest()}",
            "status": str(self.status),
            **counts,
        }
        return Event(actor=self.actor, action="inference", subject=subject, outcome=outcome)


@dataclass
class Question:
    """A body on its way to Serve. ``wants_usage``: the client asked for the usage chunk itself."""

    body: bytes
    model: str
    wants_usage: bool

    @classmethod
    def of(cls, body: bytes, content: dict[str, Any]) -> Question:
        """Prepare ``content`` (parsed from ``body``); what is not ours to judge passes as it is."""
        model = content.get("model")
        named = model if isinstance(model, str) and _MODEL.fullmatch(model) else "(invalid)"
        options = content.get("stream_options") or {}
        if content.get("stream") is not True or not isinstance(options, dict):
            return cls(body, named, True)
        if options.get("include_usage") is True:
            return cls(body, named, True)
        content["stream_options"] = {**options, "include_usage": True}
        return cls(json.dumps(content, ensure_ascii=False).encode(), named, False)


class Inference:
    """The handler of the inference routes."""

    def __init__(self, service: ModelService, audit: Audit) -> None:
        self._service = service
        self._audit = audit

    async def infer(self, call: Call) -> ASGIApp:
        """Forward a question. Raises :class:`AuditUnavailable` before anything is asked."""
        self._audit.demand()
        body = await call.body()
        question = Question.of(body, call.parse_object(body))
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        account = Account(call.actor, call.path, question.model, digest)
        return _Exchange(self, call, question, account)

    async def models(self, call: Call) -> ASGIApp:
        """``/v1/models`` and one of them, as Serve lists them."""
        return _Passage(self, call)

    def open(
        self, call: Call, body: bytes | None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Serve's answer."""
        caller = call.caller.id if call.caller else ""
        return self._service.ask(
            call.scope["method"],
            encoded(call.path),
            headers=headers.to_serve(call.scope["headers"], caller),
            body=body,
        )

    async def settle(self, account: Account) -> None:
        """Make the account durable. Raises :class:`AuditUnavailable`."""
        account.recorded = True
        await self._audit.record(account.event())

    def note(self, account: Account) -> None:
        """Record a call that ended before its account was settled."""
        if not account.recorded:
            account.recorded = True
            self._audit.note(account.event())


class _Passage:
    """An answer of Serve, whole: for the routes that are not accounted."""

    def __init__(self, inference: Inference, call: Call) -> None:
        self._inference = inference
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._inference.open(self._call, None) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            await problem(unreachable(error))(scope, receive, send)
            return
        await send(_start(answer))
        await send({"type": "http.response.body", "body": body})


class _Exchange:
    """One question and its answer, as an ASGI application.

    Three parties may end it: Serve by finishing, the client by leaving, the ledger by refusing.
    """

    def __init__(
        self, inference: Inference, call: Call, question: Question, account: Account
    ) -> None:
        self._inference = inference
        self._call = call
        self._question = question
        self._account = account

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.create_task(self._pump(scope, receive, send))
        leave = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({pump, leave}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # If the client left, this closes the connection to Serve, which then stops generating.
            pump.cancel()
            leave.cancel()
            self._inference.note(self._account)
        (outcome, _gone) = await asyncio.gather(pump, leave, return_exceptions=True)
        if isinstance(outcome, _Cut | aiohttp.ClientError | OSError):
            # No end mark was sent: the client sees that the answer is cut short.
            _LOG.warning("an answer was cut short: %s", outcome)
        elif isinstance(outcome, Exception):
            raise outcome

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send Serve's answer on; an answer that cannot begin is a problem, told and recorded."""
        async with AsyncExitStack() as stack:
            try:
                opening = self._inference.open(self._call, self._question.body)
                answer = await stack.enter_async_context(opening)
            except (aiohttp.ClientError, OSError) as error:
                self._account.status = 503
                await problem(unreachable(error))(scope, receive, send)
                return
            self._account.status = answer.status
            if answer.content_type == "text/event-stream":
                await self._stream(answer, send)
            else:
                await self._whole(answer, scope, receive, send)

    async def _stream(self, answer: aiohttp.ClientResponse, send: Send) -> None:
        """Pass events as they come; hold the last one until the account is durable."""
        await send(_start(answer))
        digest, last = self._account.answer, b""
        async for events in self._events(answer):
            digest.update(events)
            if events.startswith(_DONE):
                last = events
                break
            await send({"type": "http.response.body", "body": events, "more_body": True})
        if not last:
            raise _Cut("Serve ended a stream early")
        self._account.complete = True
        try:
            await self._inference.settle(self._account)
        except AuditUnavailable as error:
            told = b"data: " + problem(error).body + b"\n\n"
            await send({"type": "http.response.body", "body": told, "more_body": True})
            raise _Cut("the ledger could not be written") from error
        await send({"type": "http.response.body", "body": last})

    async def _events(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Whole events, as many as have arrived; the end mark comes alone, usage where wanted."""
        rest = b""
        async for arrived in answer.content.iter_any():
            chunk = rest + arrived if rest else arrived
            if chunk.endswith(b"\n\n"):
                rest = b""
            else:
                end = chunk.rfind(b"\n\n") + 2
                if end < 2:
                    rest = chunk
                    continue
                chunk, rest = chunk[:end], chunk[end:]
            if _USAGE in chunk or _DONE in chunk:
                for event in chunk.split(b"\n\n")[:-1]:
                    if self._passes(event):
                        yield event + b"\n\n"
            else:
                yield chunk
        if rest:
            yield rest

    def _passes(self, event: bytes) -> bool:
        """Take the counts out of ``event``; whether the client gets it."""
        if _USAGE not in event:
            return True
        try:
            content = json.loads(event.removeprefix(b"data:"))
        except ValueError:
            return True
        self._account.usage = counts(content)
        return self._question.wants_usage or bool(content.get("choices"))

    async def _whole(
        self, answer: aiohttp.ClientResponse, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Pass an answer that is one JSON object, once its account is durable."""
        body = await answer.read()
        self._account.answer.update(body)
        self._account.usage = _counts_of_body(body)
        self._account.complete = True
        try:
            await self._inference.settle(self._account)
        except AuditUnavailable as error:
            await problem(error)(scope, receive, send)
            return
        await send(_start(answer))
        await send({"type": "http.response.body", "body": body})


class _Cut(Exception):
    """A stream that began must end without its end mark."""


def counts(content: dict[str, Any]) -> dict[str, int]:
    """Token counts of an OpenAI answer or chunk: whole numbers that are not negative."""
    usage = content.get("usage")
    if not isinstance(usage, dict):
        return {}
    names = ("prompt_tokens", "completion_tokens")
    return {name: usage[name] for name in names if type(usage.get(name)) is int}


def _counts_of_body(body: bytes) -> dict[str, int]:
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return counts(content) if isinstance(content, dict) else {}


def _start(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    return {
        "type": "http.response.start",
        "status": answer.status,
        "headers": [*headers.from_serve(answer.headers), *headers.PLAIN[:3]],
    }


def unreachable(error: BaseException) -> ServiceUnavailable:
    """Serve does not answer."""
    return ServiceUnavailable(
        service="The model service", reason=f"{type(error).__name__}: {error}."
    )


async def _left(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
