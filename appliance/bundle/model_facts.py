"""What a model's own files say about it: ``config.json``, the front matter of its ``README.md``,
the headers of its safetensors. Kilobytes of a model of any size.

Written by whoever published the model, so it is a claim, and read as such: bounded, only text and
numbers, and whatever does not look as it should is left out rather than refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_TEXT = 1 << 20  # bytes of config.json or README.md that are read
_HEADER = 1 << 24  # bytes of a safetensors header that are read
_WORD = 200  # characters of a name


@dataclass(frozen=True)
class ModelFacts:
    """``parameters`` counts weights; ``base`` is the model it was made from; "" or 0 if unsaid."""

    architecture: str = ""
    family: str = ""
    parameters: int = 0
    task: str = ""
    base: str = ""
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


def read_model(files: Mapping[str, Path]) -> ModelFacts:
    """Facts about a model or an adapter; ``files`` maps its paths to where they are."""
    config = _json(files, "config.json")
    adapter = _json(files, "adapter_config.json")
    card = _front_matter(_head(files, "README.md"))
    return ModelFacts(
        architecture=next(iter(_words(config.get("architectures"))), ""),
        family=_word(config.get("model_type")) or _word(adapter.get("peft_type")),
        parameters=sum(_parameters(p) for n, p in files.items() if n.endswith(".safetensors")),
        task=_word(card.get("pipeline_tag")),
        base=_word(adapter.get("base_model_name_or_path"))
        or next(iter(_words(card.get("base_model"))), ""),
        datasets=_words(card.get("datasets")),
        languages=_words(card.get("language")),
    )


def _head(files: Mapping[str, Path], name: str) -> bytes:
    if name not in files:
        return b""
    with files[name].open("rb") as file:
        return file.read(_TEXT)


def _json(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    try:
        tree = json.loads(_head(files, name) or b"{}")
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _front_matter(readme: bytes) -> dict[str, Any]:
    """The YAML between two ``---`` lines at a file's start, as model hubs have it."""
    lines = readme.decode("utf-8", "replace").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:]:
        return {}
    text = "\n".join(lines[1 : lines.index("---", 1)])
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _parameters(path: Path) -> int:
    """Weights in a safetensors file: the sum of its tensors' elements."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 2 <= size <= _HEADER:
                return 0
            header = json.loads(file.read(size))
        shapes = [t["shape"] for name, t in header.items() if name != "__metadata__"]
        counts = [math.prod(shape) for shape in shapes]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0
    good = all(isinstance(count, int) and 0 <= count < 2**53 for count in counts)
    return sum(counts) if good else 0


def _word(value: object) -> str:
    """A short text without control characters, or nothing."""
    fine = isinstance(value, str) and 0 < len(value) <= _WORD and value.isprintable()
    return str(value) if fine else ""


def _words(value: object) -> tuple[str, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(word for item in listed[:100] if (word := _word(item)))
