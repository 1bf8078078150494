"""A project's own wheel, built from its source tree: same tree, same bytes, no network."""

from __future__ import annotations

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

from appliance.bundle.cache import Inputs
from appliance.bundle.sources.desk import Desk, Step, run_step
from appliance.errors import BuildToolMissing
from appliance.i18n import _

_PARTS = ("pyproject.toml", "README.md", "LICENSE", "appliance", "playbooks")


def build(project: Path, artefact: str, desk: Desk) -> Path:
    """The wheel of ``project``; built only if its files changed. Raises ``BuildStepFailed``."""
    if not (project / "pyproject.toml").is_file():
        raise desk.missing(artefact, project, _("it holds no pyproject.toml."))
    inputs: Inputs = {"tree": _tree_digest(project), "epoch": desk.epoch}
    folder = desk.cache.make("own-wheel", inputs, lambda out: _build(project, artefact, out, desk))
    (wheel,) = folder.glob("*.whl")
    return wheel


def _build(project: Path, artefact: str, out: Path, desk: Desk) -> None:
    if find_spec("hatchling") is None:
        reason = _("It turns the source tree into a wheel.")
        raise BuildToolMissing(tool="hatchling", reason=reason)
    script = (
        "import os, sys; from hatchling.build import build_wheel; "
        "os.chdir(sys.argv[1]); build_wheel(sys.argv[2])"
    )
    command = (sys.executable, "-I", "-c", script, str(project.resolve()), str(out))
    step = Step(
        artefact,
        _("build the project's own wheel"),
        command,
        {"SOURCE_DATE_EPOCH": str(desk.epoch), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    with desk.progress.task(_("Building our own wheel"), None, "items") as task:
        run_step(step, desk, task)


def _tree_digest(project: Path) -> str:
    """One digest over the paths, executable bits and bytes of everything that enters the wheel."""
    tree = hashlib.sha256()
    for part in _PARTS:
        top = project / part
        files = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                executable = int(bool(path.stat().st_mode & 0o100))
                tree.update(f"{path.relative_to(project)}\0{executable}\0{content}\n".encode())
    return tree.hexdigest()
