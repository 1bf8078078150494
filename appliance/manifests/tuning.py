"""What an operator asks of a tuning run: :class:`TuningSpec`, the body of ``sovctl tune submit``.

A spec says *what* to train and how, never *where*: paths and digests are resolved by the control
plane into :class:`appliance.tuning.run.Run`. Every number has bounds, so that a slip of the
keyboard (a rank of 16000) is refused before it costs an hour, and unknown fields are refused so
that a misspelt one is not silently ignored.

>>> TuningSpec(name="icd10", base="smollm2-135m-instruct", dataset="icd10cm").steps
40
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

# A name is used in URLs (``base:adapter``), in file names and in the ledger.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


class EvaluationTask(StrEnum):
    """How held-out rows are judged, beside their loss, which is always measured."""

    LOSS = "loss"
    """Loss only."""
    ICD10CM = "icd10cm"
    """Greedy answer against the row's completion: chapter letter, and 3-character category."""


class Schedule(StrEnum):
    """The learning rate after warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Precision(StrEnum):
    """Number format of the frozen base weights while training; the adapter is always float32.

    ``auto`` takes bfloat16 where the hardware multiplies it natively (CUDA, or a CPU with AMX) and
    float32 elsewhere, where it is exact and was measured twice as fast.
    """

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class EvaluationSpec(_Strict):
    """What is measured on the held-out rows, before and after training."""

    heldout: int = Field(
        default=64, ge=1, le=100_000, description="Held-out rows used, from the first."
    )
    every: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Held-out loss every so many steps; 0: only at the ends.",
    )
    task: EvaluationTask = Field(
        default=EvaluationTask.LOSS, description="How answers are judged beside their loss."
    )


class TuningSpec(_Strict):
    """One fine-tuning run. Lengths are tokens, sizes are rows, rates are per step."""

    name: Name = Field(description="Name of the adapter that comes out; served as base:name.")
    base: Name = Field(description="A model of the current release.")
    dataset: Name = Field(description="A registered data set with a train split.")

    method: Literal["lora"] = Field(default="lora", description="How weights are adapted.")
    rank: int = Field(default=16, ge=1, le=256, description="Rank of the low-rank update.")
    alpha: int = Field(
        default=32, ge=1, le=1024, description="The update is scaled by alpha / rank."
    )
    dropout: float = Field(default=0.0, ge=0.0, le=0.5, description="Dropout before the update.")
    target_modules: Literal["all-linear"] = Field(
        default="all-linear",
        description="Which layers are adapted: every linear one but the output.",
    )

    precision: Precision = Field(
        default=Precision.AUTO, description="Number format of the base weights."
    )
    learning_rate: float = Field(default=1e-3, gt=0.0, le=0.1, description="Peak rate of AdamW.")
    schedule: Schedule = Field(default=Schedule.COSINE, description="Learning rate after warm-up.")
    warmup_steps: int = Field(default=3, ge=0, le=100_000, description="Steps up to the peak rate.")
    weight_decay: float = Field(default=0.0, ge=0.0, le=1.0, description="Decoupled weight decay.")
    max_gradient_norm: float = Field(
        default=1.0, gt=0.0, le=1000.0, description="Gradients are clipped."
    )

    steps: int = Field(default=40, ge=1, le=1_000_000, description="Optimiser steps.")
    batch_rows: int = Field(default=16, ge=1, le=1024, description="Rows of a step.")
    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Hosts that share the rows of a step; the loss is the same but for rounding.",
    )
    max_length: int = Field(
        default=256, ge=8, le=131_072, description="Longer rows are left out, counted."
    )
    seed: int = Field(
        default=1, ge=0, lt=2**32, description="Of initialisation, order and dropout."
    )

    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    checkpoint_every: int = Field(
        default=10, ge=1, le=100_000, description="Steps between checkpoints."
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps >= self.steps and self.warmup_steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be below steps ({self.steps})"
            )
        return self

    @model_validator(mode="after")
    def _every_worker_has_a_row(self) -> Self:
        if self.workers > self.batch_rows:
            raise ValueError(
                f"workers ({self.workers}) must not exceed batch_rows ({self.batch_rows})"
            )
        return self
