"""LoRA adapters read from PEFT's files, and applied per request inside one flat batch.

Continuous batching packs the tokens of all requests in one row, ``[1, tokens, features]``, so an
adapter cannot be switched on for the model as a whole. Here a step's composition says which rows of
the flat batch belong to which adapter, and a forward hook on each adapted linear layer adds
``scale * B(A(x))`` to those rows alone (S-LoRA, arXiv:2311.03285, without its kernels). A step
without adapters pays one attribute look-up a layer; a model without adapters has no hooks at all.

A request holds its adapter's weights itself, so that unloading one never touches a request under
way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from appliance.engines.engine import AdapterUnusable

_KEY_PREFIX = "base_model.model."
_HALVES = {".lora_A.weight": "A", ".lora_B.weight": "B"}

# Settings of peft.LoraConfig 0.21 that leave inference as computed here. A setting that is not
# named and not empty may change what the adapter computes, so it is refused.
_NEUTRAL_SETTINGS = frozenset(
    {
        *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode"),
        *("base_model_name_or_path", "revision", "r", "lora_alpha", "lora_dropout", "use_rslora"),
        *("bias", "init_lora_weights", "target_modules", "exclude_modules"),
        *("layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size"),
    }
)
# PiSSA, OLoRA, CorDA, LoftQ and EVA change the base weights as well: the adapter alone is not it.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "orthogonal", None)


@dataclass(frozen=True, slots=True)
class LowRank:
    """One layer's update: ``a`` is ``[rank, in]``, ``b`` is ``[out, rank]`` times the scale."""

    a: Tensor
    b: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """The update of ``rows``, ``[n, in]`` → ``[n, out]``."""
        return (rows @ self.a.T) @ self.b.T


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A loaded adapter: its updates by the name of the layer they belong to."""

    name: str
    layers: Mapping[str, LowRank]


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``start`` to ``stop`` of the flat batch belong to one request."""

    start: int
    stop: int
    adapter: Adapter | None


@dataclass(frozen=True, slots=True)
class Group:
    """All rows of the flat batch that one adapter is for; ``rows`` is None when it is every row."""

    adapter: Adapter
    rows: Tensor | None


def group_rows(spans: Sequence[Span]) -> tuple[Group, ...]:
    """Gather a batch's rows by adapter; rows for the base model are in no group."""
    chosen: dict[Adapter, list[int]] = {}
    for span in spans:
        if span.adapter is not None:
            chosen.setdefault(span.adapter, []).extend(range(span.start, span.stop))
    total = spans[-1].stop if spans else 0
    return tuple(
        Group(adapter, None if len(rows) == total else torch.tensor(rows))
        for adapter, rows in chosen.items()
    )


@dataclass(slots=True)
class FlatLora:
    """Adds adapters' updates to a model's linear layers, following the current batch's groups.

    Only the thread that runs the model sets ``groups``; hooks may be added from another thread at
    any time, because a hook does nothing for rows that no group names.
    """

    model: nn.Module
    groups: tuple[Group, ...] = ()
    _hooked: set[str] = field(default_factory=set)

    def prepare(self, adapter: Adapter) -> None:
        """Hook the layers an adapter needs; layers already hooked stay as they are."""
        for name in adapter.layers.keys() - self._hooked:
            self.model.get_submodule(name).register_forward_hook(self._hook(name))
            self._hooked.add(name)

    def _hook(self, name: str) -> Any:
        def add_updates(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # [1, tokens, features], the output in place: nothing else refers to it yet
            for group in self.groups:
                update = group.adapter.layers.get(name)
                if update is None:
                    continue
                if group.rows is None:
                    output[0] += update(inputs[0][0])
                else:
                    output[0].index_add_(0, group.rows, update(inputs[0][0][group.rows]))

        return add_updates


def read_adapter(name: str, folder: Path, model: nn.Module) -> Adapter:
    """Read a PEFT LoRA adapter for ``model``, checking every setting, key and shape.

    Raises ``AdapterUnusable``.
    """
    rank, scale = _read_config(folder / "adapter_config.json")
    halves = _read_halves(folder / "adapter_model.safetensors")
    reference = next(model.parameters())
    layers = {}
    for layer, pair in halves.items():
        a, b = _checked(layer, pair, rank, model)
        layers[layer] = LowRank(
            a=a.to(reference.device, reference.dtype),
            b=(b.float() * scale).to(reference.device, reference.dtype),
        )
    if not layers:
        raise AdapterUnusable("it holds no weights")
    return Adapter(name, layers)


def _read_config(path: Path) -> tuple[int, float]:
    """Rank and scale of an ``adapter_config.json``."""
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AdapterUnusable(f"adapter_config.json cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterUnusable("adapter_config.json does not describe a LoRA adapter")
    if config.get("bias", "none") != "none":
        raise AdapterUnusable("it trains biases, which this engine does not apply")
    if config.get("init_lora_weights", True) not in _PLAIN_INITIALISATIONS:
        raise AdapterUnusable(
            f"its initialisation {config['init_lora_weights']!r} changes the base model"
        )
    for setting, value in config.items():
        if setting not in _NEUTRAL_SETTINGS and value:
            raise AdapterUnusable(f"its setting {setting!r} is not supported by this engine")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= 1024:
        raise AdapterUnusable("its rank is not a whole number from 1 to 1024")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise AdapterUnusable("its lora_alpha is not a number")
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _read_halves(path: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of an ``adapter_model.safetensors`` by layer and half."""
    halves: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is not a mapping
                layer, half = _split_key(key)
                halves.setdefault(layer, {})[half] = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise AdapterUnusable(f"adapter_model.safetensors cannot be read: {error}") from error
    return halves


def _split_key(key: str) -> tuple[str, str]:
    for ending, half in _HALVES.items():
        if key.startswith(_KEY_PREFIX) and key.endswith(ending):
            return key[len(_KEY_PREFIX) : -len(ending)], half
    raise AdapterUnusable(f"{key!r} is not a LoRA weight")


def _checked(
    layer: str, pair: Mapping[str, Tensor], rank: int, model: nn.Module
) -> tuple[Tensor, Tensor]:
    """Both halves of one layer's update, fitting the model. Raises ``AdapterUnusable``."""
    if pair.keys() != {"A", "B"}:
        raise AdapterUnusable(f"{layer} has only one of lora_A and lora_B")
    try:
        target = model.get_submodule(layer)
    except AttributeError:
        raise AdapterUnusable(f"the base model has no layer {layer}") from None
    if not isinstance(target, nn.Linear):
        raise AdapterUnusable(f"{layer} is not a linear layer")
    # The output layer sees only the rows that predict a token, not the flat batch.
    if target is getattr(model, "lm_head", None):
        raise AdapterUnusable("it adapts the output layer, which this engine does not support")
    expected = {"A": (rank, target.in_features), "B": (target.out_features, rank)}
    for half, tensor in pair.items():
        if tuple(tensor.shape) != expected[half]:
            raise AdapterUnusable(
                f"{layer}.lora_{half} is {tuple(tensor.shape)}, expected {expected[half]}"
            )
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise AdapterUnusable(f"{layer}.lora_{half} holds values that are not finite numbers")
    return pair["A"], pair["B"]
