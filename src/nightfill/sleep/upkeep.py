"""What the store holds, compared with what the book says: pins, values, sweeps, and fills whose bytes are gone."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from nightfill.kv.holdings import keys_of
from nightfill.kv.key import BLOCK_TOKENS, BlockKey, salt_of, snapshot_key, spans

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from nightfill.contexts.context import Fill, FillKey, Outline
    from nightfill.kv.rotation import Resealed

_log = logging.getLogger(__name__)

RENEW_BLOCKS: Final = 16
"""Sealed anew in one step, between two looks at whether live requests have come."""
RENEWED_AGAIN_S: Final = 3600.0
"""After a pass that left nothing: another process may still have written under the old key."""
LEFT_AGAIN_S: Final = 600.0


class SweptStore(Protocol):
    """The part of `kv.Store` that upkeep needs."""

    def pin(self, keys: Iterable[BlockKey]) -> None:
        """Replace the set of keys that neither eviction nor expiry takes."""

    def retain(self, values: Mapping[BlockKey, float]) -> None:
        """Replace what blocks are worth."""

    def publish(self) -> None:
        """Tell other processes what `pin`, `retain` and `hold` say now."""

    def hold(self, keys: Iterable[BlockKey], *, value: float = 0.0) -> AbstractContextManager[None]:
        """Keep eviction off `keys` while inside; they are worth at least `value`."""

    def sweep(self, keep: Collection[BlockKey] | None = None) -> int:
        """Delete what is expired or not in `keep`; how many."""

    def has_many(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Whether some tier seems to have it, for each key."""

    def reseal(self, salts: Iterable[bytes], *, limit: int = 64) -> Resealed:
        """One bounded step of sealing anew what is under old keys."""


class Upkeep(Protocol):
    """What a worker does for its store. All but `hold`, `unknown` and `renew_due` run in threads. May raise KvError."""

    def unknown(self, fills: Iterable[Outline]) -> list[FillKey]:
        """Those whose tokens are to be learnt, because they are new or have changed. Quick."""

    def learn(self, fill: Fill) -> None:
        """What its blocks are called."""

    def retain(self, worth: Mapping[FillKey, float]) -> None:
        """Tell the store what all fills are worth that were learnt."""

    def hold(self, fill: Fill, *, value: float) -> AbstractContextManager[None]:
        """Keep what is stored of a fill under way, and let it take the place of what is worth less, while inside."""

    def publish(self) -> None:
        """Tell processes that share the store, as vLLM servers do, what is retained, pinned and held by now."""

    def tend(self, fills: Collection[FillKey], pinned: Collection[FillKey]) -> Mapping[FillKey, int]:
        """Pin, publish, sweep, and count: how many tokens the store has of each fill, from the front. Where it was not
        counted this time, or not learnt, a fill is left out. There are no others than these `fills`.
        """

    def renew_due(self) -> bool:
        """Whether a key is being changed, and `renew` has something to do now. Quick."""

    def renew(self, salts: Collection[bytes]) -> None:
        """One bounded step of sealing anew what is under old keys; `salts` are those of tenants with contexts."""


