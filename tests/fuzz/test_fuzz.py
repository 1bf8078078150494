"""The fuzz targets run, and find nothing in a fixed number of tries. For longer runs by hand, see
``fuzz_bundle.py``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris is not installed (x86_64 only)")


def test_a_few_thousand_inputs_find_nothing(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fuzz_bundle.py")
    # Through a shell, which stays: the peak of memory a program is held to includes, on Linux, that
    # of who started it, and pytest may be large by now.
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, script, "-runs=6000", "-seed=3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done 6000 runs" in done.stderr
