"""What the training worker leaves for the driver: the adapter's files, and what was measured."""

from __future__ import annotations

import json
import shutil
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file

from appliance.tuning.checkpoints import adapter_weights
from appliance.tuning.evaluate import Evaluation
from appliance.tuning.files import publish, staged_folder
from appliance.tuning.run import Run, RunFolder

WEIGHTS, CONFIG, OUTCOME = "adapter_model.safetensors", "adapter_config.json", "outcome.json"


class Outcome(BaseModel):
    """``outcome.json`` beside the adapter; the card takes it over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    before: Evaluation
    after: Evaluation
    rows_trained_on: int
    rows_left_out: int
    precision: str
    device: str
    threads: int
    no_way_out: bool


def save_outcome(folder: RunFolder, run: Run, model: Any, outcome: Outcome) -> None:
    """Write the adapter and ``outcome.json`` to ``result/``, whole or not at all.

    The bytes follow from the run alone: no paths, no times, sorted lists.
    """
    if folder.result.exists():
        shutil.rmtree(folder.result)
    with staged_folder(folder.root) as staging:
        save_file(adapter_weights(model), staging / WEIGHTS, metadata={"format": "pt"})
        (staging / CONFIG).write_text(_config(run, model), encoding="utf-8")
        (staging / OUTCOME).write_text(outcome.model_dump_json(indent=2), encoding="utf-8")
        publish(staging, folder.result)


def _config(run: Run, model: Any) -> str:
    """PEFT's configuration, naming the base by name instead of by this machine's path."""
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": run.base.name, "inference_mode": True}
    plain = {
        key: sorted(value) if isinstance(value, set) else value for key, value in config.items()
    }
    return json.dumps(plain, indent=2, sort_keys=True, default=str) + "\n"
