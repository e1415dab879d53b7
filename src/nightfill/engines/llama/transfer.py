"""Carries KV between the store and a llama.cpp slot, by way of slot files in a scratch folder.

A slot file names neither model nor adapter and has no checksum, so nothing is read from the scratch folder that was not
written there a moment before, by us or by the engine, in a folder of one's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import mmap
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

from nightfill.engines.llama import slotfile
from nightfill.errors import EngineRefused, SlotFileUnknown, TierUnavailable
from nightfill.kv.block import Block, BlockMeta
from nightfill.kv.key import Span, snapshot_key, snapshot_keys, spans

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from nightfill.contexts.context import Signature
    from nightfill.engines.engine import Prefix
    from nightfill.engines.llama.api import LlamaApi
    from nightfill.kv.key import BlockKey
    from nightfill.kv.store import Store

T = TypeVar("T")
_LOG: Final = logging.getLogger(__name__)
_STAMPS: Final = 1024
_KEPT_SCRATCH_BYTES: Final = 1 << 30
"""A larger slot file's pages are given back after the load: they may lie in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a load brought into a slot."""

    tokens: int
    bytes: int
    seconds: float


NOTHING = Loaded(tokens=0, bytes=0, seconds=0.0)


class Transfer:
    """Loads prefixes into slots and saves slots into the store. Coroutine-safe for different slots."""

    def __init__(
        self,
        *,
        store: Store,
        api: LlamaApi,
        scratch: Path,
        signature: Signature,
        block_tokens: int,
        pool: Executor,
        adapted: Mapping[str, Signature] | None = None,
    ) -> None:
        """`signature` is of prefixes under no adapter, `adapted` of those under one, by its name."""
        self._store = store
        self._api = api
        self._scratch = scratch
        self._signatures = {"": signature, **(adapted or {})}
        self.block_tokens = block_tokens
        self._pool = pool
        self.plain = True
        """Whether slot files can be cut into blocks; else each is stored whole, as a snapshot."""
        self.streams = 1
        """Runs of KV cells of the server, for which its slot files must be."""
        self._given_up: Counter[int] = Counter()
        self._stamps: dict[BlockKey, float] = {}
        """When the prefixes that were loaded last had been stored, by the key of their last block."""
        self._spans = functools.lru_cache(maxsize=64)(self._spans_of)

    def _spans_of(self, tokens: tuple[int, ...], salt: bytes, signature: Signature) -> tuple[Span, ...]:
        if self.plain:
            return spans(tokens, signature=signature, salt=salt, block_tokens=self.block_tokens)
        # One span for the whole: a snapshot is used entire or not at all.
        return (Span(snapshot_key(tokens, signature=signature, salt=salt), 0, len(tokens)),)

    def _signature(self, prefix: Prefix) -> Signature:
        return self._signatures[prefix.adapter]

    def spans(self, prefix: Prefix) -> tuple[Span, ...]:
        """The keys under which the store has `prefix`."""
        return self._spans(tuple(prefix.tokens), prefix.salt, self._signature(prefix))

    def cut(self, prefix: Prefix) -> tuple[Span, ...]:
        """Whole blocks and the rest, whether the store keeps them so or not: to tell how much of it a slot holds."""
        return spans(prefix.tokens, signature=self._signature(prefix), salt=prefix.salt, block_tokens=self.block_tokens)

    def in_memory(self, spans: Sequence[Span]) -> bool:
        """Whether the last of them, and so most likely all, lie in a tier that is memory. Quick."""
        return bool(spans) and self._store.in_memory(spans[-1].key)

    async def load(self, slot: int, prefix: Prefix) -> Loaded:
        """Put as much of `prefix` into the slot as the store has, replacing what the slot held.

        A miss, a corrupt block and a file that the engine refuses all end in less, or nothing, loaded.
        """
        started_s = time.perf_counter()
        # Written over again and again, since most of the time of a new file goes into clearing its pages.
        attempt = self._given_up[slot]
        name = f"load-{slot}-{attempt}.slot"
        path = self._scratch / name
        tokens, size, settled = 0, 0, False
        try:
            tokens, size = await self._in_thread(self._assemble, prefix, path, lambda: self._given_up[slot] == attempt)
            if not tokens:
                settled = True
                return NOTHING
            restored = await self._api.slot_restore(slot, name)
            settled = True
        except EngineRefused as exc:
            # The engine has cleared the slot. The request prefills as if there were no fill.
            _LOG.warning("a slot file of %d tokens was refused: %s", tokens, exc)
            return NOTHING
        except OSError as exc:
            # No room in the scratch folder, or no folder any more.
            _LOG.warning("no slot file of %d tokens could be written: %s", len(prefix.tokens), exc.strerror)
            return NOTHING
        finally:
            if not settled:
                # Cancelled, or failed: our thread may still write the file, and the engine read it. The next load of
                # this slot must not meet either.
                self._given_up[slot] += 1
            if not settled or size > _KEPT_SCRATCH_BYTES:
                _remove(path)
        if restored != tokens:
            _LOG.warning("the engine restored %d of %d tokens", restored, tokens)
            return NOTHING
        return Loaded(tokens=tokens, bytes=size, seconds=time.perf_counter() - started_s)

    async def save(self, slot: int, prefix: Prefix, *, reached: int) -> int:
        """Store what the slot holds of the first `reached` tokens of `prefix`; tokens in the store from the front.

        Raises KvError when a block could not be stored.
        """
        name = f"save-{slot}.slot"
        path = self._scratch / name
        try:
            self._make_scratch()
            await self._api.slot_save(slot, name)
            return await self._in_thread(self._store_file, path, prefix, reached)
        except OSError as exc:
            raise TierUnavailable(f"the slot file in {self._scratch} cannot be read: {exc.strerror}") from exc
        finally:
            _remove(path)

    async def clear_scratch(self) -> None:
        """Remove the slot files that loads have left for the next one."""
        await self._in_thread(_remove_all, self._scratch, "load-*.slot")

    def stored(self, prefix: Prefix) -> int:
        """Tokens of `prefix`, from the front, that the store says it has."""
        ours = self.spans(prefix)
        n = self._store.leading(ours)
        if n:
            return ours[n - 1].stop
        if not self.plain:
            return self._longest_snapshot(prefix)
        return 0

    async def refresh(self, prefix: Prefix) -> None:
        """Have the next load read what is kept of `prefix`, not copies of what was kept of it once."""
        await self._in_thread(self._store.forget, [span.key for span in self.spans(prefix)])

    async def refresh_if_filled_again(self, prefix: Prefix) -> None:
        """Copies in this process's memory may be of what was stored of the prefix before."""
        key = self.spans(prefix)[-1].key
        if self._stamps.pop(key, prefix.stamp) != prefix.stamp:
            await self.refresh(prefix)
        self._stamps[key] = prefix.stamp
        while len(self._stamps) > _STAMPS:
            del self._stamps[next(iter(self._stamps))]

    async def drop(self, prefix: Prefix) -> int:
        """Drop what the store has of `prefix`, whole or in part; how many blocks. Raises KvError."""
        keys = [span.key for span in self.spans(prefix)]
        if not self.plain:
            cut = snapshot_keys(
                prefix.tokens, signature=self._signature(prefix), salt=prefix.salt, every=self.block_tokens
            )
            keys += [key for _, key in cut]
        return await self._in_thread(self._store.drop, keys)

    def part(self, prefix: Prefix, tokens: int) -> Prefix:
        """The first `tokens` tokens of `prefix`."""
        if tokens == len(prefix.tokens):
            return prefix
        return replace(prefix, tokens=prefix.tokens[:tokens], stamp=0.0, earlier=())

    def _longest_snapshot(self, prefix: Prefix) -> int:
        # Unfinished snapshots are only ever taken at whole blocks, so few places need to be looked at.
        keys = snapshot_keys(
            prefix.tokens, signature=self._signature(prefix), salt=prefix.salt, every=self.block_tokens
        )
        return next((tokens for tokens, key in reversed(keys) if self._store.has(key)), 0)

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def _make_scratch(self) -> None:
        # Somebody may have cleaned up; without the folder no fill could be used or stored until the next start.
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _assemble(self, prefix: Prefix, path: Path, wanted: Callable[[], bool]) -> tuple[int, int]:
        ours = self.spans(prefix)
        found = self._store.get_many([span.key for span in ours], salt=prefix.salt)
        usable = list(itertools.takewhile(lambda pair: _fits(*pair), zip(ours, found, strict=True)))
        blocks = [block for _, block in usable if block is not None]
        if not blocks:
            return 0, 0
        tokens = ours[len(blocks) - 1].stop
        self._make_scratch()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not self.plain:
                return tokens, _write_whole(fd, blocks[0].payload)
            layout = slotfile.Layout.decode(blocks[0].meta.layout)
            pieces = [(block.meta.start, block.meta.stop, block.payload) for block in blocks]
            return tokens, slotfile.write(fd, layout, prefix.tokens[:tokens], pieces, streams=self.streams)
        finally:
            os.close(fd)
            if not wanted():
                _remove(path)

    def _store_file(self, path: Path, prefix: Prefix, reached: int) -> int:
        with path.open("rb") as file:
            view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        store = self._store_blocks if self.plain else self._store_snapshot
        with self._store.hold(span.key for span in self.spans(prefix)):
            return store(view, prefix, reached)

    def _store_blocks(self, view: memoryview, prefix: Prefix, reached: int) -> int:
        saved = slotfile.parse(view)
        if tuple(saved.tokens[:reached]) != tuple(prefix.tokens[:reached]):
            raise SlotFileUnknown(f"the slot holds other tokens than the {reached} that were computed in it")
        layout = saved.layout.encode()
        stored = 0
        for span in self.spans(prefix):
            if span.stop > reached:
                break
            if not self._store.has(span.key):
                meta = BlockMeta(
                    kind="block", signature=self._signature(prefix), start=span.start, stop=span.stop, layout=layout
                )
                self._store.put(span.key, saved.cut(span.start, span.stop), meta, salt=prefix.salt)
            stored = span.stop
        return stored

    def _store_snapshot(self, view: memoryview, prefix: Prefix, reached: int) -> int:
        before = self._longest_snapshot(prefix)
        if reached != len(prefix.tokens) and reached % self.block_tokens:
            return before
        meta = BlockMeta(kind="snapshot", signature=self._signature(prefix), start=0, stop=reached, layout=b"")
        part = self.part(prefix, reached)
        (span,) = self.spans(part)
        self._store.put(span.key, [view], meta, salt=prefix.salt)
        # The one before stays until the next one is stored, or the sweep takes it: it is the one that the book names.
        keys = snapshot_keys(
            prefix.tokens, signature=self._signature(prefix), salt=prefix.salt, every=self.block_tokens
        )
        self._store.drop(key for length, key in keys if length < before and self._store.has(key))
        return reached


def _write_whole(fd: int, payload: memoryview) -> int:
    at = 0
    while at < len(payload):
        at += os.pwrite(fd, payload[at:], at)
    os.ftruncate(fd, at)
    return at


def _remove_all(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # a file that stays costs room until we end; an error would cost the request
        path.unlink(missing_ok=True)


def _fits(span: Span, block: Block | None) -> bool:
    return block is not None and (block.meta.start, block.meta.stop) == (span.start, span.stop)
