"""How good a model is on held-out rows: one code path for the base and for the adapter.

Loss is the mean over learnt tokens, in nats. For the ICD-10-CM task the model also answers each
prompt greedily, and its answer is compared with the row's completion: the first letter (which for
nearly all codes is the chapter), and the 3-character category. Held-out completions start with the
category, so the comparison needs no table of codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import GenerationConfig

from appliance.manifests.tuning import EvaluationTask
from appliance.tuning.batches import Example, in_order
from appliance.tuning.model import summed_loss

# " A01" and its like are one token for the space and letter and one for each digit in every
# tokenizer tried; a few more are for tokenizers that split the letter from its space.
_ANSWER_TOKENS = 4
_ROWS = 32

T = TypeVar("T")


class Evaluation(BaseModel):
    """Figures on the held-out rows. Rates are fractions of ``rows``; None if the task has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int = Field(ge=1)
    loss: float
    chapter_accuracy: float | None = None
    category_accuracy: float | None = None


def same_chapter(answer: str, wanted: str) -> bool:
    """Whether ``answer`` starts with the chapter letter of ``wanted``."""
    given, right = answer.strip().upper(), wanted.strip().upper()
    return bool(given) and given[0] == right[0]


def same_category(answer: str, wanted: str) -> bool:
    """Whether the first three characters of ``answer`` are the category of ``wanted``."""
    given, right = answer.strip().upper(), wanted.strip().upper()
    return len(given) >= 3 and given[:3] == right[:3]


@torch.inference_mode()
def heldout_loss(model: Any, examples: Sequence[Example], pad_token: int) -> float:
    """Mean nats per learnt token. Puts ``model`` in evaluation mode and back."""
    return _in_evaluation_mode(model, lambda: _loss(model, examples, pad_token, lambda: None))


@torch.inference_mode()
def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    task: EvaluationTask,
    step: Callable[[], None],
) -> Evaluation:
    """Measure ``model`` on ``examples``; calls ``step`` after each of :func:`steps_of` batches."""

    def measure() -> Evaluation:
        pad = tokenizer.pad_token_id
        loss = _loss(model, examples, pad, step)
        if task is EvaluationTask.LOSS:
            return Evaluation(rows=len(examples), loss=loss)
        answers = _answers(model, tokenizer, examples, step)
        wanted = [
            tokenizer.decode(e.tokens[e.prompt :], skip_special_tokens=True) for e in examples
        ]
        pairs = list(zip(answers, wanted, strict=True))
        return Evaluation(
            rows=len(examples),
            loss=loss,
            chapter_accuracy=sum(same_chapter(*pair) for pair in pairs) / len(pairs),
            category_accuracy=sum(same_category(*pair) for pair in pairs) / len(pairs),
        )

    return _in_evaluation_mode(model, measure)


def steps_of(rows: int, task: EvaluationTask) -> int:
    """How many times :func:`evaluate` calls ``step``."""
    batches = -(-rows // _ROWS)
    return batches if task is EvaluationTask.LOSS else 2 * batches


def _in_evaluation_mode(model: Any, measure: Callable[[], T]) -> T:
    was_training = model.training
    model.eval()
    try:
        return measure()
    finally:
        model.train(was_training)


def _loss(
    model: Any, examples: Sequence[Example], pad_token: int, step: Callable[[], None]
) -> float:
    total, learnt = 0.0, 0
    for batch in in_order(examples, _ROWS, pad_token):
        total += float(summed_loss(model, batch, model.device))
        learnt += batch.learnt
        step()
    return total / learnt


def _answers(
    model: Any, tokenizer: Any, examples: Sequence[Example], step: Callable[[], None]
) -> list[str]:
    """Greedy answers, in the order of ``examples``."""
    order = sorted(range(len(examples)), key=lambda i: -examples[i].prompt)
    answers = [""] * len(examples)
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=_ANSWER_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        prompts = [examples[i].tokens[: examples[i].prompt] for i in chosen]
        width = max(map(len, prompts))
        pad = tokenizer.pad_token_id
        ids = torch.tensor([(pad,) * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor(
            [(0,) * (width - len(p)) + (1,) * len(p) for p in prompts], device=model.device
        )
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=greedy)
        texts = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text
        step()
    return answers
