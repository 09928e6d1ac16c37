"""A LoRA adapter with random weights: it changes what a model says, and makes it no better."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from serve_app.models import resolve_model

RANK = 8
TARGETS = ("q_proj", "v_proj")


def write_adapter(folder: Path, model_source: str, seed: int = 0) -> str:
    """The folder, in the form that peft writes, for a model of Llama's kind."""
    config = AutoConfig.from_pretrained(resolve_model(model_source))
    heads = {"q_proj": config.num_attention_heads, "v_proj": config.num_key_value_heads}
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config.num_hidden_layers):
        for target in TARGETS:
            place = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            width = heads[target] * config.head_dim
            weights[f"{place}.lora_A.weight"] = torch.randn(RANK, config.hidden_size, generator=random) / 24
            weights[f"{place}.lora_B.weight"] = torch.randn(width, RANK, generator=random) / 4
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    described = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(TARGETS)}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    return str(folder)
