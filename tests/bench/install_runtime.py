"""How to put a wheelhouse into a virtual environment: link mode and bytecode, measured.

    python tests/bench/install_runtime.py WHEELHOUSE [ROUNDS]

WHEELHOUSE is a folder of wheels (a release's, for instance). Prints the median wall time of
``uv pip install`` for each way, the bytes each leaves on disk, and how long the first
``import torch`` takes afterwards if torch is among the wheels.
"""

from __future__ import annotations

import os
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


def once(wheels: list[str], options: list[str]) -> tuple[float, int, float]:
    """Seconds to install, bytes left on disk (environment alone), seconds of the first import."""
    with tempfile.TemporaryDirectory(prefix="bench-runtime-") as folder:
        venv, cache = Path(folder) / "venv", Path(folder) / "cache"
        environment = {"PATH": os.defpath, "UV_CACHE_DIR": str(cache), "UV_OFFLINE": "1"}
        uv = [find_uv_bin(), "--quiet"]
        python = str(venv / "bin/python")
        started = time.monotonic()
        subprocess.run([*uv, "venv", "-p", sys.executable, venv], env=environment, check=True)
        install = [*uv, "pip", "install", "-p", python, "--no-index", "--no-deps", *options]
        subprocess.run([*install, *wheels], env=environment, check=True)
        seconds = time.monotonic() - started
        shutil.rmtree(cache)
        size = int(subprocess.check_output(["du", "-sk", venv]).split()[0]) * 1024
        started = time.monotonic()
        quiet = {"PYTHONDONTWRITEBYTECODE": "1"}  # as in the seal
        subprocess.run([python, "-c", "import torch"], check=False, capture_output=True, env=quiet)
        return seconds, size, time.monotonic() - started


def main() -> None:
    wheels = sorted(str(path) for path in Path(sys.argv[1]).glob("*.whl"))
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    compressed = sum(Path(wheel).stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {compressed / 1e6:.0f} MB, {os.cpu_count()} cores")
    base = 0.0
    for name, options in WAYS.items():
        runs = [once(wheels, options) for _round in range(rounds)]
        seconds, size, first = (statistics.median(values) for values in zip(*runs, strict=True))
        base = base or seconds
        print(
            f"{name:22} {seconds:7.1f} s  ×{seconds / base:4.2f}  {size / 1e6:7.0f} MB "
            f"(×{size / compressed:.2f})  first import torch {first:5.1f} s"
        )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print("skipped: give a wheelhouse folder")
    else:
        main()
