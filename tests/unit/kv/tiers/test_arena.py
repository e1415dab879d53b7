from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from fakes import arena_worker
from fakes.arena_worker import KEYS, check, content
from nightfill.config import ByteSize, KvSettings, TierSettings
from nightfill.errors import BadSetting, BlockCorrupt, KvError, TierFull, TierUnavailable
from nightfill.kv import open_store
from nightfill.kv.tiers import arena as arena_module
from nightfill.kv.tiers import arena_file
from nightfill.kv.tiers.arena import ArenaTier
from nightfill.kv.tiers.arena_file import arena_path
from nightfill.kv.tiers.arena_table import Geometry, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fakes.kv import FakeClock
    from nightfill.kv.buffer import Buffers

    MakeArena = Callable[..., ArenaTier]

MAX_BYTES = 1 << 20


@pytest.fixture
def make(tmp_path: Path, buffers: Buffers, clock: FakeClock) -> Iterator[MakeArena]:
    opened: list[ArenaTier] = []

    def make(*, max_bytes: int = MAX_BYTES, folder: Path = tmp_path, lock_timeout_s: float = 1.0) -> ArenaTier:
        tier = ArenaTier(
            data_dir=tmp_path,
            folder=folder,
            max_bytes=max_bytes,
            buffers=buffers,
            clock=clock,
            lock_timeout_s=lock_timeout_s,
        )
        opened.append(tier)
        return tier

    yield make
    for tier in opened:
        tier.close()


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr(arena_module, "_REST_S", 0.0)
    monkeypatch.setattr(arena_module, "_CRAMPED_S", 0.0)


