"""A small run over the tiny model, whole and on disk."""

from __future__ import annotations

import json
import random
from pathlib import Path

from engine_fixtures import make_model

from appliance.manifests.tuning import TuningSpec
from appliance.tuning.files import folder_files, tree_digest
from appliance.tuning.run import Resolved, Run, RunFolder


def make_dataset(folder: Path, train: int = 64, heldout: int = 8) -> Path:
    """Rows that a 2-layer model learns in a few steps: the category repeats the diagnosis."""
    folder.mkdir(parents=True)
    generator = random.Random(3)
    rows = []
    for number in range(train + heldout):
        code = f"{generator.choice('ABCD')}{number:02}"
        rows.append(json.dumps({"prompt": f"Dx {code[0] * 3}:", "completion": f" {code}"}))
    (folder / "heldout.jsonl").write_text("\n".join(rows[:heldout]) + "\n")
    (folder / "train.jsonl").write_text("\n".join(rows[heldout:]) + "\n")
    return folder


def make_run(root: Path, inputs: Path, **settings: object) -> RunFolder:
    """A run folder under ``root`` over a model and a data set under ``inputs``, made if missing."""
    model, data = inputs / "model", inputs / "data"
    if not model.exists():
        make_model(model)
    if not data.exists():
        make_dataset(data)
    spec = TuningSpec.model_validate(
        {
            "name": "icd10",
            "base": "tiny",
            "dataset": "dx",
            "rank": 4,
            "alpha": 8,
            "dropout": 0.1,
            "learning_rate": 0.01,
            "warmup_steps": 1,
            "steps": 12,
            "batch_rows": 4,
            "checkpoint_every": 5,
            "evaluation": {"task": "icd10cm", "heldout": 8},
            **settings,
        }
    )
    run = Run(
        spec=spec,
        base=Resolved(name="tiny", path=model, digest=tree_digest(folder_files(model))),
        dataset=Resolved(name="dx", path=data, digest=tree_digest(folder_files(data))),
        threads=1,
    )
    folder = RunFolder(root)
    folder.create(run)
    return folder
