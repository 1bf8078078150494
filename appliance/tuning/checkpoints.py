"""Checkpoints from which a run goes on bit for bit, and which a crash cannot half-write.

```
checkpoints/step-00000020/
  adapter_model.safetensors   LoRA weights, float32
  trainer.pt                  AdamW's moments and torch's random state (read with weights_only)
  checkpoint.json             step, run digest, SHA-256 of the two files: written last
```
A folder is filled under another name and renamed when durable. Batches and learning rate are
functions of the step number, so nothing else is state. The run keeps them itself rather than
through Ray's storage, so that a worker restarted by Ray, a job submitted anew and a test without
Ray all go on by the same path.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load, save_file

from appliance.tuning.files import file_digest, publish, staged_folder, write_atomically
from appliance.tuning.run import Digest
from appliance.tuning.team import ALONE, Team

WEIGHTS, TRAINER, MANIFEST = "adapter_model.safetensors", "trainer.pt", "checkpoint.json"

_KEPT = 2


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    run: Digest
    files: dict[str, Digest]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run. ``run`` is :meth:`appliance.tuning.run.Run.digest`."""

    folder: Path
    run: str

    def save(self, step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Write the state after ``step`` optimiser steps; older ones than the last two go."""
        target = self.folder / f"step-{step:08d}"
        if target.exists() and self._manifest(target) is None:
            shutil.rmtree(target)
        with staged_folder(self.folder) as staging:
            save_file(adapter_weights(model), staging / WEIGHTS)
            torch.save(_trainer_state(optimizer), staging / TRAINER)
            files = {name: file_digest(staging / name) for name in (WEIGHTS, TRAINER)}
            manifest = _Manifest(step=step, run=self.run, files=files)
            write_atomically(staging / MANIFEST, manifest.model_dump_json().encode())
            publish(staging, target)
        for old in sorted(self.folder.glob("step-*"))[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def restore(self, model: Any, optimizer: torch.optim.Optimizer, team: Team = ALONE) -> int:
        """Load the newest sound checkpoint of this run; return its step, 0 if there is none.

        The leader of a team reads it for all: two hosts may for a while see different files.
        """
        found = next(self._sound(), None) if team.leads else None
        folder, manifest = found if found is not None else (self.folder, None)
        number = team.shared(lambda: (manifest.step if manifest else 0).to_bytes(8, "big"))
        step = int.from_bytes(number, "big")
        if step:
            weights = team.shared((folder / WEIGHTS).read_bytes)
            trainer = team.shared((folder / TRAINER).read_bytes)
            set_peft_model_state_dict(model, load(weights))
            state = torch.load(io.BytesIO(trainer), weights_only=True, map_location="cpu")
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"]:
                torch.cuda.set_rng_state_all(state["cuda_rng"])
        return step

    def _sound(self) -> Iterator[tuple[Path, _Manifest]]:
        for folder in sorted(self.folder.glob("step-*"), reverse=True):
            manifest = self._manifest(folder)
            if manifest is not None and manifest.run == self.run:
                yield folder, manifest

    def _manifest(self, folder: Path) -> _Manifest | None:
        """The manifest, if it and the files it names are whole."""
        try:
            manifest = _Manifest.model_validate_json((folder / MANIFEST).read_bytes())
            found = {name: file_digest(folder / name) for name in (WEIGHTS, TRAINER)}
        except (OSError, ValidationError):
            return None
        return manifest if found == manifest.files else None


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """The LoRA tensors under PEFT's file names, contiguous on the CPU."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}


def _trainer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
