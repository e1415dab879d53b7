"""Stored answers in memory, keeping the contracts of `nightfill.state.answers` and `nightfill.answers`."""

from __future__ import annotations

from typing import Final

from fakes.engine import SIGNATURE
from nightfill.engines.engine import Description, Reuse

DESCRIPTION: Final = Description(
    engine="fake",
    model="demo",
    signature=SIGNATURE,
    context_length=4096,
    kv_bytes_per_token=1024,
    slots=2,
    reuse=Reuse.TRIM,
    embeddings=False,
    version="fake 1",
)