class StoreUpkeep:
    """`Upkeep` of one store.

    `rotating`: old keys are configured. `salts` are those of tenants that may have no contexts. Blocks are counted
    once per `count_every_s`: that asks the slowest tiers. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        store: SweptStore,
        *,
        block_tokens: int = BLOCK_TOKENS,
        rotating: bool = False,
        salts: Collection[bytes] = (),
        count_every_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._block_tokens = block_tokens
        self._rotating = rotating
        self._salts = frozenset(salts)
        self._count_every_s = count_every_s
        self._counted_at_s = float("-inf")
        self._clock = clock
        self._cuts: dict[FillKey, _Cut] = {}
        self._renew_at_s = float("-inf")
        self._said: tuple[int, int] | None = None

    def unknown(self, fills: Iterable[Outline]) -> list[FillKey]:
        """See `Upkeep`."""
        return [fill.key for fill in fills if fill.key not in self._cuts or self._cuts[fill.key].mark != _mark(fill)]

    def learn(self, fill: Fill) -> None:
        """See `Upkeep`."""
        self._cuts[fill.key] = _cut(fill, self._block_tokens)

    def retain(self, worth: Mapping[FillKey, float]) -> None:
        """See `Upkeep`."""
        dearest: dict[BlockKey, float] = {}
        for name, value in worth.items():
            cut = self._cuts.get(name)
            for key in cut.keys if cut is not None else ():
                dearest[key] = max(value, dearest.get(key, 0.0))
        self._store.retain(dearest)

    def hold(self, fill: Fill, *, value: float) -> AbstractContextManager[None]:
        """See `Upkeep`."""
        return self._store.hold(keys_of(fill, block_tokens=self._block_tokens), value=value)

    def publish(self) -> None:
        """See `Upkeep`."""
        self._store.publish()

    def tend(self, fills: Collection[FillKey], pinned: Collection[FillKey]) -> Mapping[FillKey, int]:
        """See `Upkeep`."""
        for name in [name for name in list(self._cuts) if name not in fills]:
            self._cuts.pop(name, None)
        cuts = dict(self._cuts)
        self._store.pin({key for name, cut in cuts.items() if name in pinned for key in cut.keys})
        self._store.publish()
        self._store.sweep({key for cut in cuts.values() for key in cut.keys})
        now_s = self._clock()
        if now_s - self._counted_at_s < self._count_every_s:
            return {}
        self._counted_at_s = now_s
        # One question for all: of a tier on a server, each one is a journey.
        asked = list(dict.fromkeys(key for cut in cuts.values() for key in cut.keys))
        there = {key for key, found in zip(asked, self._store.has_many(asked), strict=True) if found}
        return {name: cut.left(there) for name, cut in cuts.items()}

    def renew_due(self) -> bool:
        """See `Upkeep`."""
        return self._rotating and self._clock() >= self._renew_at_s

    def renew(self, salts: Collection[bytes]) -> None:
        """See `Upkeep`."""
        step = self._store.reseal(self._salts | set(salts), limit=RENEW_BLOCKS)
        if not step.finished:
            return
        said, self._said = self._said, (step.left, step.unknown)
        self._renew_at_s = self._clock() + (LEFT_AGAIN_S if step.left else RENEWED_AGAIN_S)
        if said == self._said:
            return
        if step.left:
            _log.warning("key change: %d blocks stay under an old key for now: keep kv.old_key_files", step.left)
        else:
            _log.info("key change: no block is under an old key any more; kv.old_key_files can go")
        if step.unknown:
            _log.warning("key change: %d blocks are under a key that no key file here holds", step.unknown)


class _Cut(NamedTuple):
    """The keys of one fill, made once."""

    mark: tuple[int, int, float]
    keys: tuple[BlockKey, ...]
    wholes: tuple[tuple[BlockKey, int], ...]
    """Snapshots and their tokens, the longest first."""
    blocks: tuple[tuple[BlockKey, int], ...]
    """Blocks, and the tokens up to the end of each."""

    def left(self, there: Collection[BlockKey]) -> int:
        # A model whose cache cannot be cut is stored whole, as far as it is computed.
        for key, tokens in self.wholes:
            if key in there:
                return tokens
        tokens = 0
        for key, stop in self.blocks:
            if key not in there:
                break
            tokens = stop
        return tokens


def _mark(fill: Fill | Outline) -> tuple[int, int, float]:
    """What differs when a fill's tokens, or what is stored of them, may have changed."""
    return fill.total_tokens, fill.stored_tokens, fill.filled_at_s


def _cut(fill: Fill, block_tokens: int) -> _Cut:
    salt, signature = salt_of(fill.key.tenant), fill.key.signature
    blocks = tuple(
        (span.key, span.stop) for span in spans(fill.tokens, signature=signature, salt=salt, block_tokens=block_tokens)
    )
    lengths = sorted({len(fill.tokens), fill.stored_tokens} - {0}, reverse=True)
    wholes = tuple((snapshot_key(fill.tokens[:n], signature=signature, salt=salt), n) for n in lengths)
    return _Cut(_mark(fill), (*(key for key, _ in blocks), *(key for key, _ in wholes)), wholes, blocks)
