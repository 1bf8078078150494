"""One run from a base model to an evaluated adapter: the body of the training worker.

    load → evaluate the base → train (checkpoints) → evaluate the adapter → save

Ray Train calls :func:`work` in its worker process; tests call :func:`train` directly. Everything
the run needs is in its folder (:mod:`appliance.tuning.run`) and so is everything it makes, so a
worker that was killed is simply started again: evaluations already made are read, training goes on
from the newest checkpoint, and the result is the same to the bit (same machine, same threads).

Several workers, on as many hosts, share the rows of each step and add up their gradients, so that
each does the step that one would do with all the rows: the loss is the same but for rounding. They
share the run's folder too, on the site's storage; only the first writes there.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from appliance.egress.verdict import no_way_out_here
from appliance.errors import (
    ApplianceError,
    TuneLossNotFinite,
    TuneNoRows,
    TuneStopped,
    TuneTemplateUnfit,
)
from appliance.tuning import datasets
from appliance.tuning.batches import Batches, Example, pad
from appliance.tuning.checkpoints import Checkpoints
from appliance.tuning.encode import Split, TemplateUnfit, read_split
from appliance.tuning.evaluate import Evaluation, evaluate, heldout_loss, steps_of
from appliance.tuning.failures import explained
from appliance.tuning.files import write_atomically
from appliance.tuning.model import attach, load_base, load_tokenizer, summed_loss
from appliance.tuning.outcome import Outcome, save_outcome
from appliance.tuning.run import Digest, Run, RunFolder, SilentFolder, line
from appliance.tuning.schedule import learning_rate, seconds_left
from appliance.tuning.team import ALONE, Team

# People wait for answers; nobody waits for a step: the serving replica goes first.
NICENESS = 10
_LATE_S = 10


class _BaseEvaluation(BaseModel):
    """``evaluation-base.json``: the figures, how long they took, and for which run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Digest
    seconds: float
    evaluation: Evaluation


@dataclass(frozen=True)
class _Rows:
    train: Split
    heldout: tuple[Example, ...]


Report = Callable[[dict[str, float]], None]


def work(config: dict[str, str]) -> None:
    """Ray Train's ``train_loop_per_worker``; ``config`` is ``{"run_dir": path}``.

    A failure that would only repeat itself (bad data, NaN, out of memory) is written to
    ``error.json`` and the worker ends normally, so that Ray does not try it again; the driver reads
    the file. Anything else propagates and is retried by Ray.
    """
    import ray.train

    os.nice(NICENESS)  # of this thread and those it starts; a worker process trains once
    team = Team.of_ray_train()
    folder = (RunFolder if team.leads else SilentFolder)(Path(config["run_dir"]))
    last = folder.load().spec.steps

    def report(metrics: dict[str, float]) -> None:
        # Ray's controller collects reports every two seconds and a worker waits for it, so one
        # report a step would cost more than the step; ``progress.jsonl`` is the live channel.
        if metrics["step"] == last:
            ray.train.report(metrics)

    take_part(folder, report, team)


def take_part(folder: RunFolder, report: Report, team: Team) -> None:
    """:func:`train`, ending as :func:`work` says it ends."""
    try:
        train(folder, report, team)
    except ApplianceError as error:
        folder.fail(error)
    except RuntimeError:  # so torch tells that another worker left
        if team.alone or not _explained_by_another(folder):
            raise
    finally:
        team.leave()


def _explained_by_another(folder: RunFolder) -> bool:
    """Whether another worker wrote why the run ends. Shared storage may show that a little late."""
    for _turn in range(_LATE_S):
        if folder.error.exists():
            return True
        time.sleep(1)
    return False


