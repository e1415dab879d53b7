"""LoRA adapters for the tiny model, made on the spot: random, and strong enough to change every answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import numpy as np

from vllm_server import TINY

if TYPE_CHECKING:
    from pathlib import Path

RANK: Final = 8


def make_adapter(folder: Path, *, seed: int, width: int = 0) -> Path:
    """Write (or overwrite) an adapter in PEFT's format: low-rank changes of the query and value projections.

    `width`: of another model's hidden states.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    width, head = width or config["hidden_size"], config["head_dim"]
    rows = {"q_proj": config["num_attention_heads"] * head, "v_proj": config["num_key_value_heads"] * head}
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(config["num_hidden_layers"]):
        for name, height in rows.items():
            front = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{front}.lora_A.weight"] = rng.normal(0, width**-0.5, (RANK, width)).astype(np.float32)
            tensors[f"{front}.lora_B.weight"] = rng.normal(0, 1.0, (height, RANK)).astype(np.float32)
    _write(folder / "adapter_model.safetensors", tensors)
    described = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted(rows),
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
    return folder


def _write(path: Path, tensors: dict[str, np.ndarray]) -> None:
    head, at = {}, 0
    for name, values in tensors.items():
        head[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            out.write(values.tobytes())
