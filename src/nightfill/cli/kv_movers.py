"""The tiers and the store, and what lies below them, as movers of blocks that can be measured."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.bench.movers import Memory, Mover, RawFiles, RawRedis, RedisServer, Room
from nightfill.contexts.context import Signature
from nightfill.errors import BlockCorrupt, TierUnavailable
from nightfill.kv import BlockMeta, spans

if TYPE_CHECKING:
    from nightfill.config import TierSettings
    from nightfill.kv import BlockKey
    from nightfill.kv.trial import Trial

_SALT: Final = bytes(32)
_META: Final = BlockMeta(kind="block", signature=Signature("0b" * 32), start=0, stop=1)


class ClosableMover(Mover, Protocol):
    """A mover that holds something to let go of."""

    def close(self) -> None:
        """Let go of it, once."""


class TierMover:
    """Blocks of a tier, all with the bytes of one sealed block."""

    def __init__(self, trial: Trial, *, block_bytes: int, count: int) -> None:
        self._trial = trial
        self._keys = _keys(count)
        payload = memoryview(os.urandom(block_bytes))
        self.sealed: Final = trial.sealer.seal(self._keys[0], _META, [payload], salt=_SALT)
        self._room = Room(len(self.sealed))

    def save(self, index: int) -> None:
        """See `Mover`. What a tier would keep as it is given is copied for it first, as sealing does."""
        sealed = self.sealed
        if self._trial.lends:
            sealed = self._trial.buffers.take(len(self.sealed))
            sealed[:] = self.sealed
        self._trial.tier.write(self._keys[index], sealed)

    def load(self, index: int) -> None:
        """See `Mover`. A view of the tier's own memory is copied, as whoever uses it does."""
        found = self._read(index)
        if self._trial.lends:
            self._room.mine()[:] = found

    def forget(self, index: int) -> None:
        """See `Mover`."""
        self._trial.tier.drop(self._keys[index])

    def look_up(self, index: int) -> None:
        """Ask for one block."""
        if self._trial.tier.length(self._keys[index]) is None:
            raise TierUnavailable(f"{self._trial.tier.name}: lost a block while it was measured")

    def look_up_all(self) -> None:
        """Ask for all blocks together."""
        self._trial.tier.lengths(self._keys)

    def verify(self) -> None:
        """Raise BlockCorrupt unless the blocks are what was saved."""
        for index in range(len(self._keys)):
            if self._read(index) != self.sealed:
                raise BlockCorrupt(f"{self._trial.tier.name}: gave other bytes than it was given")

    def _read(self, index: int) -> memoryview:
        found = self._trial.tier.read(self._keys[index])
        if found is None:
            raise TierUnavailable(f"{self._trial.tier.name}: lost a block while it was measured")
        return found


class StoreMover:
    """Blocks of the whole store: sealed when saved, verified and copied into memory of the caller when loaded."""

    def __init__(self, trial: Trial, *, block_bytes: int, count: int) -> None:
        self._store = trial.store
        self._keys = _keys(count)
        self._payload = memoryview(bytearray(os.urandom(block_bytes)))
        self._room = Room(block_bytes)

    def save(self, index: int) -> None:
        """See `Mover`."""
        self._store.put(self._keys[index], [self._payload], _META, salt=_SALT)

    def load(self, index: int) -> None:
        """See `Mover`."""
        if self._store.get_into(self._keys[index], self._room.mine(), salt=_SALT) is None:
            raise TierUnavailable("the store lost a block while it was measured")

    def forget(self, index: int) -> None:
        """See `Mover`."""
        self._store.drop([self._keys[index]])


def raw_mover(
    trial: Trial, wanted: TierSettings, sealed: memoryview, *, count: int
) -> tuple[ClosableMover | None, str]:
    """The plainest way to move the same bytes to and from the same device, and its name; None where there is none."""
    if wanted.kind == "ram":
        name = "memcpy to and from shared memory" if wanted.shared else "memcpy"
        return Memory(sealed, count=count, shared=wanted.shared), name
    if trial.folder is not None:
        name = "preadv and pwritev, a file per block" + (", O_DIRECT" if trial.direct else "")
        return RawFiles(trial.folder, sealed, direct=trial.direct), name
    if (at := trial.server) is not None:
        server = RedisServer(
            host=at.host, port=at.port, path=at.path, tls=at.tls, db=at.db, user=at.user, password=at.password
        )
        prefix = trial.prefix + b":raw:"
        return RawRedis(server, sealed, prefix=prefix, timeout_s=wanted.timeout_s), "SET and GET on blocking sockets"
    return None, ""


def _keys(count: int) -> list[BlockKey]:
    found = spans(range(count), signature=_META.signature, salt=_SALT, block_tokens=1)
    return [span.key for span in found]
