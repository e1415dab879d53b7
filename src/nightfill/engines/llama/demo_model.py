"""Demo models: GGUF files of the Qwen3 architecture with random weights, made on the spot in a second or less.

Their text is noise; their arithmetic, and so their timing, is that of a trained model of the same shape. The weights
are scaled so that the output hangs on every token of the prompt (a model of plain small random weights repeats one
token whatever it reads, and would not notice wrong KV): sharp attention by way of large norms of queries and keys, and
an output head of its own that is large enough for a clear winner.

A greedy answer may still differ when the same prompt is computed in batches of other sizes, as with any model: the best
two tokens are now and then nearly alike. It is rare in the small sizes, as their weights are float16: with q8_0 the
engine rounds activations to 8 bits as well, and every second answer would differ.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from nightfill.engines.llama import demo_vocabulary
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from nightfill.engines.llama.demo_vocabulary import Vocabulary

CONTEXT_LENGTH: Final = 131_072
ROPE_BASE: Final = 5_000_000.0
_RECIPE: Final = 1
"""Raise it when the same size would come out with other weights or metadata."""
_SEED: Final = 0x6E69676874
_SEED_DIGITS: Final = 10
_QK_NORM: Final = 1.6
_HEAD_SCALE: Final = 4.0
_RESIDUAL_SCALE: Final = 1.0
LOOP_TOKENS: Final = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Shape of a demo model. All widths are multiples of 32, as q8_0 needs."""

    weights: Literal["f16", "q8_0"]
    """Type of the matrices: answers that do not hang on batches, or speed."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    loops: bool = False
    """Each token has one that always follows it, whatever came before: the text repeats itself every `LOOP_TOKENS`."""

    @property
    def kv_bytes_per_token(self) -> int:
        """With f16 KV."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


SIZES: Final[dict[str, Size]] = {
    "tiny": Size(weights="f16", hidden=256, layers=4, heads=2, kv_heads=1, head_dim=64, feed_forward=512),
    "small": Size(weights="f16", hidden=384, layers=4, heads=2, kv_heads=1, head_dim=64, feed_forward=768),
    "medium": Size(weights="q8_0", hidden=1024, layers=16, heads=16, kv_heads=4, head_dim=64, feed_forward=3072),
    "large": Size(weights="q8_0", hidden=1536, layers=20, heads=24, kv_heads=4, head_dim=64, feed_forward=4608),
    "loop": Size(weights="f16", hidden=256, layers=4, heads=2, kv_heads=1, head_dim=64, feed_forward=512, loops=True),
    "loop-medium": Size(
        weights="q8_0", hidden=1024, layers=16, heads=16, kv_heads=4, head_dim=64, feed_forward=3072, loops=True
    ),
}
"""For tests; for the demonstration; for benchmarks; for benchmarks of loading, 0.6 GB; and for speculative decoding: a
model that goes round in circles, in two sizes that go round in the same ones.
"""


def named(name: str) -> tuple[Size, int]:
    """Shape and seed of `SIZE` or `SIZE:SEED`: another seed gives other weights. Raises BadSetting."""
    size, _, seed = name.partition(":")
    shape = SIZES.get(size)
    if shape is None:
        raise BadSetting(f"demo model {size!r} is unknown; there are {', '.join(SIZES)}", param="model")
    if seed and not (seed.isascii() and seed.isdigit() and len(seed) < _SEED_DIGITS):
        raise BadSetting(f"demo model {name!r}: {seed!r} is no seed, which is a small whole number", param="model")
    return shape, int(seed or 0)


def ensure(name: str, cache_dir: Path) -> Path:
    """The demo model of that name (see `named`), made under `cache_dir` unless it is there already.

    The same content on every machine, under a name that changes with it. Several processes may do it at once. Blocks
    for a second (`medium`) or more, so run it in a thread. Raises BadSetting for an unknown name or where it cannot be
    written.
    """
    shape, seed = named(name)
    title = name.replace(":", "-")
    vocabulary = demo_vocabulary.load()
    path = cache_dir / f"nightfill-demo-{title}-{_content(shape, seed, vocabulary)}.gguf"
    try:
        if not path.is_file():
            cache_dir.mkdir(parents=True, exist_ok=True)
            with draft(path) as unfinished:
                _write(unfinished, title, shape, seed, vocabulary)
    except OSError as exc:
        raise BadSetting(f"the demo model cannot be written to {cache_dir}: {exc.strerror}", param="model") from exc
    return path


