"""Which settings of LoRA adapters go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from nightfill.config import EngineSettings, Settings


def check_adapters(settings: Settings) -> None:
    """Raise BadSetting unless each adapter of an engine has a name that no other one there has, nor any model: who asks
    for an adapter must never get a model's answer. Engines of one model may have the same adapters.
    """
    models = {name for one in settings.engines for name in (one.model, one.served_model_name) if name}
    for index, engine in enumerate(settings.engines):
        _check(engine, f"engines.{index}.adapters", models)


def _check(engine: EngineSettings, key: str, models: set[str]) -> None:
    if engine.adapters and set(engine.roles) & {"prefill", "decode"}:
        raise BadSetting(f"setting {key}: is not for engines of role prefill or decode", param=key)
    names = [adapter.name for adapter in engine.adapters]
    for place, adapter in enumerate(engine.adapters):
        where = f"{key}.{place}"
        if not adapter.name or adapter.name in names[:place] or adapter.name in models:
            raise BadSetting(
                f"setting {where}.name = {adapter.name!r}: must be there, and unlike other adapters' and all models'",
                param=f"{where}.name",
            )
        if not adapter.path:
            raise BadSetting(f"setting {where}.path: must be there", param=f"{where}.path")
        if engine.kind == "vllm" and adapter.scale != 1.0:
            raise BadSetting(
                f"setting {where}.scale: is for llama.cpp; vLLM takes what the adapter itself says",
                param=f"{where}.scale",
            )
