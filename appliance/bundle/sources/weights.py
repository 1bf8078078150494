"""What may enter a bundle as weights: safetensors whose header is sound, and nothing that runs.

A pickle is a program: loading one does whatever its author wrote. safetensors is a length (8 bytes,
little-endian), that many bytes of JSON, and numbers; its header can still lie about where the
numbers are, so it is checked here before a loader, often written in C, believes it. Source: the
format's description, https://github.com/huggingface/safetensors#format.

    refusal_of_name("pytorch_model.bin")       # why not, or None
    header = read_header(file, size)           # HeaderInvalid unless every tensor is where it says
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from appliance.i18n import _
from appliance.manifests.bundle import PICKLES, ArtefactKind

MAX_HEADER = 32 << 20
"""Bytes of JSON; 100,000 tensors take 12 MiB. (The reference reader stops at 100 MB.)"""

_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_OTHER_WEIGHTS = (".h5", ".keras", ".msgpack", ".onnx", ".tflite", ".gguf", ".ggml", ".ot", ".pb")
_CODE = (".py", ".pyc", ".so", ".dll", ".sh", ".ipynb", ".exe")

_MAX_SIZE = 2**63


class HeaderInvalid(ValueError):
    """The file is not safetensors. ``str()`` is a sentence."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its type and shape, and where its bytes are after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def refusal_of_name(path: str, kind: ArtefactKind = "model") -> str | None:
    """Why a file of this name is not taken; None if it may be.

    No kind may have pickles; what is loaded as a model may have other things neither.
    """
    lowered = path.lower()
    if lowered.endswith(PICKLES) and kind in {"model", "adapter", "dataset"}:
        return _("It may be a pickle, and loading a pickle runs the program in it.")
    if kind not in {"model", "adapter"}:
        return None
    if lowered.endswith(_OTHER_WEIGHTS):
        return _("It has weights in another format; only safetensors are taken.")
    if lowered.endswith(_CODE):
        return _("It is code that a loader could run; a bundle's models bring none.")
    return None


def refusal_of_content(path: str, location: Path, kind: ArtefactKind = "model") -> str | None:
    """Why a file is not taken for what is in it; None if it may be."""
    if kind not in {"model", "adapter", "dataset"}:
        return None
    with location.open("rb") as file:
        size = location.stat().st_size
        if path.lower().endswith(".safetensors"):
            try:
                read_header(file, size)
            except HeaderInvalid as error:
                return str(error)
            return None
        head = file.read(2)
        file.seek(0)
        # Every protocol from 2 on starts so (Python's pickletools), and a torch file is a ZIP.
        if len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5:
            return _("It is a pickle under another name; loading it runs the program in it.")
        if head == b"PK" and kind != "dataset":
            return _("It is an archive, as torch writes pickles; only safetensors are taken.")
    return None


def read_header(file: BinaryIO, size: int) -> tuple[Tensor, ...]:
    """The tensors of a file of ``size`` bytes, in the order of their data.

    Raises :class:`HeaderInvalid` unless the tensors fill what follows the header without a gap or
    an overlap, each with exactly the bytes its type and shape take.
    """
    lead = file.read(8)
    if len(lead) < 8:
        raise HeaderInvalid(_("It is too short for the length of a safetensors header."))
    length = int.from_bytes(lead, "little")
    if length > min(MAX_HEADER, size - 8):
        raise HeaderInvalid(
            _("Its first 8 bytes say {length} bytes of header; it is no safetensors file.").format(
                length=length
            )
        )
    text = file.read(length)
    if len(text) < length or not text.startswith(b"{"):
        raise HeaderInvalid(_("Its header is not a JSON object."))
    return _placed(_parse(text), size - 8 - length)


def _parse(text: bytes) -> list[Tensor]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise HeaderInvalid(_("Its header is not JSON: {why}.").format(why=error)) from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise HeaderInvalid(_("Its '__metadata__' is not a map of texts."))
    return [_tensor(name, value) for name, value in header.items()]


def _without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is there twice")
        found[key] = value
    return found


def _tensor(name: str, value: object) -> Tensor:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end], **rest}:
            numbers = [*shape, start, end]
            if not rest and dtype in _BITS and all(_is_size(n) for n in numbers):
                return Tensor(name, dtype, tuple(shape), start, end)
    raise HeaderInvalid(_("Its header does not say what '{name}' is.").format(name=name[:80]))


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _placed(tensors: list[Tensor], room: int) -> tuple[Tensor, ...]:
    """The tensors by place, if they fill ``room`` bytes exactly."""
    ordered = sorted(tensors, key=lambda tensor: (tensor.start, tensor.end))
    at = 0
    for tensor in ordered:
        bits = prod(tensor.shape) * _BITS[tensor.dtype]
        if tensor.start != at or tensor.end < at or (tensor.end - at) * 8 != bits:
            reason = _("'{name}' is not where its header says: bytes {start} to {end} of {room}.")
            raise HeaderInvalid(
                reason.format(name=tensor.name[:80], start=tensor.start, end=tensor.end, room=room)
            )
        at = tensor.end
    if at != room:
        reason = _("Its tensors take {taken} bytes, and {room} follow its header.")
        raise HeaderInvalid(reason.format(taken=at, room=room))
    return tuple(ordered)
