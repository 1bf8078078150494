"""The seam between transformers' continuous batching and what each request asks of it.

transformers calls its list of logits processors twice a step, in the thread that runs the model:
``prepare_tensor_args`` just before the forward pass, with every request of the flat batch in order,
and the list itself just after, with one row of scores for each request that gets a token. That is
all that is needed to give every request its own adapter and its own sampling, so this stands in for
that list, and nothing else inside transformers is touched. transformers is pinned to a version;
:func:`install` refuses one whose seam looks different.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from appliance.engines.lora import Adapter, FlatLora, Span, group_rows
from appliance.engines.sampling import GREEDY, Draw, mark_drawn


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """What one request wants of every step it takes part in."""

    draw: Draw
    adapter: Adapter | None


# A request cancelled between the scheduling of a step and its forward pass is still in the batch;
# nobody reads what it generates.
_CANCELLED = RequestPlan(GREEDY, None)


@dataclass
class BatchPlan:
    """Stands in for transformers' ``ContinuousBatchingLogitsProcessorList``."""

    lora: FlatLora
    tensors_required: int = 0
    do_processing: bool = True
    _plans: dict[str, RequestPlan] = field(default_factory=dict)
    _draws: list[Draw] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, request_id: str, plan: RequestPlan) -> None:
        """Plan a request before it is handed to transformers. From any thread."""
        with self._lock:
            self._plans[request_id] = plan

    def drop(self, request_id: str) -> None:
        """Forget a request that is finished or cancelled. From any thread."""
        with self._lock:
            self._plans.pop(request_id, None)

    # what transformers calls

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Tensor) -> Tensor:
        """Take note of the batch: rows by adapter, and how each request draws its next token."""
        with self._lock:
            plans = [self._plans.get(r.state.request_id, _CANCELLED) for r in requests_in_batch]
        spans, start = [], 0
        for request, plan in zip(requests_in_batch, plans, strict=True):
            stop = start + request.query_length
            spans.append(Span(start, stop, plan.adapter))
            start = stop
        self.lora.groups = group_rows(spans)
        self._draws = [
            plan.draw
            for request, plan in zip(requests_in_batch, plans, strict=True)
            if request.has_new_token
        ]
        return arg_storage

    def __call__(self, _input_ids: Tensor, scores: Tensor, _arguments: Tensor) -> Tensor:
        """Draw a token for each row that samples. ``scores`` is ``[rows, vocabulary]``."""
        mark_drawn(scores[: len(self._draws)], self._draws)
        return scores

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Accept no settings through transformers: they all come by :meth:`add`."""
        if kwargs:
            raise ValueError(f"unexpected settings {sorted(kwargs)}")

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Needs no tensors of its own."""


def install(plan: BatchPlan, manager: Any) -> None:
    """Make a ``ContinuousBatchingManager`` that is not started yet use ``plan``.

    Raises ``RuntimeError`` when this version of transformers has no such seam.
    """
    current = getattr(manager, "logit_processor", None)
    prepare = getattr(type(current), "prepare_tensor_args", None)
    expected = ["self", "requests_in_batch", "arg_storage"]
    if (
        prepare is None
        or list(inspect.signature(prepare).parameters) != expected
        or not {name for name in vars(current) if not name.startswith("_")}
        >= {"tensors_required", "do_processing"}
    ):
        raise RuntimeError("this version of transformers batches requests in an unknown way")
    manager.logit_processor = plan
