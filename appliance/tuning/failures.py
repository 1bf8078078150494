"""What goes wrong under training, told so that an operator can act on it."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import DiskFull, TuneOutOfMemory
from appliance.i18n import _
from appliance.manifests.tuning import TuningSpec

# torch's CPU allocator raises a plain RuntimeError; these are its words (c10/core/alignment).
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_NO_SPACE = ("No space left on device", "os error 28", "Disk quota exceeded")


@contextmanager
def explained(folder: Path, spec: TuningSpec) -> Iterator[None]:
    """Turn out-of-memory and out-of-space, however they are raised, into their errors."""
    try:
        yield
    except MemoryError as error:
        raise _out_of_memory(folder, spec) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _disk_full(folder) from error
        raise
    except Exception as error:  # safetensors and torch have their own classes for both
        text = str(error)
        if any(words in text for words in _NO_MEMORY):
            raise _out_of_memory(folder, spec) from error
        if any(words in text for words in _NO_SPACE):
            raise _disk_full(folder) from error
        raise


def _out_of_memory(folder: Path, spec: TuningSpec) -> TuneOutOfMemory:
    return TuneOutOfMemory(
        step=_last_step(folder) + 1, batch_rows=spec.batch_rows, max_length=spec.max_length
    )


def _disk_full(folder: Path) -> DiskFull:
    return DiskFull(
        path=folder,
        needed=_("about 200 MB"),
        free=f"{shutil.disk_usage(folder).free // 1_000_000} MB",
        reason=_("Checkpoints of the adapter and of the optimiser are written there."),
    )


def _last_step(folder: Path) -> int:
    """The last training step that was reported, 0 if none."""
    try:
        lines = (folder / "progress.jsonl").read_bytes().splitlines()
    except OSError:
        return 0
    steps = (json.loads(line) for line in lines[-50:])
    return max((line["step"] for line in steps if line["phase"] == "train"), default=0)
