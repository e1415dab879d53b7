"""A trial: an empty tier like one of the settings', on the same device, beside it and touching nothing that it holds.

    ram      memory of this process, or an arena of its own where it is shared
    disk     <folder of the tier>/trial-<random>
    redis    keys that begin with `nf:{kv}:trial-<random>`: on the same node of a cluster as the tier's
    s3       <prefix of the tier>/trial-<random>

All of it is deleted at the end, also after an exception. What a killed process leaves in a disk tier's folder, the next
trial there removes; elsewhere the names tell it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.errors import BadSetting, TierFull
from nightfill.kv import open_sealer
from nightfill.kv.buffer import Buffers, capacity_for
from nightfill.kv.resp import Address, Connection, parse_url
from nightfill.kv.store import Store
from nightfill.kv.tiers.arena import SHARED_MEMORY, ArenaTier
from nightfill.kv.tiers.disk import DiskTier
from nightfill.kv.tiers.folder import BlockFolder
from nightfill.kv.tiers.ram import RamTier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nightfill.config import KvSettings, TierSettings
    from nightfill.kv.seal import Sealer
    from nightfill.kv.tier import Tier

_MARK: Final = "trial-"
_DAY_S: Final = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What the trial is for. Lengths are those of sealed blocks."""

    block_bytes: int
    blocks: int
    """At a time, in the tier."""
    beside: int
    """More of them that the caller keeps on the same device."""
    written: int
    """In all, into the tier and beside it, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An empty tier, and where others may measure what lies below it."""

    tier: Tier
    store: Store
    """Over this tier alone, sealed as the settings say."""
    sealer: Sealer
    buffers: Buffers
    folder: Path | None = None
    """Of a disk tier: what the caller puts here goes too."""
    direct: bool = False
    """Whether the disk tier uses O_DIRECT."""
    server: Address | None = None
    prefix: bytes = b""
    """Of a redis tier: keys that begin with `<prefix>:raw:` go too, if they end with a number below `beside`."""
    lends: bool = False
    """Whether `Tier.read` gives a view of the tier's own memory, so that nothing has been copied yet."""


def tier_names(tiers: Sequence[TierSettings]) -> list[str]:
    """What the tiers are called, in the order given: `ram`, `disk`, `disk-2`, ..."""
    names: list[str] = []
    for place, wanted in enumerate(tiers):
        earlier = sum(other.kind == wanted.kind for other in tiers[:place])
        names.append(wanted.kind if not earlier else f"{wanted.kind}-{earlier + 1}")
    return names


@contextmanager
def open_trial(
    settings: KvSettings, place: int, need: Need, *, data_dir: Path, clock: Callable[[], float] = time.time
) -> Iterator[Trial]:
    """A trial of the tier at `place`. Raises BadSetting; TierFull when the device has too little room; TierUnavailable.

    Refuses before anything is written: a disk tier's floor of free space and its write budget hold, and a server's
    `maxmemory` is not reached, for else it would evict what others stored.
    """
    wanted = settings.tiers[place]
    name = tier_names(settings.tiers)[place]
    mark = _MARK + secrets.token_hex(6)
    # As many as it may hold, and as many again for buffers that others hold meanwhile.
    buffers = Buffers(max_idle_bytes=2 * need.blocks * capacity_for(need.block_bytes))
    sealer = open_sealer(settings, buffers)
    max_bytes = max(2 * (need.blocks + 2) * need.block_bytes, 16 << 20)
    param = f"kv.tiers.{place}"
    opened = {"ram": _ram, "disk": _disk, "redis": _redis, "s3": _s3}[wanted.kind]
    with opened(_Wanted(wanted, name, param, mark, max_bytes, need, data_dir, buffers, clock)) as parts:
        tier, rest = parts
        store = Store([tier], sealer, ttl_s=_DAY_S, clock=clock)
        try:
            yield Trial(tier=tier, store=store, sealer=sealer, buffers=buffers, **rest)
        finally:
            store.close()


@dataclass(frozen=True, slots=True)
class _Wanted:
    tier: TierSettings
    name: str
    param: str
    mark: str
    max_bytes: int
    need: Need
    data_dir: Path
    buffers: Buffers
    clock: Callable[[], float]

    @property
    def held_bytes(self) -> int:
        """At a time on the device: the blocks, what is beside them, and a draft."""
        return (self.need.blocks + self.need.beside + 2) * self.need.block_bytes

    def require(self, free_bytes: int, where: str, floor_bytes: int = 0) -> None:
        if free_bytes - self.held_bytes < floor_bytes:
            floor = f" above the floor of {floor_bytes}" if floor_bytes else ""
            raise TierFull(
                f"{self.name}: {free_bytes} bytes are free {where}, and the trial needs {self.held_bytes}{floor}: "
                "measure with fewer bytes"
            )


@contextmanager
def _ram(wanted: _Wanted) -> Iterator[tuple[Tier, dict[str, Any]]]:
    if not wanted.tier.shared:
        yield RamTier(name=wanted.name, max_bytes=wanted.max_bytes, clock=wanted.clock), {"lends": True}
        return
    status = os.statvfs(SHARED_MEMORY)
    wanted.require(status.f_bavail * status.f_frsize, f"in {SHARED_MEMORY}")
    # The name of an arena comes from that of the data folder, which need not be there.
    tier = ArenaTier(
        data_dir=wanted.data_dir / wanted.mark,
        name=wanted.name,
        max_bytes=wanted.max_bytes,
        buffers=wanted.buffers,
        clock=wanted.clock,
    )
    try:
        yield tier, {}
    finally:
        tier.path.unlink(missing_ok=True)


