"""An engine that plans are made for, and nothing runs on."""

from __future__ import annotations

from typing import Final

from nightfill.contexts.context import Signature
from nightfill.engines.engine import Description, Reuse

SIGNATURE: Final = Signature("0" * 64)
ENGINE: Final = Description(
    engine="benchmark",
    model="m",
    signature=SIGNATURE,
    context_length=1 << 17,
    kv_bytes_per_token=1,
    slots=1,
    reuse=Reuse.TRIM,
    embeddings=False,
    version="1",
)
