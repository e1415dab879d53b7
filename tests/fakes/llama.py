"""A llama-server in memory: slots of tokens, and slot files whose rows say which tokens they were computed from."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final, cast

from nightfill.engines.llama import slotfile
from nightfill.engines.llama.api import LlamaApi, Prefilled, Saved
from nightfill.engines.llama.slotfile import Layer, Layout
from nightfill.errors import EngineRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LAYOUT: Final = Layout(4, 0, 0, (Layer(1, 8, 1, 8), Layer(1, 8, 1, 8)))
APPENDIX: Final = b"SCKP" + bytes(12)


def payload(tokens: Sequence[int], start: int, stop: int) -> bytes:
    """KV of tokens `start` to `stop`: each row depends on all tokens up to its own, as in attention."""
    digest = hashlib.sha256()
    chain = []
    for token in tokens[:stop]:
        digest.update(token.to_bytes(4, "little"))
        chain.append(digest.digest())
    return b"".join(
        hashlib.sha256(bytes([section]) + one).digest()[:8]
        for section in range(len(LAYOUT.sections))
        for one in chain[start:stop]
    )


class FakeLlama:
    """The part of `LlamaApi` that touches slots. `api` is it, for the type checker."""

    def __init__(self, folder: Path, *, slots: int = 2, plain: bool = True, streams: int = 1) -> None:
        self.folder = folder
        self.plain = plain
        self.streams = streams
        self.slots: list[tuple[int, ...]] = [()] * slots
        self.prefills: list[tuple[int, int, int]] = []
        """(slot, cached, length) of each."""
        self.restores = 0
        self.refuses_restores = False
        self.ignores_restores = False
        self.falls_back = 0
        """Tokens at the end of a restored prompt that are computed anew, as to the last checkpoint."""
        self.stops_at: int | None = None
        """Prefills never get beyond so many tokens; `stuck` is set when one has got there."""
        self.stuck = asyncio.Event()
        self.on_restore: Callable[[], None] = lambda: None

    @property
    def api(self) -> LlamaApi:
        return cast("LlamaApi", self)

    def files(self) -> list[str]:
        """What lies in the slot folder."""
        return sorted(path.name for path in self.folder.iterdir())

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> tuple[int, ...]:
        assert (add_special, parse_special) != (False, True)
        return tuple(text.encode())

    async def prefill(
        self, tokens: Sequence[int], *, slot: int, on_progress: Callable[[int, int], None] | None = None
    ) -> Prefilled:
        had = self.slots[slot]
        cached = next(
            (n for n, (a, b) in enumerate(zip(had, tokens, strict=False)) if a != b), min(len(had), len(tokens))
        )
        if not self.plain and cached < len(had):
            cached = 0
        cached = max(0, cached - self.falls_back) if cached else 0
        self.prefills.append((slot, cached, len(tokens)))
        if self.stops_at is not None and len(tokens) > self.stops_at:
            self.slots[slot] = tuple(tokens[: self.stops_at])
            if on_progress is not None:
                on_progress(self.stops_at, len(tokens))
            self.stuck.set()
            await asyncio.Event().wait()
        self.slots[slot] = tuple(tokens)
        if on_progress is not None:
            on_progress(len(tokens), len(tokens))
        return Prefilled(cached=cached, computed=len(tokens) - cached, seconds=0.5)

    async def slot_erase(self, slot: int) -> None:
        self.slots[slot] = ()

    async def slot_save(self, slot: int, filename: str) -> Saved:
        tokens = self.slots[slot]
        pieces = [(0, len(tokens), memoryview(payload(tokens, 0, len(tokens))))]
        with (self.folder / filename).open("wb") as file:
            slotfile.write(file.fileno(), LAYOUT, tokens, pieces, streams=self.streams)
            if not self.plain:
                file.seek(0, 2)
                file.write(APPENDIX)
        return Saved(tokens=len(tokens), bytes=(self.folder / filename).stat().st_size)

    async def slot_restore(self, slot: int, filename: str) -> int:
        self.restores += 1
        self.on_restore()
        raw = (self.folder / filename).read_bytes()
        self.slots[slot] = ()
        if self.refuses_restores:
            raise EngineRefused("invalid slot save file", engine="fake", status=400)
        if not self.plain:
            assert raw.endswith(APPENDIX)
            raw = raw.removesuffix(APPENDIX)
        file = slotfile.parse(memoryview(raw))
        tokens = file.tokens
        assert b"".join(file.cut(0, len(tokens))) == payload(tokens, 0, len(tokens)), "KV of other tokens"
        assert len(raw) == slotfile.assembled_bytes(LAYOUT, len(tokens), streams=self.streams)
        if not self.ignores_restores:
            self.slots[slot] = tokens
        return len(tokens)
