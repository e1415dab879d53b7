"""Clock, sample blocks and makers for tests of the KV store."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nightfill.contexts.context import Signature
from nightfill.kv import BlockKey, BlockMeta

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from nightfill.kv.roles import Policy
    from nightfill.kv.seal import Sealer
    from nightfill.kv.store import Store
    from nightfill.kv.tier import Tier
    from nightfill.kv.tiers.disk import DiskTier

SIGNATURE = Signature("5a" * 32)
SALT = b"salt"
MASTER = bytes(range(32))


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass(frozen=True)
class Sample:
    """A block to store, made from a number."""

    number: int
    nbytes: int

    @property
    def key(self) -> BlockKey:
        return BlockKey(hashlib.sha256(b"key %d" % self.number).digest())

    @property
    def payload(self) -> bytes:
        return (hashlib.sha256(b"payload %d" % self.number).digest() * (self.nbytes // 32 + 1))[: self.nbytes]

    @property
    def meta(self) -> BlockMeta:
        return BlockMeta(
            kind="block",
            signature=SIGNATURE,
            start=256 * self.number,
            stop=256 * (self.number + 1),
            layout=b"layout %d" % self.number,
        )


class MakeSample(Protocol):
    def __call__(self, number: int, nbytes: int = 8192) -> Sample: ...


class MakeTier(Protocol):
    def __call__(self, *, max_bytes: int = 1 << 30, name: str = "tier") -> Tier: ...


class MakeDisk(Protocol):
    def __call__(
        self,
        *,
        root: Path | None = None,
        max_bytes: int = 1 << 30,
        min_free_bytes: int = 0,
        direct: bool = True,
        name: str = "disk",
        refresh_every_s: float = 0.0,
    ) -> DiskTier: ...


class MakeStore(Protocol):
    def __call__(
        self,
        *tiers: Tier,
        ttl_s: float = 3600,
        sealer: Sealer | None = None,
        policies: Mapping[str, Policy] | None = None,
    ) -> Store: ...
