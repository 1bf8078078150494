"""The tuning job under a real Ray, in a network namespace of its own: whole, killed, stopped."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit"))

from tuning_fixtures import make_run

from appliance.layout import Home
from appliance.registry import Registry
from appliance.tuning import adapters
from appliance.tuning.files import file_digest
from appliance.tuning.run import ProgressLine, RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DRIVER = Path(__file__).with_name("tuning_under_ray.py")

# Long enough that Ray, which looks for signals once a second, hears SIGTERM before the last step.
STEPS = 400


def submit(folder: RunFolder, disturbance: str) -> int:
    """Run the job to its end beside a Ray head that lives just as long; its exit status."""
    # Ray's sockets need a short path.
    temp = Path(tempfile.mkdtemp(prefix="tune-ray-"))
    try:
        done = subprocess.run(
            [
                *("unshare", "-rnmpf", "--mount-proc", "--kill-child"),
                *(sys.executable, str(DRIVER), str(folder.root), disturbance, str(temp)),
            ],
            capture_output=True,
            text=True,
            timeout=800,
            check=False,
        )
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("status ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    return int(lines[-1].split()[1])


def steps(folder: RunFolder) -> list[int]:
    told = map(ProgressLine.model_validate_json, folder.progress.read_text().splitlines())
    return [line.step for line in told if line.phase == "train"]


def weights(folder: RunFolder) -> str:
    return file_digest(folder.result / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("runs") / "whole", inputs, steps=STEPS)
    assert submit(folder, "undisturbed") == 0
    return folder


def test_the_adapter_of_a_job_is_registered_and_verified(
    undisturbed: RunFolder, tmp_path: Path
) -> None:
    assert steps(undisturbed) == list(range(1, STEPS + 1))
    home = Home(tmp_path)
    adapters.ensure_signing_key(home)
    with Registry.open(home) as registry:
        record = adapters.register(home, registry, undisturbed.root)
        adapters.promote(home, registry, "icd10")
        assert adapters.verify(home, registry, "icd10", record.base_digest).is_dir()


def test_a_killed_worker_is_started_again_and_ends_at_the_same_bits(
    undisturbed: RunFolder, inputs: Path, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "killed", inputs, steps=STEPS)
    assert submit(folder, "killed") == 0
    told = steps(folder)
    restarts = [step for before, step in pairwise(told) if step <= before]
    assert len(restarts) == 1, told
    assert restarts[0] % 5 == 1
    assert weights(folder) == weights(undisturbed)


def test_sigterm_saves_and_the_next_submission_goes_on(
    undisturbed: RunFolder, inputs: Path, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "stopped", inputs, steps=STEPS)
    assert submit(folder, "stopped") == 130
    assert not folder.result_file.exists()
    stopped_at = steps(folder)[-1]
    assert 2 <= stopped_at < STEPS
    assert submit(folder, "undisturbed") == 0
    assert steps(folder) == list(range(1, STEPS + 1))
    assert weights(folder) == weights(undisturbed)


def test_without_ray_the_job_says_so(inputs: Path, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "alone", inputs)
    done = subprocess.run(
        [sys.executable, "-m", "appliance.tuning.job", str(folder.root)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert "tune-cluster-unreachable" in folder.error.read_text(), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
