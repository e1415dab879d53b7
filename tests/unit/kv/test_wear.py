from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fakes.kv import SALT
from nightfill.errors import TierFull
from nightfill.kv.block import sealed_bytes
from nightfill.kv.tiers.disk import DiskTier
from nightfill.kv.tiers.wear import WriteBudget, used_on

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.kv import FakeClock, MakeSample, MakeStore
    from nightfill.kv.buffer import Buffers

DAY_S = 86400.0


def test_what_is_over_the_budget_is_refused_until_midnight(tmp_path: Path) -> None:
    budget = WriteBudget(tmp_path / "written", name="disk", bytes_per_day=100)
    now_s = 20_000 * DAY_S + 5
    budget.charge(60, now_s=now_s)
    with pytest.raises(TierFull, match=r"disk: the write budget of 100 .* has 40 left.* 2024-10-05T00:00Z"):
        budget.charge(41, now_s=now_s)
    budget.charge(40, now_s=now_s)
    with pytest.raises(TierFull):
        budget.charge(1, now_s=20_001 * DAY_S - 1)
    budget.charge(100, now_s=20_001 * DAY_S)


def test_the_count_outlives_the_process_and_a_refund_gives_back(tmp_path: Path) -> None:
    path = tmp_path / "written"
    WriteBudget(path, name="disk", bytes_per_day=100).charge(80, now_s=0)
    again = WriteBudget(path, name="disk", bytes_per_day=100)
    with pytest.raises(TierFull):
        again.charge(30, now_s=0)
    again.refund(10, now_s=0)
    again.charge(30, now_s=0)
    again.refund(1000, now_s=0)
    again.charge(100, now_s=0)


@pytest.mark.parametrize("content", [b"", b"x", b"y" * 24, b"z" * 100])
def test_a_count_that_cannot_be_read_begins_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "written").write_bytes(content)
    assert used_on(0, content) == 0
    WriteBudget(tmp_path / "written", name="disk", bytes_per_day=100).charge(100, now_s=0)


CHARGES = """
import sys, pathlib
from nightfill.errors import TierFull
from nightfill.kv.tiers.wear import WriteBudget
budget, taken = WriteBudget(pathlib.Path(sys.argv[1]), name="disk", bytes_per_day=1000), 0
for _ in range(600):
    try:
        budget.charge(1, now_s=0)
    except TierFull:
        continue
    taken += 1
print(taken)
"""


def test_processes_share_one_budget_to_the_byte(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHARGES, str(tmp_path / "written")]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as one,
        subprocess.Popen(command, stdout=subprocess.PIPE) as two,
    ):
        taken = [int(process.communicate(timeout=60)[0]) for process in (one, two)]
    assert sum(taken) == 1000


def test_no_budget_keeps_no_count(tmp_path: Path) -> None:
    WriteBudget(tmp_path / "written", name="disk", bytes_per_day=0).charge(1 << 60, now_s=0)
    assert not (tmp_path / "written").exists()


def test_a_disk_over_its_budget_is_read_and_not_written(
    tmp_path: Path, make_store: MakeStore, buffers: Buffers, clock: FakeClock, sample: MakeSample
) -> None:
    a, b, c = (sample(number, 4096) for number in range(3))
    disk = DiskTier(
        tmp_path / "kv",
        max_bytes=2 * sealed_bytes(4096),
        write_bytes_per_day=2 * sealed_bytes(4096),
        buffers=buffers,
        clock=clock,
    )
    store = make_store(disk)
    for one in (a, b):
        store.put(one.key, [one.payload], one.meta, salt=SALT)
    with pytest.raises(TierFull, match="write budget"):
        store.put(c.key, [c.payload], c.meta, salt=SALT)
    assert store.has_many([a.key, b.key, c.key]) == [True, True, False], "nothing goes for what cannot come"
    assert store.get(a.key, salt=SALT) is not None
    assert "write budget" in (store.report().tiers[0].last_error or "")
    clock.advance(DAY_S)
    store.put(c.key, [c.payload], c.meta, salt=SALT)
    assert store.has(c.key)


def test_a_write_that_finds_no_room_costs_no_budget(
    tmp_path: Path, buffers: Buffers, clock: FakeClock, sample: MakeSample
) -> None:
    disk = DiskTier(tmp_path / "kv", max_bytes=4096, write_bytes_per_day=8192, buffers=buffers, clock=clock)
    with pytest.raises(TierFull, match="cap"):
        disk.write(sample(1).key, buffers.take(8192))
    disk.write(sample(1).key, buffers.take(4096))
    disk.write(sample(1).key, buffers.take(4096))
    shutil.rmtree(tmp_path / "kv")
    disk.write(sample(1).key, buffers.take(4096))
