"""Tokens a second of our loop under Ray Train against a bare PyTorch + PEFT loop, same batches.

    python tests/bench/tuning.py MODEL_DIR DATASET_DIR [--steps 4] [--rounds 3]

Both loops run in the same Ray Train worker, one round of each in turn, so that they share whatever
else the machine does. *Bare* is what one would write from PEFT's documentation: the model's own
loss over full logits, AdamW, nothing else. *Bare, kept logits* also computes logits for the learnt
columns only, as ours does, and so shows what Ray, progress lines and checkpoints cost. Batches,
precision and threads are the same for all. Prints medians and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

INSIDE = "APPLIANCE_BENCH_INSIDE"


def main() -> int:
    arguments = _arguments()
    if os.environ.get(INSIDE) != "1":
        command = ["unshare", "-rnmpf", "--mount-proc", "--kill-child", sys.executable, *sys.argv]
        return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode
    with tempfile.TemporaryDirectory(prefix="tune-bench-") as temp:
        figures = _under_ray(arguments, Path(temp))
    ours = statistics.median(figures["ours"])
    for name, rates in figures.items():
        median = statistics.median(rates)
        print(f"{name:20} {median:8.1f} tok/s   ours / it = {ours / median:.2f}   {rates}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _under_ray(arguments: argparse.Namespace, temp: Path) -> dict[str, list[float]]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_USAGE_STATS_REPORT_URL="http://127.0.0.1:9/",
        HF_HUB_OFFLINE="1",
        HOME=str(temp),  # Ray leaves a token in ~/.ray, which later clusters would go by
    )
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        _temp_dir=str(temp / "r"),
        _node_ip_address="127.0.0.1",
        object_store_memory=100_000_000,
        log_to_driver=False,
    )
    answer = temp / "figures.json"
    TorchTrainer(
        _measure,
        train_loop_config={**vars(arguments), "temp": str(temp), "answer": str(answer)},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="bench", storage_path=str(temp)),
    ).fit()
    figures: dict[str, list[float]] = json.loads(answer.read_text())
    return figures


def _measure(config: dict[str, Any]) -> None:
    import torch

    from appliance.manifests.tuning import Precision, TuningSpec
    from appliance.tuning.encode import read_split
    from appliance.tuning.loop import _Rows, _Training
    from appliance.tuning.model import attach, load_base, load_tokenizer
    from appliance.tuning.run import Resolved, Run, RunFolder

    torch.set_num_threads(config["threads"])
    steps, rounds = config["steps"], config["rounds"]
    spec = TuningSpec(
        name="bench", base="base", dataset="data", steps=steps * rounds + 4, checkpoint_every=steps
    )
    placed = Resolved(name="x", path=config["model"], digest="sha256:" + "0" * 64)
    run = Run(spec=spec, base=placed, dataset=placed, threads=None)
    tokenizer = load_tokenizer(config["model"])
    train = read_split(Path(config["dataset"]) / "train.jsonl", tokenizer, spec.max_length)
    device = torch.device("cpu")
    loops = {}
    for name in ("ours", "bare", "bare, kept logits"):
        model = attach(load_base(config["model"], Precision.AUTO, device), spec)
        model.train()
        root = Path(config["temp"]) / "run"
        root.mkdir(exist_ok=True)
        rows = _Rows(train=train, heldout=train.examples[:1])
        ours = _Training(
            RunFolder(root), run, model, rows, tokenizer.pad_token_id, 0.0, lambda _: None
        )
        loops[name] = ours if name == "ours" else _Bare(ours, kept=name != "bare")

    rates: dict[str, list[float]] = {name: [] for name in loops}
    # A first round warms the allocator up and is not counted.
    for number in range(-1, rounds):
        first = max(number, 0) * steps
        tokens = sum(ours.batches.at(step).tokens for step in range(first, first + steps))
        for name in sorted(loops, key=lambda name: (number % 2, name), reverse=number % 2 == 1):
            began = time.perf_counter()
            _go(loops[name], first, steps)
            if number >= 0:
                rates[name].append(round(tokens / (time.perf_counter() - began), 1))
    Path(config["answer"]).write_text(json.dumps(rates))


def _go(loop: Any, first: int, steps: int) -> None:
    """``steps`` steps from ``first``, with all that belongs to them: reports and a checkpoint."""
    from collections import deque

    if isinstance(loop, _Bare):
        loop.go(first, steps)
        return
    recent: deque[tuple[float, int]] = deque(maxlen=10)
    for step in range(first, first + steps):
        began = time.monotonic()
        loss, tokens = loop._step(step)
        recent.append((time.monotonic() - began, tokens))
        loop._tell(step + 1, loss, None, recent)
    loop.checkpoints.save(first + steps, loop.model, loop.optimizer)


class _Bare:
    """The loop of PEFT's documentation on the same batches."""

    def __init__(self, ours: Any, *, kept: bool) -> None:
        import torch

        self.model = ours.model
        self.batches = ours.batches
        self.kept = kept
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad], lr=1e-3
        )

    def go(self, first: int, steps: int) -> None:
        import torch

        from appliance.tuning.model import Tensors, summed_loss

        device = torch.device("cpu")
        for step in range(first, first + steps):
            batch = self.batches.at(step)
            if self.kept:
                loss = summed_loss(self.model, batch, device) / batch.learnt
            else:
                tensors = Tensors.of(batch, device)
                loss = self.model(
                    input_ids=tensors.input_ids,
                    attention_mask=tensors.attention_mask,
                    position_ids=tensors.position_ids,
                    labels=tensors.labels,
                ).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


if __name__ == "__main__":
    sys.exit(main())
