"""What the benchmarks on real vLLM servers share: the environment of `make vllm`, servers, timed requests."""

from __future__ import annotations

import http.client
import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the harness of the end-to-end tests

from nightfill.engines.vllm import demo_model
from vllm_server import MODELS, VllmServer
from vllm_store import SALT, ask, disk, fill, flags_for, keys, kv_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.engines.vllm.wire import Wish

__all__ = [
    "First",
    "VllmServer",
    "ask",
    "disk",
    "fill",
    "flags_for",
    "keys",
    "kv_of",
    "model",
    "prompt",
    "ttft_s",
    "warm_up",
]

_FIRST_WORD: Final = 256


@dataclass(frozen=True, slots=True)
class First:
    """A streamed request."""

    ttft_s: float
    cached_tokens: int


def model(size: str) -> Path:
    """The demo model of this size, made once."""
    folder = MODELS / size
    if not (folder / "config.json").exists():
        demo_model.make(folder, size=size, seed=1)
    return folder


def prompt(seed: int, tokens: int) -> list[int]:
    """Ids of tokens that are whole words or more."""
    rng = random.Random(seed)
    return [rng.randrange(_FIRST_WORD, 6000) for _ in range(tokens)]


def ttft_s(server: VllmServer, ids: Sequence[int], wish: Wish | None = None, **more: Any) -> First:
    """Seconds from sending a greedy, streamed request to its first token's event, and what was reused."""
    body = {
        "model": server.name,
        "prompt": list(ids),
        "max_tokens": 2,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_salt": SALT,
        **({"kv_transfer_params": {"nightfill": _plain(wish)}} if wish is not None else {}),
        **more,
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=600)
    try:
        data = json.dumps(body)
        began_s = time.perf_counter()
        connection.request("POST", "/v1/completions", data, {"content-type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        response.readline()
        first_s = time.perf_counter() - began_s
        events = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: {")]
    finally:
        connection.close()
    usage = json.loads(events[-1])["usage"]
    return First(first_s, (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def warm_up(server: VllmServer) -> None:
    """A server's first requests pay for what it loads lazily; this pays for them, long prompts included."""
    for tokens in (40, 600):
        ttft_s(server, prompt(999_000 + tokens, tokens))


def _plain(wish: Wish) -> Any:
    import msgspec

    return msgspec.to_builtins(wish)
