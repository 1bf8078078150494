"""Run inside a private network namespace: a Ray head, the tuning job, and a kill of its worker.

``python tests/integration/tuning_under_ray.py RUN_DIR {undisturbed|killed|stopped} TEMP`` prints
the job's exit status as its last line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

START = (
    *("start", "--head", "--node-ip-address=127.0.0.1", "--num-cpus=2"),
    *("--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"),
)


def main(run_dir: Path, disturbance: str, temp: Path) -> int:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_USAGE_STATS_REPORT_URL="http://127.0.0.1:9/",
        RAY_ADDRESS="127.0.0.1:6379",
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
        HOME=str(temp),
    )
    start_ray(temp)
    job = subprocess.Popen([sys.executable, "-m", "appliance.tuning.job", str(run_dir)])
    if disturbance == "killed":
        wait_for(lambda: trained_steps(run_dir) >= 7, job)
        os.kill(worker(), signal.SIGKILL)
    elif disturbance == "stopped":
        wait_for(lambda: trained_steps(run_dir) >= 2, job)
        job.send_signal(signal.SIGTERM)
    return job.wait(timeout=400)


def start_ray(temp: Path) -> None:
    """Start a head. Ray gives its own raylet 30 s, which a busy machine may not: then again."""
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    for attempt in range(3):
        started = subprocess.run(
            [*ray, *START, f"--temp-dir={temp / str(attempt)}"],
            check=False,
            stdout=subprocess.DEVNULL,
        )
        if started.returncode == 0:
            return
        subprocess.run([*ray, "stop", "--force"], check=False, stdout=subprocess.DEVNULL)
    raise RuntimeError("Ray does not start")


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline or job.poll() is not None:
            raise TimeoutError(f"the job never got there; it ended with {job.poll()}")
        time.sleep(0.02)


def trained_steps(run_dir: Path) -> int:
    try:
        lines = (run_dir / "progress.jsonl").read_text().splitlines()
    except OSError:
        return 0
    told = [json.loads(line) for line in lines]
    return max((line["step"] for line in told if line["phase"] == "train"), default=0)


def worker() -> int:
    """The process that Ray Train trains in, by the name Ray gives it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"RayTrainWorker" in command:
            return int(entry.name)
    raise LookupError("no training worker is running")


if __name__ == "__main__":
    print("status", main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])), flush=True)
