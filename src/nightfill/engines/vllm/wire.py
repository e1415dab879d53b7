"""What gateway or worker and the plug-in inside a vLLM server say to each other.

It travels in the field that vLLM reserves for KV connectors, `kv_transfer_params`, under the name `nightfill`: a `Wish`
in requests; in answers that are not streamed, a `Report`, if the wish asked for it.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

PARAMS: Final = "kv_transfer_params"
NAME: Final = "nightfill"
BACKGROUND_PRIORITY: Final = 10
"""Of requests that fill; vLLM serves lower ones first, and 0 is what clients send who say nothing."""

Decision = Literal["restore", "recompute", "absent", "unkeyed"]
"""`restore`: stored KV was loaded. `recompute`: computing was expected to be quicker. `absent`: nothing was stored.
`unkeyed`: the prompt has parts that are no tokens (images, embeddings), so it is neither looked up nor stored.
"""


class Wish(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request wants of the store. All fields have the value that a client means who says nothing."""

    report: bool = False
    """Answer with a `Report`."""
    fresh: bool = False
    """Pass over the engine's own prefix cache, so that what is reused comes from outside the engine."""
    cold: bool = False
    """Pass over all caches, and compute the whole prompt."""
    store: bool = True
    """Store the KV of the prompt's whole blocks."""
    load: bool | None = None
    """Load what is stored, or compute it; None lets the server decide by the rates that it measured."""
    await_tokens: int = 0
    """Wait until so many tokens of the prompt, from the front, are stored: somebody is about to store them."""
    await_s: float = 0.0
    """Wait so long at most; then go on with what is there."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What the store did for a request."""

    signature: str
    """64 hex digits; of everything that must match for KV to be reusable."""
    salt: str
    """64 hex digits; the salt that the request's block keys were made with."""
    block_tokens: int
    """Tokens per stored block; only whole blocks are stored."""
    kv_bytes_per_token: int
    """Over all ranks."""
    engine_block_tokens: int = 0
    """Tokens per block of the engine's own prefix cache: a prefix that ends between two of them is computed again from
    the last one on. 0: not said.
    """
    cached: int = 0
    """Tokens that the engine's own prefix cache had."""
    loaded: int = 0
    """Tokens beyond them that came from outside the engine."""
    found: int = 0
    """Tokens, from the front, that the store had when the request came."""
    decision: Decision = "absent"
    restore_s: float = 0.0
    """Expected seconds to load what was found."""
    recompute_s: float = 0.0
    """Expected seconds to compute it."""
    bytes_per_s: float | None = None
    """Bandwidth of loads on this server so far; None while there was none."""
    latency_s: float | None = None
    """Of a load, before its bytes flow."""
    tokens_per_s: float | None = None
    """Speed of its prefill so far."""
    lookup_s: float = 0.0
    """Seconds of the scheduler's thread that looking up took."""
