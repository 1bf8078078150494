"""One line of a data set: what it may look like, and why it may not.

Two forms, as in OpenAI's fine-tuning API: ``{"prompt": str, "completion": str}`` and
``{"messages": [{"role": "system|user|assistant", "content": str}, …]}`` ending in an assistant's
message. Pure; no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MAX_LINE = 1 << 20
"""Longest line accepted, in bytes."""

Form = Literal["prompt", "messages"]

_Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PromptRow(_Strict):
    """Text and how it goes on. Both are used as they are, spaces included."""

    prompt: _Text
    completion: _Text

    @property
    def form(self) -> Form:
        return "prompt"


class Message(_Strict):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: _Text


class ChatRow(_Strict):
    """A conversation; every assistant's turn is learnt."""

    messages: Annotated[tuple[Message, ...], Field(min_length=2, max_length=1000)]

    @model_validator(mode="after")
    def _ends_with_an_answer(self) -> Self:
        roles = [message.role for message in self.messages]
        if "system" in roles[1:]:
            raise ValueError("a system message may only stand first")
        turns = roles[1:] if roles[0] == "system" else roles
        if turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
            raise ValueError("turns must alternate user, assistant and end with assistant")
        return self

    @property
    def form(self) -> Form:
        return "messages"


Row = PromptRow | ChatRow


class RowInvalid(ValueError):
    """A line that is no row; its text says why."""


def parse(line: bytes) -> Row:
    """The row in ``line`` (without its newline). Raises :class:`RowInvalid` with the reason."""
    if len(line) > MAX_LINE:
        raise RowInvalid(f"the line is longer than {MAX_LINE} bytes")
    if line.startswith(b"\xef\xbb\xbf"):
        raise RowInvalid("it starts with a byte order mark")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RowInvalid(f"byte {error.start + 1} is not UTF-8") from error
    if not text.strip():
        raise RowInvalid("it is empty")
    kind = ChatRow if '"messages"' in text and '"prompt"' not in text else PromptRow
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        # The offending value is left out: rows are private data, and reasons end up in logs.
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise RowInvalid(f"{field}: {first['msg']}" if field else first["msg"]) from None
