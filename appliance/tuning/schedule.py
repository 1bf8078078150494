"""Learning rate and time left, as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from appliance.manifests.tuning import Schedule, TuningSpec


def learning_rate(spec: TuningSpec, step: int) -> float:
    """The rate of optimiser step ``step`` (from 0): linear warm-up, then the spec's schedule.

    Linear and cosine end at a tenth of the peak in the last step, not at zero, so that the last
    steps still learn.
    """
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(1, spec.steps - 1 - spec.warmup_steps)
    left = {
        Schedule.CONSTANT: 1.0,
        Schedule.LINEAR: 1.0 - done,
        Schedule.COSINE: (1.0 + math.cos(math.pi * done)) / 2,
    }[spec.schedule]
    return spec.learning_rate * (0.1 + 0.9 * left)


def seconds_left(recent: Sequence[float], steps_left: int, afterwards: float) -> float:
    """Seconds to the end: the median of ``recent`` step times for each step left, and the rest."""
    return median(recent) * steps_left + afterwards
