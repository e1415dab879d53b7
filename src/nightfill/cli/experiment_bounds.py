"""Settings of speculation and experiments that must go together."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from nightfill.config import EngineSettings, Settings

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OTHER_MODEL: Final = frozenset({"draft", "eagle", "eagle3"})
"""Methods whose guesses come from another model."""


def check_speculation(engine: EngineSettings, index: int) -> None:
    """Raise BadSetting unless method, model and engine go together."""
    wanted, key = engine.speculation, f"engines.{index}.speculation"
    if wanted.method == "none" and (wanted.model or wanted.tokens):
        raise _bad(f"{key}.method", wanted.method, "model and tokens say nothing without a method")
    if wanted.method == "eagle" and engine.kind == "llama":
        raise _bad(f"{key}.method", wanted.method, "llama.cpp has eagle3, and no eagle")
    if wanted.method in _OTHER_MODEL and not wanted.model:
        raise _bad(f"{key}.model", wanted.model, f"{wanted.method} needs one")
    if wanted.model and wanted.method not in _OTHER_MODEL:
        raise _bad(f"{key}.model", wanted.model, f"{wanted.method} takes no other model")


def check_experiments(settings: Settings) -> None:
    """Raise BadSetting unless each has its own name and arm a, and another engine or a mode as arm b."""
    roles = {engine.name: engine.roles or ("serve", "fill") for engine in settings.engines}
    seen: set[str] = set()
    firsts: set[str] = set()
    rivals: set[str] = set()
    for index, one in enumerate(settings.experiments):
        key = f"experiments.{index}"
        if not _NAME.fullmatch(one.name) or one.name in seen:
            raise _bad(f"{key}.name", one.name, "must be letters, digits, - and _, and unlike other experiments' names")
        seen.add(one.name)
        for arm in ("a", "b"):
            engine = getattr(one, arm)
            if not {"serve", "decode"} & set(roles.get(engine, ())):
                raise _bad(f"{key}.{arm}", engine, "must name an engine that answers requests")
        if one.a == one.b and not one.mode:
            raise _bad(f"{key}.b", one.b, "must be another engine than a, unless a mode is given")
        if one.a in firsts:
            raise _bad(f"{key}.a", one.a, "is arm a of another experiment already")
        firsts.add(one.a)
        if one.b != one.a:
            rivals.add(one.b)
    for index, one in enumerate(settings.experiments):
        if one.a in rivals:
            raise _bad(f"experiments.{index}.a", one.a, "is arm b of an experiment, and gets no other requests")


def _bad(key: str, value: object, allowed: str) -> BadSetting:
    return BadSetting(f"setting {key} = {value!r}: {allowed}", param=key)
