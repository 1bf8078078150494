"""The workers of a run, and the few things they do together.

One worker is a team too, and does nothing here that costs it anything or changes a bit of its work.

    team = Team.of_ray_train()
    mine = team.share(rows)                  # every row is somebody's
    loss, stop = team.add_up(loss, gradients, stop)

Rank 0 leads: it alone evaluates, writes and reports, and the others wait for it in the next thing
done together. So a worker must never leave in silence: :meth:`Team.leave` closes its connections,
and whoever waits for it fails at once instead of for hours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

# The leader may evaluate for long while the others wait; a worker that dies closes its connections.
_PATIENCE = timedelta(hours=12)

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """Worker ``rank`` of ``size``; ``group`` is torch's process group, None for one alone."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def of_ray_train(cls) -> Team:
        """The team that Ray Train made, in one of its workers. All of them must call it."""
        import ray.train

        context = ray.train.get_context()
        rank, size = context.get_world_rank(), context.get_world_size()
        if size == 1:
            return cls()
        return cls(rank, size, distributed.new_group(backend="gloo", timeout=_PATIENCE))

    @property
    def alone(self) -> bool:
        """Whether there is nobody else."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this worker evaluates, writes and reports."""
        return self.rank == 0

    def share(self, rows: Sequence[T]) -> Sequence[T]:
        """This worker's rows of a step. Every so-manieth, because rows that stand together have
        like lengths: so the workers have like work."""
        return rows[self.rank :: self.size]

    def add_up(self, loss: float, gradients: Sequence[Tensor], stop: bool) -> tuple[float, bool]:
        """Replace each gradient by its sum over the workers; return the sum of losses, and whether
        any worker wants to stop. One message, and the same bits for all."""
        told = torch.tensor([loss, float(stop)], dtype=torch.float32)
        flat = torch.cat([told, *(each.flatten().float().cpu() for each in gradients)])
        distributed.all_reduce(flat, group=self.group)
        start = len(told)
        for each in gradients:
            end = start + each.numel()
            each.copy_(flat[start:end].view_as(each))
            start = end
        return flat[0].item(), bool(flat[1].item())

    def shared(self, make: Callable[[], bytes]) -> bytes:
        """What ``make`` returns at the leader, for all."""
        if self.alone:
            return make()
        content = make() if self.leads else b""
        size = torch.tensor([len(content)], dtype=torch.int64)
        distributed.broadcast(size, 0, group=self.group)
        if self.leads:
            data = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
        else:
            data = torch.empty(max(1, int(size.item())), dtype=torch.uint8)
        distributed.broadcast(data, 0, group=self.group)
        return content if self.leads else data.numpy().tobytes()[: int(size.item())]

    def leave(self) -> None:
        """Close this worker's connections: nothing is done together any more."""
        if not self.alone and distributed.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):
                distributed.destroy_process_group()


ALONE = Team()