@contextmanager
def _disk(wanted: _Wanted) -> Iterator[tuple[Tier, dict[str, Any]]]:
    root = (wanted.data_dir / (Path(wanted.tier.path).expanduser() if wanted.tier.path else "kv")).absolute()
    where = f"{wanted.param}.path"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clean(root)
        status = os.statvfs(root)
        wanted.require(status.f_bavail * status.f_frsize, f"in {root}", wanted.tier.min_free_bytes)
        if wanted.tier.write_bytes_per_day:
            # The wear is the same, whatever is written.
            budget = BlockFolder(
                root,
                name=wanted.name,
                direct=False,
                buffers=wanted.buffers,
                write_bytes_per_day=wanted.tier.write_bytes_per_day,
            )
            budget.charge(wanted.need.written * wanted.need.block_bytes, now_s=wanted.clock())
        folder = root / wanted.mark
        folder.mkdir(mode=0o700)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BadSetting(f"{where}: cannot use {root}: {error.strerror}", param=where) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tier = DiskTier(
            folder,
            name=wanted.name,
            max_bytes=wanted.max_bytes,
            min_free_bytes=wanted.tier.min_free_bytes,
            direct=wanted.tier.direct,
            buffers=wanted.buffers,
            clock=wanted.clock,
        )
        yield tier, {"folder": folder, "direct": bool(tier.usage().direct_io)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _clean(root: Path) -> None:
    """Remove the trials of processes that are gone: those under way hold a lock."""
    for folder in root.glob(_MARK + "*"):
        with suppress(FileNotFoundError, BlockingIOError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)


@contextmanager
def _redis(wanted: _Wanted) -> Iterator[tuple[Tier, dict[str, Any]]]:
    from nightfill.kv.tiers.redis import NAME, open_redis_tier

    address = parse_url(wanted.tier.url, param=f"{wanted.param}.url")
    prefix = NAME + b":" + wanted.mark.encode()
    timeout_s = wanted.tier.timeout_s
    line = Connection(address, deadline_s=time.monotonic() + timeout_s)
    try:
        told = line.call([[b"INFO", b"memory"]], deadline_s=time.monotonic() + timeout_s)[0]
    finally:
        line.close()
    if isinstance(told, bytes):  # else this user may not ask
        memory = dict(row.split(":", 1) for row in told.decode(errors="replace").split("\r\n") if ":" in row)
        limit = int(memory.get("maxmemory", "0"))
        if limit:
            wanted.require(limit - int(memory.get("used_memory", "0")), f"below the maxmemory of {address}")
    tier = open_redis_tier(
        msgspec.structs.replace(wanted.tier, max_bytes=wanted.max_bytes, tenant_max_bytes=0),
        name=wanted.name,
        param=f"{wanted.param}.url",
        buffers=wanted.buffers,
        clock=wanted.clock,
        namespace=prefix,
    )
    try:
        yield tier, {"server": address, "prefix": prefix}
    finally:
        _sweep_redis(address, prefix, wanted.need.beside, timeout_s)


def _sweep_redis(address: Address, prefix: bytes, beside: int, timeout_s: float) -> None:
    """Delete all keys of the trial, whoever wrote them, over a connection of its own."""
    line = Connection(address, deadline_s=time.monotonic() + timeout_s)
    try:
        # All that the index knows, and all that it may not know yet; keys that are not there do no harm.
        names = line.call([[b"ZRANGE", prefix + b":used", b"0", b"-1"]], deadline_s=time.monotonic() + timeout_s)[0]
        doomed = (
            [prefix + b":b:" + name for name in names if isinstance(name, bytes)] if isinstance(names, list) else []
        )
        doomed += [prefix + b":raw:%d" % index for index in range(beside)]
        for key in (*doomed, prefix + b":used", prefix + b":sizes"):
            line.call([[b"UNLINK", key]], deadline_s=time.monotonic() + timeout_s)
    finally:
        line.close()


@contextmanager
def _s3(wanted: _Wanted) -> Iterator[tuple[Tier, dict[str, Any]]]:
    try:
        from nightfill.kv.tiers.s3 import open_s3_tier
    except ImportError as error:
        kind = f"{wanted.param}.kind"
        raise BadSetting(f"{kind}: s3 needs obstore: pip install 'nightfill[s3]'", param=kind) from error
    opened = partial(
        open_s3_tier,
        msgspec.structs.replace(
            wanted.tier,
            url=f"{wanted.tier.url.rstrip('/')}/{wanted.mark}",
            max_bytes=wanted.max_bytes,
            tenant_max_bytes=0,
        ),
        name=wanted.name,
        param=f"{wanted.param}.url",
        buffers=wanted.buffers,
        clock=wanted.clock,
    )
    try:
        yield opened(), {}
    finally:
        sweeper = opened()  # the other one is closed by now
        try:
            for record in sweeper.records():
                sweeper.drop(record.key)
        finally:
            sweeper.close()
