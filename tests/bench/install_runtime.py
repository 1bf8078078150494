"""How to put a wheelhouse into a virtual environment: link mode and bytecode, measured.

    python tests/bench/install_runtime.py WHEELHOUSE [ROUNDS]

WHEELHOUSE is a folder of wheels (a release's, for instance). Prints the median wall and
processor time of ``uv pip install`` for each way, the bytes each leaves on disk, and the processor
time of ``import torch`` afterwards, if torch is among the wheels, as it is in the seal: without
writing bytecode.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from uv import find_uv_bin

WAYS = {
    "hardlink + bytecode": ["--link-mode", "hardlink", "--compile-bytecode"],
    "hardlink": ["--link-mode", "hardlink"],
    "copy": ["--link-mode", "copy"],
}


def processor_seconds() -> float:
    """Processor time of all child processes that ended, which a busy machine does not blur."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def once(wheels: list[str], options: list[str]) -> tuple[float, float, int, float]:
    """Wall and processor seconds to install, bytes left on disk, processor seconds to import."""
    with tempfile.TemporaryDirectory(prefix="bench-runtime-") as folder:
        venv, cache = Path(folder) / "venv", Path(folder) / "cache"
        environment = {"PATH": os.defpath, "UV_CACHE_DIR": str(cache), "UV_OFFLINE": "1"}
        uv = [find_uv_bin(), "--quiet"]
        python = str(venv / "bin/python")
        started, before = time.monotonic(), processor_seconds()
        subprocess.run([*uv, "venv", "-p", sys.executable, venv], env=environment, check=True)
        install = [*uv, "pip", "install", "-p", python, "--no-index", "--no-deps", *options]
        subprocess.run([*install, *wheels], env=environment, check=True)
        seconds, used = time.monotonic() - started, processor_seconds() - before
        shutil.rmtree(cache)
        size = int(subprocess.check_output(["du", "-sk", venv]).split()[0]) * 1024
        before = processor_seconds()
        quiet = {"PYTHONDONTWRITEBYTECODE": "1"}  # as in the seal
        subprocess.run([python, "-c", "import torch"], check=False, capture_output=True, env=quiet)
        return seconds, used, size, processor_seconds() - before


def main() -> None:
    wheels = sorted(str(path) for path in Path(sys.argv[1]).glob("*.whl"))
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    compressed = sum(Path(wheel).stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {compressed / 1e6:.0f} MB, {os.cpu_count()} cores")
    base = 0.0
    for name, options in WAYS.items():
        runs = [once(wheels, options) for _round in range(rounds)]
        seconds, used, size, first = (
            statistics.median(values) for values in zip(*runs, strict=True)
        )
        base = base or seconds
        print(
            f"{name:20} {seconds:6.1f} s (×{seconds / base:4.2f})  {used:6.1f} s of processor  "
            f"{size / 1e6:6.0f} MB (×{size / compressed:.2f})  import torch {first:5.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("skipped: give a wheelhouse folder")
    else:
        main()
