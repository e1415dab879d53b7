"""Finds out what a restored slot is worth on this model, by trying it.

Some models take a restore and prefill all the same (ggml-org/llama.cpp issues 25913 and 26676); with a sliding window
or a recurrent state, what is restored serves one query and cannot be cut back for the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.engines.engine import BOUNDARY_TOKENS, Reuse
from nightfill.engines.llama import slotfile
from nightfill.errors import EngineRefused, SlotFileUnknown

if TYPE_CHECKING:
    from pathlib import Path

    from nightfill.engines.llama.api import LlamaApi

PROBE_TOKENS: Final = 48
"""Few, as a large model on a slow machine computes them at every start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What was found."""

    reuse: Reuse
    plain: bool
    """Whether a slot file can be cut into blocks."""
    kv_bytes_per_token: int


def judge(*, prompt: int, first: int, second: int, trims: bool) -> Reuse:
    """The verdict, from the tokens reused by the query after a restore and by another one after that."""
    if first < prompt - BOUNDARY_TOKENS:
        return Reuse.NONE
    return Reuse.TRIM if trims and second >= prompt else Reuse.EXACT


async def probe(api: LlamaApi, scratch: Path, *, name: str, slot: int, windowed: bool) -> Probed:
    """Save, forget, restore and go on in `slot`, which must be idle. `windowed`: the model has a sliding window, so a
    short probe could not show that cutting back fails.
    """
    words = await api.tokenize("The quick brown fox jumps over the lazy dog. ", add_special=True, parse_special=False)
    prompt = (words * (PROBE_TOKENS // len(words) + 1))[:PROBE_TOKENS]
    path = scratch / name
    try:
        await api.slot_erase(slot)
        await api.prefill(prompt, slot=slot)
        await api.slot_save(slot, name)
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                plain, per_token = True, slotfile.parse(memoryview(file.read())).layout.bytes_per_token
        except SlotFileUnknown:
            plain, per_token = False, size // len(prompt)
        await api.slot_erase(slot)
        try:
            await api.slot_restore(slot, name)
        except EngineRefused:
            return Probed(reuse=Reuse.NONE, plain=plain, kv_bytes_per_token=per_token)
        first = (await api.prefill((*prompt, prompt[1]), slot=slot)).cached
        second = (await api.prefill((*prompt, prompt[2], prompt[1]), slot=slot)).cached
    finally:
        path.unlink(missing_ok=True)
        await api.slot_erase(slot)
    reuse = judge(prompt=len(prompt), first=first, second=second, trims=plain and not windowed)
    return Probed(reuse=reuse, plain=plain, kv_bytes_per_token=per_token)
