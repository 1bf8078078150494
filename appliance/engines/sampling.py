"""Choose the next token of every request in a batch, each by its own settings and its own dice.

Continuous batching picks the highest score of each row. So a row that samples is drawn here, with a
generator that belongs to its request alone, and the token drawn is given the highest score; a
greedy row is left as it is. A seeded request therefore draws the same tokens whatever its
neighbours in the batch do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from appliance.engines.engine import Sampling

# The nucleus of almost every step lies within this many tokens; sorting a whole vocabulary of 50k
# costs ten times as much as finding them.
_LIKELY_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Draw:
    """How one request draws; ``dice`` is None for a greedy one."""

    temperature: float
    top_p: float
    dice: torch.Generator | None

    @classmethod
    def of(cls, sampling: Sampling) -> Draw:
        """The way to draw for these settings, with fresh dice."""
        if sampling.temperature == 0:
            return GREEDY
        dice = torch.Generator()
        if sampling.seed is None:
            dice.seed()
        else:
            dice.manual_seed(sampling.seed & (2**63 - 1))
        return cls(sampling.temperature, sampling.top_p, dice)


GREEDY = Draw(temperature=0.0, top_p=1.0, dice=None)


def mark_drawn(scores: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Make the highest score of each row the token drawn for it.

    ``scores`` is ``[rows, vocabulary]``, changed in place and returned; ``draws`` has one per row.
    """
    for row, draw in zip(scores, draws, strict=True):
        if draw.dice is not None:
            row[draw_token(row, draw)] = torch.inf
    return scores


def draw_token(row: Tensor, draw: Draw) -> int:
    """One token from ``row``, the scores of a vocabulary, by temperature and nucleus (top-p)."""
    probabilities = torch.softmax(row / draw.temperature, dim=-1)
    if draw.top_p >= 1:
        return int(torch.multinomial(probabilities, 1, generator=draw.dice))
    likely, tokens = probabilities.topk(min(_LIKELY_TOKENS, row.numel()))
    before = likely.cumsum(-1) - likely
    if before[-1] < draw.top_p:  # a flat distribution: the nucleus may reach further
        likely, tokens = probabilities.sort(descending=True)
        before = likely.cumsum(-1) - likely
    # The nucleus is the fewest tokens whose probabilities reach top_p (Holtzman et al. 2020).
    likely = likely.masked_fill(before >= draw.top_p, 0)
    return int(tokens[torch.multinomial(likely, 1, generator=draw.dice)])
