"""Turn a GGUF model into bfloat16 safetensors: ``python gguf_conversion.py IN.gguf OUT_FOLDER``.

Runs by itself in the conversion environment (torch, transformers, accelerate, gguf), so it imports
nothing of ours. The weights are dequantised, cast to bfloat16 and written under the names and in
the layout ``from_pretrained`` expects; the same input gives the same bytes.

transformers cannot save what it loaded from a GGUF (the configuration keeps a quantisation marker),
so the class is built anew from a cleaned configuration and takes the loaded tensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Write config, generation config, tokenizer with chat template and ``model.safetensors``."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    where, name = str(source.parent), source.name
    report("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    if not tokenizer.chat_template:
        raise SystemExit("the GGUF holds no chat template, so the model could not be asked")
    report("dequantising")
    loaded = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.bfloat16)
    config = type(loaded.config)(**cleaned(loaded.config.to_dict()))
    report("casting to bfloat16")
    with torch.device("meta"):
        model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    report("writing safetensors")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    forget_where_it_came_from(target / "tokenizer_config.json")


def cleaned(config: dict[str, object]) -> dict[str, object]:
    """A configuration without what only the GGUF loader put there."""
    loader_only = {"quantization_config", "_name_or_path", "architectures", "transformers_version"}
    return {key: value for key, value in config.items() if key not in loader_only}


def forget_where_it_came_from(path: Path) -> None:
    """Drop the fields that say how this machine loaded the tokenizer."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for field in ("is_local", "local_files_only"):
        config.pop(field, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def report(text: str) -> None:
    """One line for whoever runs this."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
