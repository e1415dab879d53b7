"""The duty that makes distilled versions, put together for a worker."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING

from nightfill.errors import BadSetting
from nightfill.sleep.distil import DistilDuty
from nightfill.sleep.priority import policy_of

if TYPE_CHECKING:
    from nightfill.config import Settings
    from nightfill.sleep.distil_writer import Embed
    from nightfill.state.state import State

NEEDED = ("numpy", "onnx", "onnxruntime", "tokenizers")
"""What embeddings take; the extra `answers`."""


def distil_duty(state: State, settings: Settings) -> DistilDuty:
    """Raises BadSetting when an engine is named that there is not."""
    wanted = settings.distil
    names = [one.name for one in settings.engines]
    if wanted.engine and wanted.engine not in names:
        known = ", ".join(names) or "none"
        raise BadSetting(f"distil.engine {wanted.engine!r} is not one of the engines: {known}", param="distil.engine")
    able = all(importlib.util.find_spec(name) for name in NEEDED)
    by_model = wanted.method == "model" or (wanted.method == "auto" and (bool(wanted.engine) or not able))

    def load() -> Embed:
        from nightfill.answers.embed import load_embedder

        return load_embedder(settings.answers.embedding).embed

    return DistilDuty(
        state,
        wanted,
        embed=load,
        by_model=by_model,
        clock=time.time,
        default_ttl_s=settings.kv.ttl_s,
        policy=policy_of(settings.sleep, settings.prices),
    )
