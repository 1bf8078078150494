"""Two workers do what one does, and neither waits for one that is gone. Real processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_tuning_loop import adapter, lines, nothing
from tuning_fixtures import make_run

from appliance.tuning.loop import train
from appliance.tuning.run import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

WORKER = Path(__file__).with_name("tuning_worker.py")


def two_workers(folder: RunFolder, mishap: str = "none") -> list[int]:
    """Run both to their end; their exit statuses."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    workers = [
        subprocess.Popen([sys.executable, WORKER, folder.root, str(rank), "2", str(port), mishap])
        for rank in range(2)
    ]
    return [worker.wait(timeout=900) for worker in workers]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="module")
def by_two(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("team") / "run", inputs, workers=2)
    assert two_workers(folder) == [0, 0]
    return folder


def test_the_loss_is_that_of_one_worker_but_for_rounding(inputs: Path, tmp_path: Path) -> None:
    alone = make_run(tmp_path / "one", inputs, dropout=0.0)
    train(alone, nothing)
    team = make_run(tmp_path / "two", inputs, dropout=0.0, workers=2)
    assert two_workers(team) == [0, 0]
    losses = [[each.loss for each in lines(run) if each.phase == "train"] for run in (alone, team)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert [each.step for each in lines(team) if each.phase == "train"] == list(range(1, 13))
    one, two = (load_file(run.result / "adapter_model.safetensors") for run in (alone, team))
    assert all((one[name] - two[name]).abs().max() < 1e-2 for name in one)


def test_a_worker_that_dies_ends_both_and_they_go_on_to_the_same_bits(
    by_two: RunFolder, inputs: Path, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run", inputs, workers=2)
    leader, other = two_workers(folder, "killed")
    assert (leader != 0, other, folder.error.exists()) == (True, 9, False)
    assert two_workers(folder) == [0, 0]
    assert adapter(folder) == adapter(by_two)


def test_what_one_worker_suffers_is_told_for_all(inputs: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", inputs, workers=2)
    assert two_workers(folder, "memory") == [0, 0], "Ray is not to try again"
    assert json.loads(folder.error.read_bytes())["code"] == "tune-out-of-memory"
