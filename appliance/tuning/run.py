"""A run on disk: what the control plane writes for the job, and what the job leaves behind.

```
RUN_DIR/
  spec.json            Run: the TuningSpec and everything resolved (paths, digests, threads)
  stop                 exists: finish the step, write a checkpoint, end
  progress.jsonl       ProgressLine, appended
  checkpoints/step-…/  adapter_model.safetensors, trainer.pt, checkpoint.json
  evaluation-base.json the base's figures, so that a resumed run does not measure them again
  error.json           ApplianceError.as_json(), if it failed
  result/              adapter_model.safetensors, adapter_config.json, card.json
  result.json          Result: written last; its presence is the job's success
```

Nothing here imports torch: the gateway reads and writes these too.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from appliance.errors import ApplianceError, TuneRunInvalid
from appliance.manifests.tuning import TuningSpec
from appliance.tuning.files import write_atomically

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]

Phase = Literal["load", "evaluate-base", "train", "evaluate-adapter", "save", "stopped", "done"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resolved(_Strict):
    """A name the operator typed, and the folder and content it stood for at submission."""

    name: str
    path: Path
    digest: Digest


class Run(_Strict):
    """``spec.json``. ``threads`` are OpenMP threads of the training worker (None: its share)."""

    spec: TuningSpec
    base: Resolved
    dataset: Resolved
    threads: int | None = Field(None, ge=1, le=512)

    def digest(self) -> str:
        """What makes two runs the same run: the spec and the content, not where it lies.

        A checkpoint carries this digest and is resumed only under the same one. One worker goes
        without saying, as it did before there could be more.
        """
        spec = self.spec.model_dump(mode="json")
        if spec["workers"] == 1:
            del spec["workers"]
        identity: dict[str, Any] = {
            "spec": spec,
            "base": self.base.digest,
            "dataset": self.dataset.digest,
        }
        return "sha256:" + hashlib.sha256(rfc8785.dumps(identity)).hexdigest()


class ProgressLine(_Strict):
    """One line of ``progress.jsonl``.

    ``step`` of ``steps`` counts optimiser steps while training and evaluation batches while
    evaluating. ``eta_seconds`` is for the whole run, None until a step was timed. ``loss`` is in
    nats per learnt token.
    """

    phase: Phase
    step: int
    steps: int
    loss: float | None = None
    heldout_loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    at: datetime


class Result(_Strict):
    """``result.json``: where the adapter lies, relative to the run, and the digest of each file."""

    run: Digest
    folder: Literal["result"] = "result"
    files: dict[str, Digest]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run. Holding it touches no disk."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def stop(self) -> Path:
        return self.root / "stop"

    @property
    def progress(self) -> Path:
        return self.root / "progress.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def base_evaluation(self) -> Path:
        return self.root / "evaluation-base.json"

    @property
    def error(self) -> Path:
        return self.root / "error.json"

    @property
    def result(self) -> Path:
        return self.root / "result"

    @property
    def result_file(self) -> Path:
        return self.root / "result.json"

    def load(self) -> Run:
        """Read ``spec.json``. Raises :class:`TuneRunInvalid`."""
        try:
            return Run.model_validate_json(self.spec.read_bytes())
        except OSError as error:
            raise TuneRunInvalid(path=self.spec, reason=error.strerror or error) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise TuneRunInvalid(path=self.spec, reason=f"{field}: {first['msg']}") from error

    def create(self, run: Run) -> None:
        """Make the folder and write ``spec.json``; an existing run of the same content stays."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(self.spec, run.model_dump_json(indent=2).encode())

    def fail(self, error: ApplianceError) -> None:
        """Write ``error.json``."""
        text = json.dumps(error.as_json(), ensure_ascii=False, indent=2)
        write_atomically(self.error, text.encode())

    def report(self, line: ProgressLine) -> None:
        """Append to ``progress.jsonl``: one write, so a reader never sees half a line twice."""
        descriptor = os.open(self.progress, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.model_dump_json(exclude_none=True).encode() + b"\n")
        finally:
            os.close(descriptor)


class SilentFolder(RunFolder):
    """The same for a worker that does not lead: it reads, and reports nothing."""

    __slots__ = ()

    def report(self, line: ProgressLine) -> None:
        """The leader reports."""


def line(
    phase: Phase,
    step: int,
    steps: int,
    *,
    loss: float | None = None,
    heldout_loss: float | None = None,
    tokens_per_second: float | None = None,
    eta_seconds: float | None = None,
) -> ProgressLine:
    """A progress line stamped with the present time."""
    return ProgressLine(
        phase=phase,
        step=step,
        steps=steps,
        loss=loss,
        heldout_loss=heldout_loss,
        tokens_per_second=tokens_per_second,
        eta_seconds=eta_seconds,
        at=datetime.now(UTC),
    )
