"""How a tier and what it is held against are measured: by turns, by rounds, with one clock."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from fakes.redis_server import RedisServer as RealRedis
from nightfill.bench.chart import draw_tiers
from nightfill.bench.movers import Memory, RawFiles, RawRedis, RedisServer, touched
from nightfill.bench.tiers import RAW, TIER, TURN_BLOCKS, Rates, TierFigures, Work, rates, ratio, tier_json, timed_each
from nightfill.errors import TierUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nightfill.bench.movers import Mover


NBYTES = 8192


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Slow:
    """Takes so many seconds for a block, and remembers what it was asked."""

    def __init__(self, clock: Clock, *, save_s: float, load_s: float, log: list[tuple[str, int]]) -> None:
        self._clock, self._save_s, self._load_s, self._log = clock, save_s, load_s, log
        self.stored: set[int] = set()

    def save(self, index: int) -> None:
        assert index not in self.stored, "saved over what is there"
        self.stored.add(index)
        self._clock.now_s += self._save_s
        self._log.append(("save", id(self)))

    def load(self, index: int) -> None:
        assert index in self.stored
        self._clock.now_s += self._load_s
        self._log.append(("load", id(self)))

    def forget(self, index: int) -> None:
        self._clock.now_s += 100.0  # which nobody may count
        self.stored.discard(index)


def test_rates_are_bytes_by_the_time_of_saves_and_loads_alone() -> None:
    clock = Clock()
    log: list[tuple[str, int]] = []
    arms = {
        TIER: Slow(clock, save_s=2.0, load_s=0.5, log=log),
        RAW: Slow(clock, save_s=1.0, load_s=0.25, log=log),
    }
    found = rates(arms, Work(blocks=20, block_bytes=1000, rounds=3), clock=clock)
    assert found[TIER].save_bps == pytest.approx((500.0,) * 3)
    assert found[TIER].load_bps == pytest.approx((2000.0,) * 3)
    assert found[RAW].load_bps == pytest.approx((4000.0,) * 3)
    assert ratio(found[TIER].load_bps, found[RAW].load_bps) == pytest.approx(0.5)
    # Three rounds and the one before them, in turns of a few blocks; neither is always first.
    assert Counter(log) == {(what, id(arm)): 80 for what in ("save", "load") for arm in arms.values()}
    firsts = {log[at][1] for at in range(0, len(log), 2 * TURN_BLOCKS)}
    assert len(firsts) == 2


def test_the_median_of_ratios_forgives_a_round_that_was_slow_for_both() -> None:
    assert ratio([90.0, 9.0, 80.0], [100.0, 10.0, 100.0]) == pytest.approx(0.9)


def test_several_threads_move_blocks_side_by_side() -> None:
    both = threading.Barrier(2, timeout=20)

    class Meeting:
        def save(self, _index: int) -> None:
            both.wait()

        def load(self, _index: int) -> None:
            both.wait()

        def forget(self, _index: int) -> None:
            pass

    found = rates({TIER: Meeting()}, Work(blocks=8, block_bytes=1, rounds=1, threads=2))
    assert len(found[TIER].load_bps) == 1


def test_look_ups_are_timed_one_by_one_after_the_first() -> None:
    clock = Clock()

    def act(index: int) -> None:
        clock.now_s += 1.0 + index

    assert timed_each(act, 3, clock=clock) == (1.0, 2.0, 3.0)


def test_the_json_has_medians_spreads_and_no_ratio_without_a_rival() -> None:
    one = Rates(load_bps=(1.0, 3.0, 2.0), save_bps=(4.0, 6.0, 5.0))
    twice = Rates(load_bps=(2.0, 6.0, 4.0), save_bps=(4.0, 6.0, 5.0))
    figures = TierFigures(
        name="disk",
        what="files",
        raw="preadv",
        block_bytes=4096,
        blocks=7,
        lookup_s=(0.3, 0.1, 0.2),
        lookup_all_s=(0.5,),
        threads={1: {TIER: one, RAW: twice}, 4: {TIER: one}},
        store=one,
    )
    shown = tier_json(figures)
    assert (shown["load_bps"], shown["raw_bps"], shown["load_ratio"]) == (2.0, 4.0, 0.5)
    assert (shown["save_bps"], shown["raw_save_bps"], shown["save_ratio"]) == (5.0, 5.0, 1.0)
    assert (shown["lookup_s"], shown["load_spread"], shown["store_load_bps"]) == (0.2, [1.0, 3.0], 2.0)
    (more,) = shown["parallel"]
    assert (more["threads"], more["load_bps"], more["raw_bps"], more["load_ratio"]) == (4, 2.0, None, None)


def test_a_chart_takes_tiers_with_a_rival_and_without(tmp_path: Path) -> None:
    row = {"load_bps": 2e9, "save_bps": 1e9, "block_bytes": 4096}
    with_raw = row | {"raw_bps": 3e9, "raw_save_bps": 1e9, "load_ratio": 0.67, "save_ratio": 1.0}
    without = row | {"raw_bps": None, "raw_save_bps": None, "load_ratio": None, "save_ratio": None}
    draw_tiers({"disk": with_raw, "s3": without}, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def redis() -> Iterator[RealRedis]:
    server = RealRedis(password="open sesame")
    yield server
    server.close()


def test_files_and_memory_move_what_they_were_given(tmp_path: Path) -> None:
    source = memoryview(bytes(range(256)) * (NBYTES // 256))
    arms: list[Mover] = [RawFiles(tmp_path, source, direct=False), Memory(source, count=2)]
    for mover in arms:
        mover.save(1)
        mover.load(1)
    assert (tmp_path / "1.raw").read_bytes() == source
    arms[0].forget(1)
    assert not list(tmp_path.iterdir())


def test_a_short_file_is_no_speed(tmp_path: Path) -> None:
    files = RawFiles(tmp_path, touched(NBYTES), direct=False)
    files.save(0)
    (tmp_path / "0.raw").write_bytes(b"short")
    with pytest.raises(TierUnavailable, match=f"5 of {NBYTES}"):
        files.load(0)


def test_a_raw_socket_logs_in_and_moves_a_value_of_megabytes(redis: RealRedis) -> None:
    source = memoryview(bytes(range(256)) * 16384)
    server = RedisServer(path=redis.path, password=redis.password)
    raw = RawRedis(server, source, prefix=b"raw:", timeout_s=20)
    try:
        raw.save(3)
        raw.load(3)
        assert redis.call([b"STRLEN", b"raw:3"]) == [len(source)]
        raw.forget(3)
        with pytest.raises(TierUnavailable, match="lost"):
            raw.load(3)
    finally:
        raw.close()


def test_a_raw_socket_is_refused_with_a_wrong_password(redis: RealRedis) -> None:
    raw = RawRedis(RedisServer(path=redis.path, password="no"), touched(NBYTES), prefix=b"raw:", timeout_s=20)
    try:
        with pytest.raises(TierUnavailable, match="WRONGPASS"):
            raw.save(0)
    finally:
        raw.close()
