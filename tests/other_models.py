"""Small models with random weights whose cache is not plain attention: a sliding window, and a hybrid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import gguf
import numpy as np

from nightfill.engines.llama import demo_vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from nightfill.engines.llama.demo_vocabulary import Vocabulary

HIDDEN: Final = 128
HEADS: Final = 2
HEAD_DIM: Final = 64
FEED_FORWARD: Final = 256
WINDOW: Final = 256
CONTEXT_LENGTH: Final = 16384
CONVOLVED: Final = 3
"""Tokens that a short convolution looks at."""

Tensors = "Iterator[tuple[str, NDArray[np.generic]]]"


def sliding_window(path: Path) -> Path:
    """A model of the Gemma 3 kind: five layers that look back `WINDOW` tokens, and one that looks at all."""
    layers, vocabulary = 6, demo_vocabulary.load()
    writer = _writer(path, "gemma3", "windowed", layers, vocabulary)
    writer.add_head_count_kv(1)
    writer.add_sliding_window(WINDOW)
    rng = np.random.default_rng(3)
    tensors = [("token_embd.weight", _matrix(rng, len(vocabulary.tokens), HIDDEN)), ("output_norm.weight", _ones())]
    for layer in range(layers):
        block = f"blk.{layer}."
        tensors += [(block + name, values) for name, values in _attention(rng)]
        tensors += [(block + name, values) for name, values in _feed_forward(rng)]
        tensors += [(f"{block}{name}.weight", _ones()) for name in ("post_attention_norm", "post_ffw_norm")]
    return _finished(writer, path, tensors)


def hybrid(path: Path) -> Path:
    """A model of the LFM 2 kind: short convolutions, whose state is as of the last token only, and attention."""
    attends, vocabulary = (False, False, True, False, True), demo_vocabulary.load()
    writer = _writer(path, "lfm2", "hybrid", len(attends), vocabulary)
    writer.add_head_count_kv([1 if one else 0 for one in attends])
    writer.add_shortconv_l_cache(CONVOLVED)
    rng = np.random.default_rng(4)
    tensors = [
        ("token_embd.weight", _matrix(rng, len(vocabulary.tokens), HIDDEN)),
        ("token_embd_norm.weight", _ones()),
    ]
    for layer, attention in enumerate(attends):
        block = f"blk.{layer}."
        own = _attention(rng) if attention else _convolution(rng)
        tensors += [(block + name, values) for name, values in own]
        tensors += [(block + name, values) for name, values in _feed_forward(rng)]
    return _finished(writer, path, tensors)


def _writer(path: Path, architecture: str, name: str, layers: int, vocabulary: Vocabulary) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_head_count(HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(demo_vocabulary.PRE_TOKENIZER)
    writer.add_token_list(list(vocabulary.tokens))
    special = vocabulary.special_ids
    writer.add_token_types(
        [gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL for n in range(len(vocabulary.tokens))]
    )
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_eos_token_id(vocabulary.id_of(demo_vocabulary.TURN_END))
    writer.add_add_bos_token(False)
    writer.add_chat_template(demo_vocabulary.CHAT_TEMPLATE)
    return writer


def _finished(writer: gguf.GGUFWriter, path: Path, tensors: list[tuple[str, NDArray[np.generic]]]) -> Path:
    for name, values in tensors:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _ones(count: int = HIDDEN) -> NDArray[np.generic]:
    return np.ones(count, dtype=np.float32)


def _matrix(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.generic]:
    values: NDArray[np.float64] = rng.standard_normal((rows, columns)) / columns**0.5
    return values.astype(np.float16)


def _attention(rng: np.random.Generator) -> Iterator[tuple[str, NDArray[np.generic]]]:
    yield "attn_norm.weight", _ones()
    yield "attn_q.weight", _matrix(rng, HEADS * HEAD_DIM, HIDDEN)
    yield "attn_k.weight", _matrix(rng, HEAD_DIM, HIDDEN)
    yield "attn_v.weight", _matrix(rng, HEAD_DIM, HIDDEN)
    yield "attn_output.weight", _matrix(rng, HIDDEN, HEADS * HEAD_DIM)
    yield "attn_q_norm.weight", _ones(HEAD_DIM)
    yield "attn_k_norm.weight", _ones(HEAD_DIM)


def _convolution(rng: np.random.Generator) -> Iterator[tuple[str, NDArray[np.generic]]]:
    yield "attn_norm.weight", _ones()
    yield "shortconv.conv.weight", rng.standard_normal((HIDDEN, CONVOLVED)).astype(np.float32)
    yield "shortconv.in_proj.weight", _matrix(rng, 3 * HIDDEN, HIDDEN)
    yield "shortconv.out_proj.weight", _matrix(rng, HIDDEN, HIDDEN)


def _feed_forward(rng: np.random.Generator) -> Iterator[tuple[str, NDArray[np.generic]]]:
    yield "ffn_norm.weight", _ones()
    yield "ffn_gate.weight", _matrix(rng, FEED_FORWARD, HIDDEN)
    yield "ffn_up.weight", _matrix(rng, FEED_FORWARD, HIDDEN)
    yield "ffn_down.weight", _matrix(rng, HIDDEN, FEED_FORWARD)
