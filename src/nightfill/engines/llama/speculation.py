"""Speculative decoding in llama.cpp, as the settings want it: what a child is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.engines.llama.child_config import Drafting
from nightfill.engines.llama.gguf_file import read_head
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nightfill.config import SpeculationSettings


def drafting(wanted: SpeculationSettings, *, find: Callable[[str], Path]) -> Drafting | None:
    """How a serving child guesses tokens; None where it does not. `find` gives the path of a model that settings name.

    The KV of the model that checks the guesses is the same with and without, so signature and slot files are too. What
    a guessing model has computed is not in them, and is computed again after a restore. Raises BadSetting.
    """
    if wanted.method == "none":
        return None
    if wanted.method == "eagle":
        raise BadSetting("engines.speculation.method: llama.cpp has eagle3, and no eagle", param="engines.speculation")
    if not wanted.model:
        return Drafting(method=wanted.method, tokens=wanted.tokens)
    path = find(wanted.model)
    read_head(path)  # says what is wrong with the file; llama.cpp says it on its standard error alone
    return Drafting(method=wanted.method, model=str(path), tokens=wanted.tokens)
