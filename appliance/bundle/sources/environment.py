"""A throw-away Python environment made from pinned wheels only, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.bundle.sources.desk import Desk, Step, run_step
from appliance.bundle.sources.pins import read_lock
from appliance.bundle.sources.wheels import fetch
from appliance.errors import BuildToolMissing
from appliance.i18n import _

if TYPE_CHECKING:
    from appliance.progress import Task


def uv_program() -> str:
    """Path of the uv program that sovctl's environment holds."""
    if find_spec("uv") is None:
        raise BuildToolMissing(tool="uv", reason=_("It makes environments from wheels."))
    from uv import find_uv_bin

    return find_uv_bin()


@contextmanager
def environment(lock: Path, artefact: str, desk: Desk, task: Task) -> Iterator[Path]:
    """The interpreter of a fresh environment holding exactly what ``lock`` names.

    Removed when the block ends. Raises what :func:`fetch` raises, or ``BuildStepFailed``.
    """
    pins = read_lock(lock).pins
    wheels = fetch(pins, desk)
    uv = uv_program()
    with desk.cache.scratch() as folder:
        venv = folder / "venv"
        requirements = folder / "requirements.txt"
        requirements.write_text(
            "\n".join(
                f"{pin.name} @ {path.as_uri()} --hash=sha256:{path.parent.name}"
                for pin, path in wheels.items()
            )
        )
        make = Step(
            artefact,
            _("make an environment"),
            (uv, "venv", "--quiet", "--offline", "--no-config",
             "--python", desk.platform.python, str(venv)),
        )  # fmt: skip
        run_step(make, desk, task)
        fill = Step(
            artefact,
            _("fill the environment from wheels"),
            (uv, "pip", "install", "--offline", "--no-config", "--no-index", "--no-deps",
             "--require-hashes", "--cache-dir", str(folder / "uv"), "--link-mode", "hardlink",
             "--python", str(venv / "bin" / "python"), "-r", str(requirements)),
        )  # fmt: skip
        run_step(fill, desk, task)
        yield venv / "bin" / "python"