def train(folder: RunFolder, report: Report, team: Team = ALONE) -> None:
    """Do the whole run in ``folder``, or what is left of it; leaves ``result/`` but its card.

    Called by every worker of ``team``; only the leader evaluates and writes.

    Raises:
        TuneNoRows, TuneTemplateUnfit: the data set cannot be trained on.
        TuneLossNotFinite: the loss is NaN or infinite.
        TuneStopped: ``folder.stop`` appeared; a checkpoint was written.
        TuneOutOfMemory, DiskFull: the machine is too small.
    """
    run = folder.load()
    shut_at_first = no_way_out_here()
    with explained(folder.root, run.spec):
        torch.set_num_threads(run.threads or _threads_from_environment())
        # Warn only: an operator without a deterministic kernel makes a run unrepeatable, not wrong.
        torch.use_deterministic_algorithms(True, warn_only=True)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder.report(line("load", 0, 1))
        tokenizer = load_tokenizer(run.base.path)
        rows = _read(run, tokenizer)
        base = load_base(run.base.path, run.spec.precision, device)
        folder.report(line("load", 1, 1))

        before = _evaluate_base(folder, run, base, tokenizer, rows) if team.leads else None
        model = attach(base, run.spec)
        training = _Training(folder, run, model, rows, tokenizer.pad_token_id, report, team)
        training.go(afterwards=before.seconds if before is not None else 0.0)
        if before is None:
            return
        after = _evaluate(folder, run, model, tokenizer, rows, phase="evaluate-adapter")

        folder.report(line("save", 0, 1))
        outcome = Outcome(
            before=before.evaluation,
            after=after,
            rows_trained_on=len(rows.train.examples),
            rows_left_out=rows.train.left_out,
            precision=str(base.dtype).removeprefix("torch."),
            device=device.type,
            threads=torch.get_num_threads(),
            no_way_out=shut_at_first and no_way_out_here(),
        )
        save_outcome(folder, run, model, outcome)
        folder.report(line("save", 1, 1))


