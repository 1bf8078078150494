"""A tiny random Llama with a byte-level tokenizer, and random adapters for it, made in a second."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
HIDDEN, INTERMEDIATE, LAYERS, RANK = 32, 64, 2, 4


def make_model(folder: Path) -> Path:
    """A 2-layer fp32 Llama over bytes, in the layout of a release's model folder."""
    torch.manual_seed(7)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|end|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=HIDDEN,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            eos_token_id=0,
            bos_token_id=None,
            pad_token_id=0,
            initializer_range=0.6,  # far enough apart that no two scores nearly tie
            tie_word_embeddings=False,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(folder: Path, seed: int, **settings: object) -> Path:
    """A LoRA adapter in PEFT's format that changes the tiny model's answers."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for target in TARGETS:
            n_in = INTERMEDIATE if "down" in target else HIDDEN
            n_out = HIDDEN // 2 if "v_proj" in target else HIDDEN
            key = f"base_model.model.model.layers.{layer}.{target}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, n_in, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(n_out, RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": [t.rsplit(".", 1)[1] for t in TARGETS],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder
