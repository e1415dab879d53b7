"""Caps per tenant, in every tier that keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightfill.errors import TierFull
from nightfill.kv.block import owner_of
from nightfill.kv.seal import ChecksumSealer
from nightfill.kv.tiers.disk import DiskTier
from nightfill.kv.tiers.ram import RamTier

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.kv import FakeClock, MakeSample
    from nightfill.kv.buffer import Buffers
    from nightfill.kv.tier import Tier

PAGES = 2
SIZE = PAGES * 4096


class MakeCapped(Protocol):
    def __call__(self, *, blocks: int, blocks_per_tenant: int) -> Tier: ...


@pytest.fixture(params=["ram", "disk"])
def make_capped(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, buffers: Buffers, clock: FakeClock
) -> MakeCapped:
    def make(*, blocks: int, blocks_per_tenant: int) -> Tier:
        if request.param == "ram":
            return RamTier(max_bytes=blocks * SIZE, tenant_max_bytes=blocks_per_tenant * SIZE, clock=clock)
        return DiskTier(
            tmp_path_factory.mktemp("kv"),
            max_bytes=blocks * SIZE,
            tenant_max_bytes=blocks_per_tenant * SIZE,
            buffers=buffers,
            clock=clock,
            refresh_every_s=0.0,
        )

    return make


@pytest.fixture
def fill(buffers: Buffers, clock: FakeClock, sample: MakeSample) -> Fill:
    return Fill(ChecksumSealer(buffers), clock, sample)


class Fill:
    """Writes numbered blocks of a tenant."""

    def __init__(self, sealer: ChecksumSealer, clock: FakeClock, sample: MakeSample) -> None:
        self._sealer, self._clock, self._sample = sealer, clock, sample

    def __call__(self, tier: Tier, tenant: str, *numbers: int) -> None:
        for number in numbers:
            self._clock.advance(1)
            one = self._sample(number, SIZE - 4096)
            sealed = self._sealer.seal(one.key, one.meta, [memoryview(one.payload)], salt=tenant.encode())
            tier.write(one.key, sealed)

    def there(self, tier: Tier, count: int) -> list[int]:
        return [number for number in range(count) if tier.length(self._sample(number).key) is not None]


def test_a_tenant_over_its_cap_loses_its_own_oldest_and_nobody_else_anything(
    make_capped: MakeCapped, fill: Fill
) -> None:
    tier = make_capped(blocks=10, blocks_per_tenant=2)
    fill(tier, "a", 0, 1)
    fill(tier, "b", 2, 3, 4)
    assert fill.there(tier, 5) == [0, 1, 3, 4]
    fill(tier, "b", 5)
    assert fill.there(tier, 6) == [0, 1, 4, 5]


def test_a_tenant_under_its_cap_makes_room_as_everybody_does(make_capped: MakeCapped, fill: Fill) -> None:
    tier = make_capped(blocks=3, blocks_per_tenant=2)
    fill(tier, "a", 0, 1)
    fill(tier, "b", 2, 3)
    assert fill.there(tier, 4) == [1, 2, 3]


def test_a_block_over_its_tenants_cap_is_refused(make_capped: MakeCapped, fill: Fill, sample: MakeSample) -> None:
    tier = make_capped(blocks=3, blocks_per_tenant=1)
    fill(tier, "a", 0)
    tier.pin(frozenset({sample(0).key}))
    with pytest.raises(TierFull, match="tenant"):
        fill(tier, "a", 1)
    fill(tier, "b", 2)
    assert fill.there(tier, 3) == [0, 2]


def test_a_block_written_again_is_counted_once(make_capped: MakeCapped, fill: Fill) -> None:
    tier = make_capped(blocks=10, blocks_per_tenant=2)
    fill(tier, "a", 0, 1, 0, 1, 1, 0)
    assert fill.there(tier, 2) == [0, 1]


def test_whose_blocks_are_is_told_from_their_bytes_alone(
    tmp_path: Path, buffers: Buffers, clock: FakeClock, fill: Fill
) -> None:
    def opened() -> DiskTier:
        return DiskTier(
            tmp_path,
            max_bytes=10 * SIZE,
            tenant_max_bytes=2 * SIZE,
            buffers=buffers,
            clock=clock,
            refresh_every_s=0.0,
        )

    mine, yours = opened(), opened()
    fill(mine, "a", 0, 1)
    fill(yours, "b", 2)
    fill(yours, "a", 3)
    assert fill.there(mine, 4) == [1, 2, 3]
    fill(opened(), "a", 4)
    assert fill.there(mine, 5) == [2, 3, 4]


def test_headers_are_not_read_where_no_tenant_has_a_cap(
    tmp_path: Path, buffers: Buffers, clock: FakeClock, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(DiskTier(tmp_path, max_bytes=10 * SIZE, buffers=buffers, clock=clock), "a", 0)
    disk = DiskTier(tmp_path, max_bytes=10 * SIZE, buffers=buffers, clock=clock)
    monkeypatch.setattr("nightfill.kv.tiers.folder.BlockFolder.head", None)
    fill(disk, "a", 1)
    assert fill.there(disk, 2) == [0, 1]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=30))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_tenant_is_ever_over_its_cap(
    make_capped: MakeCapped, fill: Fill, sample: MakeSample, writes: list[tuple[str, int]]
) -> None:
    tier = make_capped(blocks=7, blocks_per_tenant=3)
    number = {(tenant, n): 10 * "abc".index(tenant) + n for tenant in "abc" for n in range(4)}
    for tenant, n in writes:
        fill(tier, tenant, number[tenant, n])
        held = [sum(tier.length(sample(number[tenant, n]).key) is not None for n in range(4)) for tenant in "abc"]
        assert max(held) <= 3
        assert sum(held) <= 7
        assert tier.length(sample(number[tenant, n]).key) is not None


def test_an_owner_is_no_salt() -> None:
    assert owner_of(b"a" * 32) != owner_of(b"b" * 32)
    assert b"a" * 8 not in owner_of(b"a" * 32)