def _threads_from_environment() -> int:
    for name in ("APPLIANCE_TUNING_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return len(os.sched_getaffinity(0))


def _read(run: Run, tokenizer: Any) -> _Rows:
    spec = run.spec
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    splits = []
    try:
        for name, most in ((datasets.TRAIN, None), (datasets.HELDOUT, spec.evaluation.heldout)):
            split = read_split(run.dataset.path / name, tokenizer, spec.max_length, most)
            if not split.examples:
                raise TuneNoRows(
                    name=run.dataset.name,
                    split=name.removesuffix(".jsonl"),
                    max_length=spec.max_length,
                    left_out=split.left_out,
                )
            splits.append(split)
    except TemplateUnfit as error:
        raise TuneTemplateUnfit(
            name=run.dataset.name, base=run.base.name, reason=f"{error}."
        ) from error
    return _Rows(train=splits[0], heldout=splits[1].examples)


def _evaluate_base(
    folder: RunFolder, run: Run, base: Any, tokenizer: Any, rows: _Rows
) -> _BaseEvaluation:
    """The base's figures, measured once a run."""
    try:
        known = _BaseEvaluation.model_validate_json(folder.base_evaluation.read_bytes())
        if known.run == run.digest():
            return known
    except (OSError, ValidationError):
        pass
    started = time.monotonic()
    evaluation = _evaluate(folder, run, base, tokenizer, rows, phase="evaluate-base")
    measured = _BaseEvaluation(
        run=run.digest(), seconds=time.monotonic() - started, evaluation=evaluation
    )
    write_atomically(folder.base_evaluation, measured.model_dump_json().encode())
    return measured


def _evaluate(
    folder: RunFolder,
    run: Run,
    model: Any,
    tokenizer: Any,
    rows: _Rows,
    *,
    phase: Literal["evaluate-base", "evaluate-adapter"],
) -> Evaluation:
    task = run.spec.evaluation.task
    steps = steps_of(len(rows.heldout), task)
    done = 0
    folder.report(line(phase, 0, steps))

    def step() -> None:
        nonlocal done
        done += 1
        folder.report(line(phase, done, steps))

    evaluation = evaluate(model, tokenizer, rows.heldout, task, step)
    folder.report(line(phase, steps, steps, heldout_loss=evaluation.loss))
    return evaluation


@dataclass
class _Training:
    """The optimiser steps of a run, as one worker of ``team`` does them."""

    folder: RunFolder
    run: Run
    model: Any
    rows: _Rows
    pad_token: int
    report: Report
    team: Team
    stop_asked: bool = False

    def __post_init__(self) -> None:
        spec = self.run.spec
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        self.batches = Batches(self.rows.train.examples, spec.batch_rows, spec.seed, self.pad_token)
        self.checkpoints = Checkpoints(self.folder.checkpoints, self.run.digest())

    def go(self, afterwards: float) -> None:
        """Train from the newest checkpoint to the last step; the last evaluation will take
        ``afterwards`` seconds."""
        spec = self.run.spec
        start = self.checkpoints.restore(self.model, self.optimizer, self.team)
        recent: deque[tuple[float, int]] = deque(maxlen=10)
        self.model.train()
        for step in range(start, spec.steps):
            began = time.monotonic()
            loss, tokens = self._step(step)
            done = step + 1
            measured = self._heldout(done)
            if done % spec.checkpoint_every == 0 or done == spec.steps:
                self._save(done)
            recent.append((time.monotonic() - began, tokens))
            self._tell(done, loss, measured, recent, afterwards)
            if self._stops() and done < spec.steps:
                self._save(done)
                self.folder.report(line("stopped", done, spec.steps))
                raise TuneStopped(step=done, steps=spec.steps)

    def _save(self, done: int) -> None:
        if self.team.leads:
            self.checkpoints.save(done, self.model, self.optimizer)

    def _stops(self) -> bool:
        """Whether to stop after this step, on which all workers must agree."""
        return self.folder.stop.exists() if self.team.alone else self.stop_asked

    def _step(self, step: int) -> tuple[float, int]:
        """One optimiser step; its loss (nats per learnt token, before it) and its tokens."""
        rows = self.batches.rows_at(step)
        if not self.team.alone:
            # Dropout differs between workers, and a resumed run draws what it would have drawn.
            torch.manual_seed(self._seed(step))
        batch = pad(self.team.share(rows), self.pad_token)
        counted = sum(row.counted for row in rows)
        loss = summed_loss(self.model, batch, self.model.device) / counted
        value = loss.item()
        if self.team.alone:
            self._require_finite(step, value)
        torch.autograd.backward(loss)
        if not self.team.alone:
            gradients = [parameter.grad for parameter in self.parameters]
            stop = self.team.leads and self.folder.stop.exists()
            value, self.stop_asked = self.team.add_up(value, gradients, stop)
            self._require_finite(step, value)
        torch.nn.utils.clip_grad_norm_(self.parameters, self.run.spec.max_gradient_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.run.spec, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value, sum(len(row.tokens) for row in rows)

    def _require_finite(self, step: int, value: float) -> None:
        """Checked before the update, so that no checkpoint ever holds what NaN did to the
        weights."""
        if not math.isfinite(value):
            raise TuneLossNotFinite(
                step=step + 1, loss=value, learning_rate=self.run.spec.learning_rate
            )

    def _seed(self, step: int) -> int:
        text = f"{self.run.spec.seed}:{step}:{self.team.rank}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def _heldout(self, done: int) -> float | None:
        every = self.run.spec.evaluation.every
        if not self.team.leads or not every or done % every or done == self.run.spec.steps:
            return None
        return heldout_loss(self.model, self.rows.heldout, self.pad_token)

    def _tell(
        self,
        done: int,
        loss: float,
        measured: float | None,
        recent: deque[tuple[float, int]],
        afterwards: float,
    ) -> None:
        seconds = [took for took, _tokens in recent]
        steps = self.run.spec.steps
        rate = sum(tokens for _took, tokens in recent) / sum(seconds)
        left = seconds_left(seconds, steps - done, afterwards)
        self.folder.report(
            line(
                "train",
                done,
                steps,
                loss=round(loss, 4),
                heldout_loss=measured,
                tokens_per_second=round(rate, 1),
                eta_seconds=round(left, 1),
            )
        )
        self.report({"step": done, "loss": loss})
