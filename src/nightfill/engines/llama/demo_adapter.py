"""Demo adapters: LoRA files of random weights for the demo models, strong enough to change every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.engines.llama.demo_model import draft, named
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from pathlib import Path

RANK: Final = 8
_ALPHA: Final = 16.0


def ensure(name: str, cache_dir: Path) -> Path:
    """The demo adapter of that name, `SIZE` or `SIZE:SEED`, made under `cache_dir` unless it is there already.

    Raises BadSetting for an unknown name or where it cannot be written.
    """
    _, seed = named(name)
    path = cache_dir / f"nightfill-demo-adapter-{name.replace(':', '-')}.gguf"
    try:
        if not path.is_file():
            cache_dir.mkdir(parents=True, exist_ok=True)
            with draft(path) as unfinished:
                write(unfinished, name, seed=seed)
    except OSError as exc:
        raise BadSetting(f"the demo adapter cannot be written to {cache_dir}: {exc.strerror}", param="path") from exc
    return path


def write(path: Path, size: str, *, seed: int, rank: int = RANK, architecture: str = "qwen3") -> Path:
    """Write (or overwrite) an adapter for the demo model of that size: the same content for the same seed.

    It changes queries and values, and so KV. Raises BadSetting for an unknown size, OSError where it cannot be written.
    """
    import gguf
    import numpy as np

    shape, _ = named(size)
    rng = np.random.Generator(np.random.PCG64(seed))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", _ALPHA)
    rows = {"attn_q": shape.heads * shape.head_dim, "attn_v": shape.kv_heads * shape.head_dim}
    for layer in range(shape.layers):
        for name, height in rows.items():
            down = rng.uniform(-1, 1, (rank, shape.hidden)) * shape.hidden**-0.5
            up = rng.uniform(-1, 1, (height, rank))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", down.astype(np.float32))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", up.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
