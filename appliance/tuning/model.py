"""The base model and its LoRA adapter in memory, and what one batch costs through them.

The base is loaded from safetensors only, with no code from its folder
(``trust_remote_code=False``), and frozen. LoRA (Hu et al., 2021) parameters are float32 whatever
the base is: AdamW's updates, a thousandth of a weight, are lost in bfloat16's 8 bits of mantissa.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance.manifests.tuning import Precision, TuningSpec
from appliance.tuning.batches import IGNORED, Batch


def native_precision(device: torch.device) -> torch.dtype:
    """What ``auto`` means on ``device``.

    Without AMX a CPU of the AVX-512 generation multiplies bfloat16 matrices at half the rate of
    float32 (82 against 156 GFLOP/s a core measured), so bfloat16 saves memory and costs time.
    """
    if device.type == "cuda":
        return torch.bfloat16
    has_amx = torch.cpu._is_amx_tile_supported()  # no public name for it in torch 2.13
    return torch.bfloat16 if has_amx else torch.float32


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """The torch type that ``precision`` names on ``device``."""
    if precision is Precision.AUTO:
        return native_precision(device)
    return torch.float32 if precision is Precision.FLOAT32 else torch.bfloat16


def load_tokenizer(folder: Path) -> Any:
    """The base's tokenizer, from local files."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_base(folder: Path, precision: Precision, device: torch.device) -> Any:
    """The frozen base model in evaluation mode."""
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype_of(precision, device),
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )
    model.requires_grad_(False)
    # The kept columns are a strided view; CPU kernels take a path 40 times slower for those.
    model.get_output_embeddings().register_forward_pre_hook(_contiguous)
    return model.to(device).eval()


def _contiguous(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.contiguous() for tensor in inputs)


def attach(base: Any, spec: TuningSpec) -> PeftModel:
    """Put a fresh LoRA adapter around ``base``. Until it is trained it changes no output (B = 0).

    Seeds torch's generator, so that the same spec always starts from the same weights.
    """
    torch.manual_seed(spec.seed)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.target_modules,
        task_type="CAUSAL_LM",
        bias="none",
    )
    return get_peft_model(base, config)


@dataclass(frozen=True, slots=True)
class Tensors:
    """A :class:`Batch` on a device; all int64, rows × columns."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> Tensors:
        """``batch`` as tensors on ``device``."""
        rows = (batch.input_ids, batch.attention_mask, batch.positions, batch.labels)
        return cls(*(torch.tensor(part, device=device) for part in rows))


def summed_loss(model: Any, batch: Batch, device: torch.device) -> Tensor:
    """Cross-entropy in nats, summed over the learnt tokens of ``batch``; float32, differentiable.

    Asks the model for the last ``batch.keep`` columns of logits only.
    """
    tensors = Tensors.of(batch, device)
    logits = model(
        input_ids=tensors.input_ids,
        attention_mask=tensors.attention_mask,
        position_ids=tensors.position_ids,
        logits_to_keep=batch.keep,
        use_cache=False,
    ).logits
    predicted = logits[:, :-1].float()
    wanted = tensors.labels[:, -(batch.keep - 1) :]
    return functional.cross_entropy(
        predicted.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum"
    )
