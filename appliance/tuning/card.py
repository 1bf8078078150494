"""The card of an adapter: what it came from, how it was made, what it is worth. Signed with it.

Everything is named by digest, so that a card found alone can be matched with its base, data set,
code and configuration, and nothing in it can be changed without breaking the adapter's signature.
It holds no row of the data set and no path of the machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

import rfc8785
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

import appliance
from appliance.manifests.tuning import TuningSpec
from appliance.tuning.files import file_digest
from appliance.tuning.run import Digest, Run

_LIBRARIES = ("torch", "transformers", "peft", "ray", "safetensors")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Named(_Strict):
    """Something by its name and content."""

    name: str
    digest: Digest


class Code(_Strict):
    """The appliance that trained it: its version and the digest of its Python files."""

    version: str
    digest: Digest


class Figures(_Strict):
    """Held-out figures; the same fields as :class:`appliance.tuning.evaluate.Evaluation`."""

    rows: int = Field(ge=1)
    loss: float
    chapter_accuracy: float | None = None
    category_accuracy: float | None = None


class Training(_Strict):
    """How it ran. ``precision`` is that of the frozen base.

    ``no_way_out``: the process that trained had none, when it began and when it was done, as it
    could tell itself (:func:`appliance.egress.verdict.no_way_out_here`).
    """

    rows_trained_on: int
    rows_left_out: int
    precision: str
    device: str
    threads: int
    no_way_out: bool


class AdapterCard(_Strict):
    """``card.json``."""

    schema_version: Literal[1] = 1
    name: str
    base: Named
    dataset: Named
    code: Code
    config: TuningSpec
    config_digest: Digest
    seed: int
    training: Training
    before: Figures
    after: Figures
    libraries: dict[str, str]
    created: AwareDatetime

    def to_bytes(self) -> bytes:
        """The card as RFC 8785 JSON: one content, one form."""
        return rfc8785.dumps(self.model_dump(mode="json")) + b"\n"


def describe(
    run: Run, training: Training, before: Figures, after: Figures, created: datetime
) -> AdapterCard:
    """The card of the adapter that ``run`` made."""
    config: dict[str, JsonValue] = run.spec.model_dump(mode="json")
    return AdapterCard(
        name=run.spec.name,
        base=Named(name=run.base.name, digest=run.base.digest),
        dataset=Named(name=run.dataset.name, digest=run.dataset.digest),
        code=Code(version=appliance.__version__, digest=code_digest()),
        config=run.spec,
        config_digest="sha256:" + hashlib.sha256(rfc8785.dumps(config)).hexdigest(),
        seed=run.spec.seed,
        training=training,
        before=before,
        after=after,
        libraries=library_versions(),
        created=created.astimezone(UTC),
    )


@cache
def code_digest() -> str:
    """One digest over the Python files of the installed ``appliance`` package."""
    root = Path(appliance.__file__).parent
    files: Mapping[str, str] = {
        path.relative_to(root).as_posix(): file_digest(path) for path in sorted(root.rglob("*.py"))
    }
    return "sha256:" + hashlib.sha256(rfc8785.dumps(dict(files))).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the result."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