def _content(shape: Size, seed: int, vocabulary: Vocabulary) -> str:
    """Names what goes into the file."""
    parts = (
        _RECIPE,
        _QK_NORM,
        _HEAD_SCALE,
        _RESIDUAL_SCALE,
        CONTEXT_LENGTH,
        ROPE_BASE,
        shape,
        seed,
        vocabulary,
        demo_vocabulary.CHAT_TEMPLATE,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


@contextlib.contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its name once it is complete and on the disk; gone on failure."""
    fd, name = tempfile.mkstemp(prefix=".", suffix=".draft", dir=path.parent)
    unfinished = Path(name)
    try:
        yield unfinished
        os.fsync(fd)
        unfinished.replace(path)
    finally:
        os.close(fd)
        unfinished.unlink(missing_ok=True)


def _write(path: Path, name: str, shape: Size, seed: int, vocabulary: Vocabulary) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name(f"nightfill-demo-{name}")
    writer.add_description("Random weights: its text is noise.")
    q8 = shape.weights == "q8_0"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0 if q8 else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(demo_vocabulary.PRE_TOKENIZER)
    writer.add_token_list(list(vocabulary.tokens))
    special = vocabulary.special_ids
    writer.add_token_types(
        [
            gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
            for token in range(len(vocabulary.tokens))
        ]
    )
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_eos_token_id(vocabulary.id_of(demo_vocabulary.TURN_END))
    writer.add_pad_token_id(vocabulary.id_of(demo_vocabulary.END_OF_TEXT))
    writer.add_add_bos_token(False)
    writer.add_chat_template(demo_vocabulary.CHAT_TEMPLATE)
    for tensor, values in _tensors(shape, seed, vocabulary):
        blocks = values.dtype == "u1"
        writer.add_tensor(tensor, values, raw_dtype=gguf.GGMLQuantizationType.Q8_0 if blocks else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(shape: Size, seed: int, vocabulary: Vocabulary) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Name and values: float32 vectors, and matrices of float16 or of q8_0 blocks as bytes."""
    import numpy as np

    # The stream of a bit generator is promised to stay as it is; that of numpy's distributions is not.
    bits = np.random.PCG64(_SEED + seed)
    hidden, qk, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def ones(count: int, value: float = 1.0) -> NDArray[np.generic]:
        return np.full(count, value, dtype=np.float32)

    def drawn(rows: int, columns: int) -> NDArray[np.int8]:
        whole = bits.random_raw(rows * columns // 8).view(np.int8).reshape(rows, columns)
        return np.maximum(whole, -127)

    def matrix(
        rows: int, columns: int, scale: float | NDArray[np.float64], whole: NDArray[np.int8] | None = None
    ) -> NDArray[np.generic]:
        """Uniform random numbers of standard deviation `scale / sqrt(columns)`; one scale for all rows or one each."""
        whole = drawn(rows, columns) if whole is None else whole
        deviation = ((255**2 - 1) / 12) ** 0.5  # of whole numbers from -127 to 127, all alike
        factors = np.full(rows, scale / (deviation * columns**0.5), dtype=np.float32).reshape(rows, 1)
        if shape.weights == "q8_0":
            return _q8_blocks(whole, factors)
        return (whole * factors).astype("<f2")

    speakable = np.array([vocabulary.is_speakable(token) for token in range(len(vocabulary.tokens))])
    count, residual_scale = len(speakable), _RESIDUAL_SCALE
    if shape.loops:
        # Nothing is added to a token's embedding on its way, and the output of each token is what comes before it.
        residual_scale = 0.0
        round_trips = _loops(bits, speakable)
        before = np.zeros(count, dtype=np.intp)
        before[round_trips] = np.roll(round_trips, 1, axis=1)
        embedded = drawn(count, hidden)
        scales = np.zeros(count)
        scales[round_trips] = _HEAD_SCALE
        yield "token_embd.weight", matrix(count, hidden, hidden**0.5, embedded)
        yield "output.weight", matrix(count, hidden, scales, embedded[before])
    else:
        yield "token_embd.weight", matrix(count, hidden, hidden**0.5)
        yield "output.weight", matrix(count, hidden, np.where(speakable, _HEAD_SCALE, 0.0))
    yield "output_norm.weight", ones(hidden)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", ones(hidden)
        yield block + "attn_q_norm.weight", ones(shape.head_dim, _QK_NORM)
        yield block + "attn_k_norm.weight", ones(shape.head_dim, _QK_NORM)
        yield block + "attn_q.weight", matrix(qk, hidden, 1)
        yield block + "attn_k.weight", matrix(kv, hidden, 1)
        yield block + "attn_v.weight", matrix(kv, hidden, 1)
        yield block + "attn_output.weight", matrix(hidden, qk, residual_scale)
        yield block + "ffn_norm.weight", ones(hidden)
        yield block + "ffn_gate.weight", matrix(shape.feed_forward, hidden, 1)
        yield block + "ffn_up.weight", matrix(shape.feed_forward, hidden, 1)
        yield block + "ffn_down.weight", matrix(hidden, shape.feed_forward, residual_scale)


def loops(vocabulary: Vocabulary, seed: int = 0) -> list[list[int]]:
    """The circles of the models that loop: tokens that follow each other, the first after the last."""
    import numpy as np

    speakable = np.array([vocabulary.is_speakable(token) for token in range(len(vocabulary.tokens))])
    return [[int(token) for token in row] for row in _loops(np.random.PCG64(_SEED + seed), speakable)]


def _loops(bits: np.random.PCG64, speakable: NDArray[np.bool_]) -> NDArray[np.intp]:
    """All tokens that may be said but a few, in rows of `LOOP_TOKENS`."""
    import numpy as np

    tokens = np.flatnonzero(speakable)
    order = tokens[np.argsort(bits.random_raw(len(tokens)))]
    return order[: len(order) // LOOP_TOKENS * LOOP_TOKENS].reshape(-1, LOOP_TOKENS)


def _q8_blocks(whole: NDArray[np.int8], factors: NDArray[np.float32]) -> NDArray[np.generic]:
    """`whole * factors` as q8_0: per row, blocks of a float16 factor and 32 int8."""
    import numpy as np

    rows, columns = whole.shape
    assert columns % 32 == 0
    blocks = np.empty((rows, columns // 32, 34), dtype=np.uint8)
    blocks[:, :, :2] = factors.astype("<f2").view(np.uint8).reshape(rows, 1, 2)
    blocks[:, :, 2:] = whole.reshape(rows, columns // 32, 32).view(np.uint8)
    return blocks.reshape(rows, columns // 32 * 34)
