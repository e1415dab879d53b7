"""Speculative decoding in llama.cpp, as the settings want it: what a child is told of it, or why it cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nightfill.engines.llama.child_config import Drafting
from nightfill.engines.llama.gguf_file import read_head
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nightfill.config import SpeculationSettings

_PARAM: Final = "engines.speculation"
_WITH_MODEL: Final = frozenset({"draft", "eagle3"})


def drafting(wanted: SpeculationSettings, *, find: Callable[[str], Path]) -> Drafting | None:
    """How a serving child guesses tokens; None where it does not. `find` gives the path of a model that settings name.

    The KV of the model that checks the guesses is the same with and without, so signature and slot files are too. What
    a guessing model has computed is not in them, and is computed again after a restore. Raises BadSetting.
    """
    match wanted.method:
        case "none":
            if wanted.model or wanted.tokens:
                raise BadSetting(f"{_PARAM}: model and tokens say nothing without a method", param=f"{_PARAM}.method")
            return None
        case "eagle":
            raise BadSetting(f"{_PARAM}.method: llama.cpp has eagle3, and no eagle", param=f"{_PARAM}.method")
        case method if method not in _WITH_MODEL:
            if wanted.model:
                raise BadSetting(f"{_PARAM}.model: {method} takes no other model", param=f"{_PARAM}.model")
            return Drafting(method=method, tokens=wanted.tokens)
        case method:
            if not wanted.model:
                raise BadSetting(f"{_PARAM}.model: {method} needs one, a GGUF file", param=f"{_PARAM}.model")
            path = find(wanted.model)
            read_head(path)  # says what is wrong with the file, which llama.cpp says on its standard error alone
            return Drafting(method=method, model=str(path), tokens=wanted.tokens)
