"""Rows → token batches: pure, and a function of the seed and the step number alone.

Because :meth:`Batches.at` is stateless, a run that resumes at step *k* sees exactly the rows it
would have seen, without an iterator to save.

Batches are padded on the **left**. What is learnt (the completion) then stands at the right end of
every row, so the model need compute logits for the last few positions only
(``logits_to_keep``; with a 49k vocabulary that is a fifth of the work of a step), and the same
layout serves greedy generation. Rows of a step have similar lengths: rows are shuffled, cut into
windows of :data:`WINDOW` batches, sorted by length within a window, and the batches of a window
shuffled again. Padding falls from about a third of the tokens to a twentieth. Rows are never joined
into one sequence, so none can attend to another.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# Batches whose rows are sorted together: more means less padding and less even a shuffle.
WINDOW = 8

# The label that the loss ignores, as in torch.nn.functional.cross_entropy.
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens.

    ``tokens`` and ``learnt`` have the same length; ``learnt[i]`` says whether predicting
    ``tokens[i]`` counts in the loss. ``prompt`` is how many tokens stand before the first learnt
    one, which is what a generation starts from.
    """

    tokens: tuple[int, ...]
    learnt: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.learnt):
            raise ValueError("tokens and learnt differ in length")
        # The first token has nothing before it to be predicted from.
        if not any(self.learnt[1:]):
            raise ValueError("nothing to learn in this row")

    @property
    def prompt(self) -> int:
        """Tokens before the first learnt one."""
        return self.learnt.index(True)

    @property
    def counted(self) -> int:
        """Tokens that count in the loss."""
        return sum(self.learnt[1:])


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows × columns, padded on the left.

    ``labels[r][c]`` is the token at ``input_ids[r][c]`` where it is learnt, else
    :data:`IGNORED`. ``positions`` count from 0 at a row's first real token. ``keep`` is how many
    final columns of logits cover every learnt token: logits of column ``c`` predict column
    ``c + 1``, so it is one more than the distance of the first learnt column from the end.
    """

    input_ids: tuple[tuple[int, ...], ...]
    attention_mask: tuple[tuple[int, ...], ...]
    positions: tuple[tuple[int, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    keep: int
    learnt: int

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return sum(map(sum, self.attention_mask))


def pad(examples: Sequence[Example], pad_token: int) -> Batch:
    """Pad ``examples`` on the left to the longest of them."""
    width = max(len(example.tokens) for example in examples)
    input_ids, mask, positions, labels = [], [], [], []
    for example in examples:
        length = len(example.tokens)
        gap = width - length
        input_ids.append((pad_token,) * gap + example.tokens)
        mask.append((0,) * gap + (1,) * length)
        positions.append((0,) * gap + tuple(range(length)))
        kept = (
            token if learnt and index else IGNORED
            for index, (token, learnt) in enumerate(
                zip(example.tokens, example.learnt, strict=True)
            )
        )
        labels.append((IGNORED,) * gap + tuple(kept))
    first = min(next(c for c, label in enumerate(row) if label != IGNORED) for row in labels)
    return Batch(
        input_ids=tuple(input_ids),
        attention_mask=tuple(mask),
        positions=tuple(positions),
        labels=tuple(labels),
        keep=width - first + 1,
        learnt=sum(label != IGNORED for row in labels for label in row),
    )


@dataclass
class Batches:
    """The batches of a run, addressed by step number, for ever: epochs follow one another."""

    examples: Sequence[Example]
    rows: int
    seed: int
    pad_token: int
    # The epoch last asked for and its order: a shuffle of a million rows is not for every step.
    _known: tuple[int, list[list[int]]] = field(default=(-1, []), init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.examples:
            raise ValueError("no examples")

    @property
    def per_epoch(self) -> int:
        """Batches of one pass; rows that do not fill the last one wait for another shuffle."""
        return max(1, len(self.examples) // self.rows)

    def at(self, step: int) -> Batch:
        """The batch of ``step`` (from 0)."""
        return pad(self.rows_at(step), self.pad_token)

    def rows_at(self, step: int) -> list[Example]:
        """The rows of ``step`` (from 0)."""
        epoch, index = divmod(step, self.per_epoch)
        if self._known[0] != epoch:
            self._known = (epoch, self._order(epoch))
        return [self.examples[i] for i in self._known[1][index]]

    def _order(self, epoch: int) -> list[list[int]]:
        # Seeding with text goes through SHA-512: the same on every platform and Python since 3.2.
        generator = random.Random(f"{self.seed}:{epoch}")  # noqa: S311 - a shuffle, not a secret
        order = list(range(len(self.examples)))
        generator.shuffle(order)
        batches: list[list[int]] = []
        span = self.rows * WINDOW
        for start in range(0, self.per_epoch * self.rows, span):
            window = order[start : min(start + span, self.per_epoch * self.rows)]
            window.sort(key=lambda i: (len(self.examples[i].tokens), i))
            cut = [window[i : i + self.rows] for i in range(0, len(window), self.rows)]
            generator.shuffle(cut)
            batches.extend(cut)
        return batches


def in_order(examples: Sequence[Example], rows: int, pad_token: int) -> Iterator[Batch]:
    """Every example once, longest first (so that memory peaks at once, not at the end)."""
    ordered = sorted(examples, key=lambda example: -len(example.tokens))
    for start in range(0, len(ordered), rows):
        yield pad(ordered[start : start + rows], pad_token)
