from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fakes.kv import MASTER, FakeClock, MakeDisk, MakeSample, MakeStore, MakeTier, Sample
from fakes.redis_server import RedisServer
from fakes.s3_server import ACCESS_KEY, BUCKET, SECRET, S3Server
from nightfill.kv.buffer import Buffers
from nightfill.kv.cipher import AesGcmSealer
from nightfill.kv.objects import Address
from nightfill.kv.seal import ChecksumSealer, Sealer
from nightfill.kv.store import Store
from nightfill.kv.tiers.arena import ArenaTier
from nightfill.kv.tiers.disk import DiskTier
from nightfill.kv.tiers.ram import RamTier
from nightfill.kv.tiers.redis import RedisTier
from nightfill.kv.tiers.s3 import S3Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from nightfill.kv.roles import Policy
    from nightfill.kv.tier import Tier


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def buffers() -> Buffers:
    return Buffers()


@pytest.fixture
def sample() -> MakeSample:
    def make(number: int, nbytes: int = 8192) -> Sample:
        return Sample(number, nbytes)

    return make


@pytest.fixture(params=["checksum", "encrypted"])
def sealer(request: pytest.FixtureRequest, buffers: Buffers) -> Sealer:
    return ChecksumSealer(buffers) if request.param == "checksum" else AesGcmSealer(MASTER, buffers)


@pytest.fixture
def make_disk(tmp_path: Path, buffers: Buffers, clock: FakeClock) -> MakeDisk:
    def make(
        *,
        root: Path | None = None,
        max_bytes: int = 1 << 30,
        min_free_bytes: int = 0,
        direct: bool = True,
        name: str = "disk",
        refresh_every_s: float = 0.0,
    ) -> DiskTier:
        return DiskTier(
            root or tmp_path / "kv",
            name=name,
            max_bytes=max_bytes,
            min_free_bytes=min_free_bytes,
            direct=direct,
            buffers=buffers,
            clock=clock,
            refresh_every_s=refresh_every_s,
        )

    return make


@pytest.fixture
def make_ram(clock: FakeClock) -> MakeTier:
    def make(*, max_bytes: int = 1 << 30, name: str = "ram") -> RamTier:
        return RamTier(name=name, max_bytes=max_bytes, clock=clock)

    return make


@pytest.fixture
def make_arena(tmp_path: Path, buffers: Buffers, clock: FakeClock) -> MakeTier:
    def make(*, max_bytes: int = 1 << 30, name: str = "ram") -> ArenaTier:
        return ArenaTier(
            data_dir=tmp_path, folder=tmp_path, name=name, max_bytes=max_bytes, buffers=buffers, clock=clock
        )

    return make


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """For all tests that do it no harm."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty server."""
    shared_redis.call([b"FLUSHALL"])
    return shared_redis


@pytest.fixture
def make_redis(redis_server: RedisServer, buffers: Buffers, clock: FakeClock) -> Iterator[MakeTier]:
    opened: list[RedisTier] = []

    def make(*, max_bytes: int = 1 << 30, name: str = "redis") -> RedisTier:
        tier = RedisTier(
            redis_server.address, name=name, max_bytes=max_bytes, buffers=buffers, clock=clock, server_clock=clock
        )
        opened.append(tier)
        return tier

    yield make
    for tier in opened:
        tier.close()


@pytest.fixture
def s3_server(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An empty bucket, and the right credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    server = S3Server(clock)
    yield server
    server.close()


@pytest.fixture
def make_s3(s3_server: S3Server, buffers: Buffers, clock: FakeClock) -> Iterator[MakeTier]:
    opened: list[S3Tier] = []

    def make(*, max_bytes: int = 1 << 30, name: str = "s3") -> S3Tier:
        address = Address(bucket=BUCKET, prefix="pre/fix", endpoint=s3_server.endpoint, region="eu-test-1")
        tier = S3Tier(address, name=name, max_bytes=max_bytes, buffers=buffers, clock=clock)
        opened.append(tier)
        return tier

    yield make
    for tier in opened:
        tier.close()


@pytest.fixture(params=["ram", "arena", "disk", "disk without O_DIRECT", "redis", "s3"])
def make_tier(request: pytest.FixtureRequest, make_disk: MakeDisk) -> MakeTier:
    def make(*, max_bytes: int = 1 << 30, name: str = "tier") -> Tier:
        if not request.param.startswith("disk"):
            # Looked up by name, so that only those who ask for it start a server.
            make_other: MakeTier = request.getfixturevalue(f"make_{request.param}")
            return make_other(max_bytes=max_bytes, name=name)
        return make_disk(max_bytes=max_bytes, name=name, direct=request.param == "disk")

    return make


@pytest.fixture
def make_store(buffers: Buffers, clock: FakeClock) -> Iterator[MakeStore]:
    opened: list[Store] = []

    def make(
        *tiers: Tier,
        ttl_s: float = 3600,
        sealer: Sealer | None = None,
        policies: Mapping[str, Policy] | None = None,
    ) -> Store:
        store = Store(tiers, sealer or ChecksumSealer(buffers), ttl_s=ttl_s, clock=clock, policies=policies)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def page(buffers: Buffers) -> Callable[[int], memoryview]:
    """Pages of random bytes, as a tier would be given them."""

    def make(pages: int) -> memoryview:
        view = buffers.take(pages * 4096)
        view[:] = os.urandom(len(view))
        return view

    return make