def worker(folder: Path, mode: str, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, arena_worker.__file__, str(folder), str(MAX_BYTES), mode, str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def table_of(tier: ArenaTier) -> Table:
    return tier._open().table


def test_another_process_reads_what_was_written_and_so_does_the_next_after_all_are_gone(
    make: MakeArena, buffers: Buffers
) -> None:
    one, two = make(), make()
    block = content(buffers, 69632)
    one.write(KEYS[0], block)
    assert two.read(KEYS[0]) == block
    assert two.lengths([KEYS[0], KEYS[1]]) == [69632, None]
    one.close()
    two.close()
    assert make().read(KEYS[0]) == block


def test_what_one_drops_is_gone_for_all_and_from_memory(make: MakeArena, buffers: Buffers) -> None:
    one, two = make(), make()
    one.write(KEYS[0], content(buffers, 69632))
    assert two.drop(KEYS[0])
    assert one.read(KEYS[0]) is None
    assert not any(one.path.read_bytes()[Geometry.for_cap(MAX_BYTES).data_at :])


def test_what_is_evicted_is_gone_from_memory(make: MakeArena, buffers: Buffers) -> None:
    tier = make(max_bytes=266240)
    tier.write(KEYS[0], content(buffers, 266240))
    small = content(buffers, 8192)
    tier.write(KEYS[1], small)
    assert tier.read(KEYS[0]) is None
    data = tier.path.read_bytes()[Geometry.for_cap(266240).data_at :]
    assert sum(map(bool, data)) <= len(small)


def test_a_use_in_one_process_counts_when_another_evicts(make: MakeArena, buffers: Buffers, clock: FakeClock) -> None:
    one, two = make(max_bytes=3 * 65536), make(max_bytes=3 * 65536)
    for key in KEYS[:3]:
        one.write(key, content(buffers, 65536))
        clock.advance(10)
    two.write(KEYS[3], content(buffers, 65536))  # two knows the order now
    clock.advance(10)
    one.touch(KEYS[1])
    clock.advance(10)
    two.write(KEYS[4], content(buffers, 65536))
    assert {record.key for record in one.records()} == {KEYS[1], KEYS[3], KEYS[4]}


def test_blocks_of_all_sizes_fill_the_arena_to_the_last_slab(
    make: MakeArena, buffers: Buffers, clock: FakeClock
) -> None:
    tier = make(max_bytes=64 * 4096)
    for number, key in enumerate(KEYS * 20):
        clock.advance(1)
        tier.write(key, content(buffers, 4096 * (1 + number * 7 % 13)))
        if number % 5 == 4:
            tier.drop(KEYS[number * 5 % 12])
    check(tier)
    whole = content(buffers, 64 * 4096)
    tier.write(KEYS[0], whole)
    assert tier.read(KEYS[0]) == whole
    assert [record.key for record in tier.records()] == [KEYS[0]]


def test_an_empty_arena_takes_next_to_no_memory(make: MakeArena) -> None:
    cap = 64 << 30
    path = make(max_bytes=cap).path
    assert path.stat().st_size > cap
    assert path.stat().st_blocks * 512 < cap / 500


def test_processes_that_write_read_and_drop_at_once_never_see_a_mixture(make: MakeArena, tmp_path: Path) -> None:
    others = [worker(tmp_path, "race", number) for number in range(2)]
    for other in others:
        out, _ = other.communicate(timeout=60)
        assert other.returncode == 0
        assert int(out.split()[-1]) > 100
    check(make())


def test_a_writer_killed_at_any_line_leaves_whole_blocks_and_no_lost_memory(tmp_path: Path) -> None:
    with worker(tmp_path, "cut", 7) as run:
        out, _ = run.communicate(timeout=120)
    assert run.returncode == 0
    assert int(out) > 100


def test_writers_killed_at_random_instants_leave_whole_blocks(
    make: MakeArena, buffers: Buffers, tmp_path: Path
) -> None:
    tier = make()
    for number in range(8):
        with worker(tmp_path, "flood", number) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            for _ in range(5 * number):
                tier.write(KEYS[number], content(buffers, 69632))
            other.kill()
        check(tier, counts=False)
        tier.write(KEYS[0], content(buffers, 266240))
        check(tier)


def test_a_block_overwritten_while_it_is_read_is_read_again(
    make: MakeArena, buffers: Buffers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier, other = make(max_bytes=69632), make(max_bytes=69632)
    tier.write(KEYS[0], content(buffers, 69632))
    new = content(buffers, 69632)
    copy_out = arena_file.ArenaFile.copy_out
    left = [1]

    def meanwhile(self: arena_file.ArenaFile, runs: list[tuple[int, int]], out: memoryview) -> None:
        copy_out(self, runs, out)
        if left[0]:
            left[0] -= 1
            other.write(KEYS[0], new)

    monkeypatch.setattr(arena_file.ArenaFile, "copy_out", meanwhile)
    assert tier.read(KEYS[0]) == new
    left[0] = 99
    assert tier.read(KEYS[0]) is None


@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted", "replaced"])
def test_a_file_that_goes_under_a_running_process_is_made_anew(damage: str, make: MakeArena, buffers: Buffers) -> None:
    tier, other = make(), make()
    tier.write(KEYS[0], content(buffers, 69632))
    match damage:
        case "truncated":
            os.truncate(tier.path, 9 * 4096)
        case "emptied":
            os.truncate(tier.path, 0)
        case "deleted":
            tier.path.unlink()
        case "replaced":
            tier.path.unlink()
            tier.path.write_bytes(b"x" * 9999)
            tier.path.chmod(0o600)
    assert tier.read(KEYS[0]) is None
    block = content(buffers, 69632)
    tier.write(KEYS[1], block)
    assert other.read(KEYS[1]) == block


@pytest.mark.parametrize("seed", range(6))
def test_no_damage_of_the_table_does_more_than_lose_blocks(
    seed: int, make: MakeArena, buffers: Buffers, rested: None
) -> None:
    """Reads may miss, fail by an error of ours, or give bytes that the seal refuses; nothing crashes, and it heals."""
    dice = random.Random(seed)
    tier = make()
    for key in KEYS[:6]:
        tier.write(key, content(buffers, 69632))
    end = Geometry.for_cap(MAX_BYTES).data_at
    fd = os.open(tier.path, os.O_RDWR)
    try:
        for _ in range(60):
            entries = Geometry.for_cap(MAX_BYTES).entries_at
            area = dice.choice([(40, 160), (4096, entries), (entries, entries + 640), (entries, end)])
            os.pwrite(fd, dice.randbytes(8) if dice.random() < 0.5 else bytes(8), dice.randrange(*area, 8))
            for call in (
                tier.read,
                tier.length,
                tier.touch,
                tier.drop,
                lambda key: tier.write(key, buffers.take(69632)),
            ):
                with contextlib.suppress(KvError):
                    call(dice.choice(KEYS))
            tier.usage()
    finally:
        os.close(fd)
    with tier._open().locked(1):
        tier._repair(tier._open())
    assert tier.usage().blocks == len(tier.records())
    block = content(buffers, 266240)
    tier.write(KEYS[0], block)
    assert tier.read(KEYS[0]) == block


def test_a_chain_that_leads_astray_is_corrupt_and_gone_after_the_drop_that_finds_it(
    make: MakeArena, buffers: Buffers, rested: None
) -> None:
    tier = make()
    tier.write(KEYS[0], content(buffers, 69632))
    geometry = Geometry.for_cap(MAX_BYTES)
    fd = os.open(tier.path, os.O_RDWR)
    os.pwrite(fd, b"\xff" * (geometry.entries_at - geometry.chain_at), geometry.chain_at)
    os.close(fd)
    with pytest.raises(BlockCorrupt):
        tier.read(KEYS[0])
    with pytest.raises(TierUnavailable, match="rebuilt"):
        tier.drop(KEYS[0])
    assert tier.read(KEYS[0]) is None
    check(tier)


def test_a_file_of_another_format_is_made_anew(make: MakeArena, buffers: Buffers) -> None:
    first = make()
    first.write(KEYS[0], content(buffers, 4096))
    first.close()
    fd = os.open(first.path, os.O_RDWR)
    os.pwrite(fd, bytes([77]), 8)
    os.close(fd)
    tier = make()
    assert tier.records() == ()
    tier.write(KEYS[0], content(buffers, 4096))
    check(tier)


@pytest.mark.parametrize("what", ["a link", "a folder", "readable to others"])
def test_a_file_that_is_not_ours_alone_is_refused(what: str, make: MakeArena, tmp_path: Path, buffers: Buffers) -> None:
    path = arena_path(tmp_path, tmp_path, MAX_BYTES)
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    match what:
        case "a link":
            path.symlink_to(target)
        case "a folder":
            path.mkdir()
        case _:
            path.touch(mode=0o644)
            path.chmod(0o644)
    tier = make()
    with pytest.raises(TierUnavailable):
        tier.write(KEYS[0], content(buffers, 4096))
    assert target.read_bytes() == b"precious"
    assert tier.usage().blocks == 0
    tier.touch(KEYS[0])


def test_a_file_of_another_user_is_refused(make: MakeArena, monkeypatch: pytest.MonkeyPatch, rested: None) -> None:
    somebody = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody)
    tier = make()
    with pytest.raises(TierUnavailable, match="not a file of this user"):
        tier.read(KEYS[0])


def test_a_host_without_shared_memory_has_no_arena_until_it_has_some(
    make: MakeArena, tmp_path: Path, buffers: Buffers, rested: None
) -> None:
    tier = make(folder=tmp_path / "later")
    with pytest.raises(TierUnavailable):
        tier.length(KEYS[0])
    (tmp_path / "later").mkdir()
    tier.write(KEYS[0], content(buffers, 4096))
    check(tier)


def test_after_a_failure_calls_fail_at_once(make: MakeArena, tmp_path: Path) -> None:
    tier = make(folder=tmp_path / "later")
    (tmp_path / "later").mkdir()
    with pytest.raises(TierUnavailable, match="a moment ago"):
        tier.length(KEYS[0])


def test_when_memory_runs_out_the_arena_makes_do_with_what_it_has(
    make: MakeArena, buffers: Buffers, monkeypatch: pytest.MonkeyPatch, clock: FakeClock, rested: None
) -> None:
    tier = make()
    tier.write(KEYS[0], content(buffers, 69632))
    grown = table_of(tier).grown_slabs

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    clock.advance(1)
    for key in KEYS[1:4]:
        tier.write(key, content(buffers, 69632))
    assert table_of(tier).grown_slabs == grown
    assert tier.length(KEYS[0]) is None
    with pytest.raises(TierFull, match="no shared memory left"):
        tier.write(KEYS[5], content(buffers, 266240))
    check(tier)
    monkeypatch.undo()


def test_no_memory_for_the_table_is_an_unavailable_tier(
    make: MakeArena, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    monkeypatch.setattr(arena_module, "_REST_S", 0.0)
    tier = make()
    with pytest.raises(TierUnavailable, match="no shared memory left"):
        tier.length(KEYS[0])


def test_a_writer_waits_for_another_only_so_long_and_readers_not_at_all(make: MakeArena, buffers: Buffers) -> None:
    tier, other = make(lock_timeout_s=0.05), make()
    block = content(buffers, 69632)
    tier.write(KEYS[0], block)
    with other._open().locked(1):
        with pytest.raises(TierUnavailable, match="stayed locked"):
            tier.write(KEYS[1], block)
        assert tier.read(KEYS[0]) == block
        with pytest.raises(TierUnavailable, match="a moment ago"):
            tier.drop(KEYS[0])


def test_threads_wait_for_each_other_only_so_long(make: MakeArena, buffers: Buffers) -> None:
    tier = make(lock_timeout_s=0.05)
    arena = tier._open()
    failures: list[str] = []

    def write() -> None:
        try:
            tier.write(KEYS[0], content(buffers, 4096))
        except TierUnavailable as error:
            failures.append(str(error))

    with arena.locked(1):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert "another thread" in failures[0]


def test_other_settings_make_another_arena_and_the_old_one_goes(make: MakeArena, buffers: Buffers) -> None:
    old = make()
    old.write(KEYS[0], content(buffers, 4096))
    new = make(max_bytes=2 * MAX_BYTES)
    assert not old.path.exists()
    assert new.records() == ()
    old.write(KEYS[1], content(buffers, 4096))  # still under the old settings, it goes on by itself
    assert (old.length(KEYS[1]), new.length(KEYS[1])) == (4096, None)


def test_the_file_is_for_its_owner_alone(make: MakeArena) -> None:
    assert make().path.stat().st_mode & 0o777 == 0o600


def test_a_closed_tier_is_unavailable(make: MakeArena) -> None:
    tier = make()
    tier.close()
    with pytest.raises(TierUnavailable, match="closed"):
        tier.read(KEYS[0])
    assert tier.usage().blocks == 0


def test_the_head_of_a_block_comes_without_the_rest(make: MakeArena, buffers: Buffers) -> None:
    tier = make()
    block = content(buffers, 69632)
    tier.write(KEYS[0], block)
    head = tier.head(KEYS[0])
    assert head is not None
    assert (head, head.readonly) == (block[:4096], True)
    assert tier.head(KEYS[1]) is None


def test_the_store_opens_one_arena_per_data_folder(tmp_path: Path) -> None:
    settings = KvSettings(tiers=(TierSettings(kind="ram", shared=True, max_bytes=ByteSize(MAX_BYTES)),))
    path = arena_path(arena_module.SHARED_MEMORY, tmp_path, MAX_BYTES)
    try:
        one, two = open_store(settings, data_dir=tmp_path), open_store(settings, data_dir=tmp_path)
        assert path.exists()
        one.close()
        two.close()
    finally:
        path.unlink(missing_ok=True)


def test_a_cap_per_tenant_is_refused(tmp_path: Path) -> None:
    wanted = TierSettings(kind="ram", shared=True, max_bytes=ByteSize(MAX_BYTES), tenant_max_bytes=ByteSize(MAX_BYTES))
    with pytest.raises(BadSetting) as failure:
        open_store(KvSettings(tiers=(wanted,)), data_dir=tmp_path)
    assert failure.value.param == "kv.tiers.0.tenant_max_bytes"
