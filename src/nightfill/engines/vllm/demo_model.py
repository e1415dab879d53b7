"""Demo models for vLLM: Hugging Face folders of the Qwen3 architecture with random weights, made in a second or less.

    python -m nightfill.engines.vllm.demo_model FOLDER --size tiny --seed 1

As with the demo models for llama.cpp (`engines/llama/demo_model.py`), the text is noise and the timing that of a
trained model of the same shape, and the weights are scaled so that the output hangs on every token of the prompt: wrong
KV shows. They speak the same vocabulary. Five files make a model:

- `config.json`: the shape; `generation_config.json`: where an answer ends;
- `model.safetensors`: the weights, bfloat16;
- `tokenizer.json`: byte-level BPE, adds no token of its own; `tokenizer_config.json`: special tokens, chat template.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nightfill.engines.llama import demo_vocabulary
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from nightfill.engines.llama.demo_vocabulary import Vocabulary

CONTEXT_LENGTH: Final = 32_768
ROPE_BASE: Final = 1_000_000.0
_QK_NORM: Final = 1.6
_HEAD_SCALE: Final = 4.0
_RESIDUAL_SCALE: Final = 2.0

# How Qwen models cut text before merging; the merges were trained on text cut so. From their tokenizer.json.
_CUT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Shape of a demo model. Two ranks can share it: heads and KV heads are even."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int

    @property
    def kv_bytes_per_token(self) -> int:
        """With bfloat16 KV, over all ranks."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


SIZES: Final[dict[str, Size]] = {
    "tiny": Size(hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, feed_forward=512),
    "medium": Size(hidden=1024, layers=16, heads=16, kv_heads=4, head_dim=64, feed_forward=3072),
}
"""For tests, 7 million weights; for measurements, 200 million."""


