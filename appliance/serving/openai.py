"""OpenAI's request and answer shapes, as far as this appliance honours them.

A field that would change the answer and is not honoured is refused by name, never ignored: a caller
who asked for ``logprobs`` or a tool call must not get a plain answer. Fields that only label a
request (``user``, ``metadata``, ``store: false``) are accepted. Source: the OpenAPI description at
github.com/openai/openai-openapi (chat/completions, completions, models, errors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from appliance.engines.engine import FinishReason, Message, Sampling

RequestT = TypeVar("RequestT", bound=BaseModel)

DEFAULT_COMPLETION_TOKENS = 16  # what OpenAI's completions endpoint does without max_tokens


class ErrorBody(BaseModel):
    """The inside of OpenAI's ``{"error": …}``."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(BaseModel):
    """OpenAI's error shape."""

    error: ErrorBody


class RequestRefused(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kinds = {403: "permission_error", 429: "rate_limit_error", 503: "server_error"}
        self.status = status
        self.headers = dict(headers or {})
        kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
        self.answer = ErrorAnswer(
            error=ErrorBody(message=message, type=kind, param=param, code=code)
        )


@dataclass(frozen=True, slots=True)
class ModelName:
    """``base`` or ``base:adapter``."""

    base: str
    adapter: str | None

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Split at the first colon; neither part is checked to exist."""
        base, colon, adapter = text.partition(":")
        return cls(base, adapter if colon else None)


# --- requests -----------------------------------------------------------------------------------


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


StopString = Annotated[str, Field(min_length=1, max_length=1024)]
Stops = Annotated[tuple[StopString, ...], BeforeValidator(_as_tuple), Field(max_length=4)]


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Generation(BaseModel):
    """What chat and text completions have in common.

    Settings with one allowed value are those whose default is honoured and nothing else is.
    """

    model_config = ConfigDict(extra="forbid", strict=False)

    model: str = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: Stops | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed when stream is true")
        return self

    def wanted_tokens(self) -> int | None:
        """The caller's bound on the answer's length, if any."""
        return self.max_tokens

    def sampling(self, max_tokens: int) -> Sampling:
        """The engine's settings for this request; a temperature below 0.01 is greedy.

        Dividing by less makes scores overflow, and no draw could be told from greedy.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(
            max_tokens=max_tokens,
            temperature=temperature if temperature >= 0.01 else 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=self.stop or (),
            seed=self.seed,
        )


class TextPart(BaseModel):
    """A piece of a message's content; only text is understood."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    def as_message(self) -> Message:
        """The message for a chat template; ``developer`` is the newer name of ``system``."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        return Message("system" if self.role == "developer" else self.role, text)


class ResponseFormat(BaseModel):
    """``response_format``: plain text only."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


class ChatRequest(_Generation):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None

    def wanted_tokens(self) -> int | None:
        """``max_completion_tokens``, or the older ``max_tokens``."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(_Generation):
    """``POST /v1/completions``: one prompt, as text or as token ids."""

    prompt: str | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    logprobs: None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    def wanted_tokens(self) -> int | None:
        """``max_tokens``, whose default is short here."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS


def parse(kind: type[RequestT], body: bytes) -> RequestT:
    """Read a request body. Raises ``RequestRefused`` (400) naming the first wrong field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"] if not _is_branch(part)) or None
    if first["type"] == "json_invalid":
        raise RequestRefused(400, "The body is not valid JSON.", code="invalid_json")
    if first["type"] == "missing":
        raise RequestRefused(
            400,
            f"Missing required parameter: '{field}'.",
            code="missing_required_parameter",
            param=field,
        )
    if first["type"] == "extra_forbidden":
        raise RequestRefused(
            400,
            f"Unknown or unsupported parameter: '{field}'.",
            code="unsupported_parameter",
            param=field,
        )
    unsupported = first["type"] in ("literal_error", "none_required", "too_long")
    raise RequestRefused(
        400,
        f"Invalid value for '{field}': {first['msg']}." if field else f"{first['msg']}.",
        code="unsupported_value" if unsupported else "invalid_value",
        param=field,
    )


def _is_branch(part: object) -> bool:
    """Whether a step of a location names a member of a union rather than a field."""
    return isinstance(part, str) and (part in ("str", "int") or "[" in part)


# --- answers ------------------------------------------------------------------------------------


class UsageBody(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ModelCard(BaseModel):
    """One entry of ``GET /v1/models``."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "appliance"


class ModelList(BaseModel):
    """``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class AnswerMessage(BaseModel):
    """The assistant's message of a whole answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The one choice of a whole chat answer."""

    index: int = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatAnswer(BaseModel):
    """A whole chat answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class ChatDelta(BaseModel):
    """What a chunk adds to the message. The role comes once, in the first."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """The one choice of a chat chunk."""

    index: int = 0
    delta: ChatDelta
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    """One event of a streamed chat answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | None = None


class CompletionChoice(BaseModel):
    """The one choice of a text answer, whole or a chunk of it."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None = None


class CompletionAnswer(BaseModel):
    """A text answer, whole or one event of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody | None = None
