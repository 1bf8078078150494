"""Serve's ingress: OpenAI's routes and the appliance's internal ones, around one engine.

Everything is inside the seal, and still every request must show the gateway's key: a tuning job
beside it could otherwise ask past identity, quota and audit. Prompts and answers are never logged.

| route | answers |
| --- | --- |
| ``GET /v1/models`` | the base model and each loaded adapter as ``base:adapter`` |
| ``POST /v1/chat/completions``, ``POST /v1/completions`` | OpenAI's shapes, whole or as SSE |
| ``POST /internal/adapters/{name}`` :class:`_AdapterBody` | 204; 409 with a reason if refused |
| ``DELETE /internal/adapters/{name}`` | 204; 404 |
| ``POST /internal/probe`` ``{"host", "port"}`` of a control or nothing | ``egress.probe`` results |
| ``GET /internal/state`` | :class:`ServingState` |
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from appliance.cluster import ports, prove
from appliance.egress.probe import Listener, probe_all
from appliance.engines.engine import AdapterUnusable, EngineFailure, UnknownAdapter
from appliance.errors import ApplianceError
from appliance.serving.adapters import AdapterPin, ServedAdapters
from appliance.serving.answers import (
    Answers,
    chat_answer,
    chat_events,
    completion_answer,
    completion_events,
    whole,
)
from appliance.serving.openai import (
    ChatRequest,
    CompletionRequest,
    ModelCard,
    ModelList,
    RequestRefused,
    parse,
)

GATEWAY_HEADER = b"x-appliance-gateway"
_EVENT_STREAM = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}


class ServingState(BaseModel):
    """``GET /internal/state``."""

    model: str
    release: str
    adapters: list[AdapterPin]
    requests: int
    places: int
    context_tokens: int
    pid: int


class _AdapterBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    path: Path
    digest: str
    signer: str | None = None


class _ProbeBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    host: str = ports.HOST
    port: int = Field(ge=1, le=65535)


@dataclass(frozen=True)
class GatewayOnly:
    """Lets through only requests that carry the gateway's key."""

    app: ASGIApp
    key: bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 403."""
        if scope["type"] == "http":
            shown = dict(scope["headers"]).get(GATEWAY_HEADER, b"")
            if not self.key or not hmac.compare_digest(shown, self.key):
                refused = RequestRefused(403, "Only the gateway may ask here.", code="gateway_only")
                await _refusal(refused)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def build_app(
    answers: Answers, served: ServedAdapters, key: bytes, *, created: int, release: str
) -> FastAPI:
    """The ingress. ``created`` is when the model was made, in Unix seconds.

    On start-up it loads the adapters that were loaded before, so that a new replica is ready for
    every model the old one served before it takes a request.
    """

    @asynccontextmanager
    async def adapters_first(_app: FastAPI) -> AsyncIterator[None]:
        await served.restore()
        yield

    app = FastAPI(
        title="appliance serving",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=adapters_first,
    )
    app.add_middleware(GatewayOnly, key=key)
    _explain_errors(app)
    _openai_routes(app, answers, created)
    _internal_routes(app, answers, served, release)
    return app


def _openai_routes(app: FastAPI, answers: Answers, created: int) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        base = answers.model_name
        names = [base, *(f"{base}:{adapter}" for adapter in answers.engine.adapters)]
        return _json(ModelList(data=[ModelCard(id=name, created=created) for name in names]))

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        answers.check_model(name)
        return _json(ModelCard(id=name, created=created))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        wanted = parse(ChatRequest, await request.body())
        answer = await answers.admit(wanted)
        deltas = answers.deltas(answer)
        if wanted.stream:
            return await _streamed(chat_events(answer, deltas, _wants_usage(wanted)))
        text, reason = await whole(answer, deltas)
        return _json(chat_answer(answer, text, reason))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        wanted = parse(CompletionRequest, await request.body())
        answer = await answers.admit(wanted)
        deltas = answers.deltas(answer)
        if wanted.stream:
            return await _streamed(completion_events(answer, deltas, _wants_usage(wanted)))
        text, reason = await whole(answer, deltas)
        return _json(completion_answer(answer, text, reason))


def _internal_routes(app: FastAPI, answers: Answers, served: ServedAdapters, release: str) -> None:
    @app.post("/internal/adapters/{name}")
    async def load(name: str, request: Request) -> Response:
        body = parse(_AdapterBody, await request.body())
        try:
            pin = AdapterPin(name=name, **body.model_dump())
        except ValidationError as error:
            raise RequestRefused(400, str(error.errors()[0]["msg"]), code="invalid_value") from None
        await served.load(pin)
        return Response(status_code=204)

    @app.delete("/internal/adapters/{name}")
    async def unload(name: str) -> Response:
        await served.unload(name)
        return Response(status_code=204)

    @app.post("/internal/probe")
    async def probe(request: Request) -> Response:
        body = await request.body()
        if body:
            wanted = parse(_ProbeBody, body)
            results = await asyncio.to_thread(probe_all, Listener(wanted.host, wanted.port))
        else:
            results = await asyncio.to_thread(prove.probe_here)
        return JSONResponse([asdict(result) for result in results])

    @app.get("/internal/state")
    async def state() -> Response:
        return _json(
            ServingState(
                model=answers.model_name,
                release=release,
                adapters=list(served.pins.values()),
                requests=answers.admission.taken,
                places=answers.admission.places,
                context_tokens=answers.engine.capabilities.context_tokens,
                pid=os.getpid(),
            )
        )


def _explain_errors(app: FastAPI) -> None:
    """Answer every failure in OpenAI's shape, saying no more than the caller may know."""

    @app.exception_handler(RequestRefused)
    async def refused(_request: Request, error: RequestRefused) -> Response:
        return _refusal(error)

    @app.exception_handler(EngineFailure)
    async def failed(_request: Request, _error: EngineFailure) -> Response:
        message = "The engine stopped while answering. Send the request again."
        return _refusal(RequestRefused(503, message, code="engine_failed"))

    @app.exception_handler(UnknownAdapter)
    async def unknown(_request: Request, error: UnknownAdapter) -> Response:
        message = f"No adapter '{error.args[0]}' is loaded."
        return _refusal(RequestRefused(404, message, code="model_not_found", param="model"))

    @app.exception_handler(AdapterUnusable)
    async def unusable(_request: Request, error: AdapterUnusable) -> Response:
        message = f"The adapter cannot be loaded: {error}."
        return _refusal(RequestRefused(409, message, code="adapter_unusable"))

    @app.exception_handler(ApplianceError)
    async def appliance_error(_request: Request, error: ApplianceError) -> Response:
        return JSONResponse({"error": error.as_json()}, status_code=409)

    @app.exception_handler(Exception)
    async def unforeseen(_request: Request, _error: Exception) -> Response:
        message = "The server failed in a way it does not know. The operator's log has more."
        return _refusal(RequestRefused(500, message, code="internal_error"))

    @app.exception_handler(404)
    async def nowhere(request: Request, _error: Exception) -> Response:
        message = f"There is no {request.method} {request.url.path} here."
        return _refusal(RequestRefused(404, message, code="unknown_url"))

    @app.exception_handler(405)
    async def wrong_method(request: Request, _error: Exception) -> Response:
        message = f"{request.url.path} does not take {request.method}."
        return _refusal(RequestRefused(405, message, code="method_not_allowed"))


async def _streamed(events: AsyncIterator[bytes]) -> Response:
    """A stream whose first event is already there: what fails before it gets a proper status."""
    first = await anext(events)

    async def all_events() -> AsyncIterator[bytes]:
        yield first
        try:
            async for event in events:
                yield event
        except EngineFailure:
            message = "The engine stopped while answering. Send the request again."
            error = RequestRefused(503, message, code="engine_failed")
            yield b"data: " + error.answer.model_dump_json().encode() + b"\n\n"

    return StreamingResponse(all_events(), headers=_EVENT_STREAM)


def _wants_usage(wanted: ChatRequest | CompletionRequest) -> bool:
    return wanted.stream_options is not None and wanted.stream_options.include_usage


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _refusal(error: RequestRefused) -> Response:
    return Response(
        error.answer.model_dump_json(),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )
