"""Rows → tokens, with the completion (or every assistant's turn) marked as what is learnt.

A prompt and its completion are tokenised apart, because at inference the prompt is tokenised alone:
tokens that straddle the border would never be seen again. The end-of-text token is learnt too, so
that the tuned model stops. Conversations go through the model's own chat template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from appliance.tuning.batches import Example
from appliance.tuning.rows import ChatRow, PromptRow, Row, parse


class TemplateUnfit(ValueError):
    """The model's chat template is missing, or does not only append when a turn is added."""


@dataclass(frozen=True, slots=True)
class Split:
    """Examples of one file, and how many rows were longer than the limit and left out."""

    examples: tuple[Example, ...]
    left_out: int


def read_split(path: Path, tokenizer: Any, max_length: int, most: int | None = None) -> Split:
    """Encode the rows of ``path`` (the first ``most``), leaving out those over ``max_length``.

    Raises:
        TemplateUnfit: conversations, and a tokenizer whose template cannot train on them.
    """
    examples = []
    left_out = 0
    for example in encode(islice(_rows(path), most), tokenizer):
        if len(example.tokens) <= max_length:
            examples.append(example)
        else:
            left_out += 1
    return Split(tuple(examples), left_out)


def encode(rows: Iterable[Row], tokenizer: Any) -> Iterator[Example]:
    """Each row as an :class:`Example`."""
    for row in rows:
        yield _prompt(row, tokenizer) if isinstance(row, PromptRow) else _chat(row, tokenizer)


def _rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for line in file:
            yield parse(line.rstrip(b"\r\n"))


def _prompt(row: PromptRow, tokenizer: Any) -> Example:
    prompt = tuple(tokenizer(row.prompt)["input_ids"])
    completion = tuple(tokenizer(row.completion, add_special_tokens=False)["input_ids"])
    learnt = (*completion, tokenizer.eos_token_id)
    return Example(prompt + learnt, (False,) * len(prompt) + (True,) * len(learnt))


def _chat(row: ChatRow, tokenizer: Any) -> Example:
    tokens: list[int] = []
    learnt: list[bool] = []
    done = ""
    messages = [message.model_dump() for message in row.messages]
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = _render(tokenizer, messages[:index], generation_prompt=True)
        answered = _render(tokenizer, messages[: index + 1], generation_prompt=False)
        if not (asked.startswith(done) and answered.startswith(asked)):
            raise TemplateUnfit("its chat template changes earlier turns when one is added")
        for text, is_learnt in ((asked[len(done) :], False), (answered[len(asked) :], True)):
            piece = tokenizer(text.rstrip("\n") if is_learnt else text, add_special_tokens=False)
            tokens += piece["input_ids"]
            learnt += [is_learnt] * len(piece["input_ids"])
        # The newline after a turn's end is not learnt: nothing generates it.
        done = answered.rstrip("\n")
    return Example(tuple(tokens), tuple(learnt))


def _render(tokenizer: Any, messages: list[dict[str, str]], *, generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise TemplateUnfit("it has no chat template")
    text: str = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=generation_prompt
    )
    return text