def make(folder: Path, *, size: str, seed: int) -> None:
    """Write the model of that size to `folder`, which must not exist; it appears there complete or not at all.

    Equal arguments give equal files; `seed` (0 to 2**63 - 1) chooses the weights. Blocks for seconds with `medium`
    (400 MB). Raises BadSetting for an unknown size, a seed out of range, or where it cannot be written.
    """
    shape = SIZES.get(size)
    if shape is None:
        raise BadSetting(f"demo model {size!r} is unknown; there are {', '.join(SIZES)}", param="size")
    if not 0 <= seed < 2**63:
        raise BadSetting(f"seed {seed} is not from 0 to 2**63 - 1", param="seed")
    if folder.exists():
        raise BadSetting(f"{folder} exists already", param="folder")
    draft: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".", suffix=".draft", dir=folder.parent))
        _write(draft, shape, seed, demo_vocabulary.load())
        draft.chmod(0o755)  # mkdtemp keeps others out; a model is for all who may enter the folder above
        draft.rename(folder)
    except OSError as exc:
        raise BadSetting(f"the demo model cannot be written to {folder}: {exc.strerror}", param="folder") from exc
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _write(folder: Path, shape: Size, seed: int, vocabulary: Vocabulary) -> None:
    documents = {
        "config.json": _config(shape, vocabulary),
        "generation_config.json": _generation(vocabulary),
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": _tokenizer_config(),
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(_safetensors_head(_layout(shape, len(vocabulary.tokens))))
        for values in _values(shape, seed, vocabulary):
            file.write(values.data)
        file.flush()
        os.fsync(file.fileno())


# --- what describes the model ---


def _config(shape: Size, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        "vocab_size": len(vocabulary.tokens),
        "hidden_size": shape.hidden,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-6,
        "rope_theta": ROPE_BASE,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "use_cache": True,
        "eos_token_id": vocabulary.id_of(demo_vocabulary.TURN_END),
        "pad_token_id": vocabulary.id_of(demo_vocabulary.END_OF_TEXT),
    }


def _generation(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "eos_token_id": vocabulary.id_of(demo_vocabulary.TURN_END),
        "pad_token_id": vocabulary.id_of(demo_vocabulary.END_OF_TEXT),
    }


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """In the format of the `tokenizers` library."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    special = set(vocabulary.special_ids)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token,
                "content": vocabulary.tokens[token],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in vocabulary.special_ids
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _CUT}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: token for token, text in enumerate(vocabulary.tokens) if token not in special},
            "merges": list(vocabulary.merges),
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": demo_vocabulary.TURN_END,
        "pad_token": demo_vocabulary.END_OF_TEXT,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_LENGTH,
        "chat_template": demo_vocabulary.CHAT_TEMPLATE,
    }


# --- weights ---


def _layout(shape: Size, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all tensors, in the order of the file."""
    hidden, qk, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary_size, hidden),
        "lm_head.weight": (vocabulary_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(shape.layers):
        block = f"model.layers.{layer}."
        tensors |= {
            block + "input_layernorm.weight": (hidden,),
            block + "self_attn.q_norm.weight": (shape.head_dim,),
            block + "self_attn.k_norm.weight": (shape.head_dim,),
            block + "self_attn.q_proj.weight": (qk, hidden),
            block + "self_attn.k_proj.weight": (kv, hidden),
            block + "self_attn.v_proj.weight": (kv, hidden),
            block + "self_attn.o_proj.weight": (hidden, qk),
            block + "post_attention_layernorm.weight": (hidden,),
            block + "mlp.gate_proj.weight": (shape.feed_forward, hidden),
            block + "mlp.up_proj.weight": (shape.feed_forward, hidden),
            block + "mlp.down_proj.weight": (hidden, shape.feed_forward),
        }
    return tensors


def _values(shape: Size, seed: int, vocabulary: Vocabulary) -> Iterator[NDArray[np.uint16]]:
    """The tensors of `_layout`, one after the other, as the bits of bfloat16."""
    import numpy as np

    # The stream of a bit generator is promised to stay as it is; that of numpy's distributions is not.
    bits = np.random.PCG64(seed)
    speakable = np.array([vocabulary.is_speakable(token) for token in range(len(vocabulary.tokens))])
    for name, dimensions in _layout(shape, len(vocabulary.tokens)).items():
        if len(dimensions) == 1:
            norm = _QK_NORM if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0
            yield _bfloat16(np.full(dimensions, norm, dtype=np.float32))
            continue
        rows, columns = dimensions
        whole = bits.random_raw(rows * columns // 8).view(np.int8).reshape(rows, columns)
        np.maximum(whole, -127, out=whole)
        deviation = ((255**2 - 1) / 12) ** 0.5  # of whole numbers from -127 to 127, all alike
        factors = np.full((rows, 1), _scale(name, columns) / (deviation * columns**0.5), dtype=np.float32)
        if name == "lm_head.weight":
            factors[~speakable] = 0.0
        yield _bfloat16(whole * factors)


def _scale(name: str, columns: int) -> float:
    """Standard deviation of a matrix's values, times the root of its columns."""
    match name.rpartition(".")[0].rpartition(".")[2]:
        case "embed_tokens":
            return math.sqrt(columns)
        case "lm_head":
            return _HEAD_SCALE
        case "o_proj" | "down_proj":
            return _RESIDUAL_SCALE
        case _:
            return 1.0


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to the nearest bfloat16, ties to even; finite values only."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def _safetensors_head(tensors: dict[str, tuple[int, ...]]) -> bytes:
    """What stands before the values: the length of a JSON object as 8 bytes, little-endian, and the object.

    Format: https://github.com/huggingface/safetensors#format. Padded with spaces, so that values begin at a multiple
    of 8.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dimensions in tensors.items():
        count = math.prod(dimensions)
        header[name] = {"dtype": "BF16", "shape": list(dimensions), "data_offsets": [start, start + 2 * count]}
        start += 2 * count
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m nightfill.engines.vllm.demo_model", description=make.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    try:
        make(given.folder, size=given.size, seed=given.seed)
    except BadSetting as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
