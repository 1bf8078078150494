"""Only adapters this engine computes exactly are read; anything else is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from engine_fixtures import make_adapter, make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from appliance.engines.engine import AdapterUnusable
from appliance.engines.lora import read_adapter


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(make_model(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "IA3"}, "LoRA"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 8}, "expected"),
        ({"r": 0}, "rank"),
        ({"lora_alpha": "two"}, "lora_alpha"),
    ],
)
def test_an_adapter_it_would_misread_is_refused(model, tmp_path, settings, reason):
    path = make_adapter(tmp_path / "bad", 1, **settings)
    with pytest.raises(AdapterUnusable, match=reason):
        read_adapter("bad", path, model)


def _rename(tensors, old, new):
    return {key.replace(old, new): value for key, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: _rename(t, "layers.1", "layers.9"), "no layer"),
        (lambda t: _rename(t, "mlp.down_proj", "mlp"), "not a linear"),
        (lambda t: _rename(t, "lora_A", "lora_X"), "not a LoRA weight"),
        (lambda t: dict(list(t.items())[1:]), "only one"),
        (lambda t: {k: v * torch.nan for k, v in t.items()}, "finite"),
        (lambda t: {}, "no weights"),
    ],
)
def test_adapter_weights_that_do_not_fit_are_refused(model, tmp_path, change, reason):
    path = make_adapter(tmp_path / "bad", 1)
    weights = path / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights)
    with pytest.raises(AdapterUnusable, match=reason):
        read_adapter("bad", path, model)


def test_an_adapter_without_its_files_is_refused(model, tmp_path):
    with pytest.raises(AdapterUnusable, match="cannot be read"):
        read_adapter("none", tmp_path, model)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4})
    )
    with pytest.raises(AdapterUnusable, match="cannot be read"):
        read_adapter("none", tmp_path, model)
