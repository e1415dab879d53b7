"""What only the disk tier promises; the rest is in test_tier."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nightfill.errors import BlockCorrupt, TierFull, TierUnavailable
from nightfill.kv.tiers.folder import DRAFT_AGE_S, BlockFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fakes.kv import FakeClock, MakeDisk, MakeSample, Sample

    Page = Callable[[int], memoryview]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def file_of(root: Path, sample: Sample) -> Path:
    digits = sample.key.hex()
    return root / "v1" / digits[:2] / f"{digits}.kv"


def drafts(root: Path) -> list[Path]:
    return list((root / "v1" / "drafts").iterdir())


def test_a_block_is_one_file_that_only_its_owner_may_read(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page
) -> None:
    data = page(2)
    make_disk().write(sample(1).key, data)
    assert file_of(root, sample(1)).read_bytes() == data
    assert drafts(root) == []
    assert file_of(root, sample(1)).stat().st_mode & 0o777 == 0o600
    folders = [root / "v1", root / "v1" / "drafts", file_of(root, sample(1)).parent]
    assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700] * 3


def test_direct_io_is_reported_as_probed(make_disk: MakeDisk, sample: MakeSample, page: Page) -> None:
    assert make_disk(direct=False).usage().direct_io is False
    tier = make_disk()
    data = page(3)
    tier.write(sample(1).key, data)
    assert make_disk(direct=False).read(sample(1).key) == data


def test_the_index_is_rebuilt_from_the_folder_alone(
    make_disk: MakeDisk, root: Path, clock: FakeClock, sample: MakeSample, page: Page
) -> None:
    first = make_disk()
    for number in range(20):
        first.write(sample(number).key, page(number % 3 + 1))
        clock.advance(10)
    (root / "v1" / "00").mkdir(exist_ok=True)
    (root / "v1" / "00" / "README").write_text("not a block")
    (root / "v1" / "zz").mkdir()
    second = make_disk()
    assert [(r.key, r.size_bytes, round(r.used_s)) for r in second.records()] == [
        (r.key, r.size_bytes, round(r.used_s)) for r in first.records()
    ]
    assert second.usage().blocks == 20
    assert second.usage().bytes == sum(number % 3 + 1 for number in range(20)) * 4096


def test_another_processs_blocks_count_and_are_evicted_by_age(
    make_disk: MakeDisk, clock: FakeClock, sample: MakeSample, page: Page
) -> None:
    ours, theirs = make_disk(max_bytes=4 * 4096), make_disk(max_bytes=4 * 4096)
    for number, tier in enumerate((theirs, ours, theirs, ours)):
        tier.write(sample(number).key, page(1))
        clock.advance(100)
    ours.write(sample(4).key, page(1))
    assert theirs.length(sample(0).key) is None
    assert {record.key for record in theirs.records()} == {sample(number).key for number in (1, 2, 3, 4)}


def test_a_block_that_another_process_used_lately_stays(
    make_disk: MakeDisk, clock: FakeClock, sample: MakeSample, page: Page
) -> None:
    ours = make_disk(max_bytes=2 * 4096, refresh_every_s=1e9)
    ours.write(sample(1).key, page(1))
    clock.advance(100)
    ours.write(sample(2).key, page(1))
    clock.advance(100)
    make_disk().touch(sample(1).key)
    ours.write(sample(3).key, page(1))
    assert ours.length(sample(1).key) is not None
    assert ours.length(sample(2).key) is None


def test_a_file_deleted_behind_our_back_is_a_miss_and_frees_its_room(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page
) -> None:
    tier = make_disk(max_bytes=2 * 4096, refresh_every_s=1e9)
    for number in (1, 2):
        tier.write(sample(number).key, page(1))
    file_of(root, sample(1)).unlink()
    assert tier.read(sample(1).key) is None
    tier.write(sample(3).key, page(1))
    assert tier.length(sample(2).key) is not None


def test_a_report_leaves_out_what_was_deleted_behind_our_back(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page
) -> None:
    tier = make_disk()
    for number in range(6):
        tier.write(sample(number).key, page(1))
    for number in range(5):
        file_of(root, sample(number)).unlink()
    file_of(root, sample(4)).parent.rmdir()
    assert (tier.usage().blocks, tier.usage().bytes) == (1, 4096)


def test_a_use_that_is_not_in_the_file_yet_survives_a_rescan(
    make_disk: MakeDisk, clock: FakeClock, sample: MakeSample, page: Page
) -> None:
    tier = make_disk(max_bytes=2 * 4096)
    tier.write(sample(1).key, page(1))
    clock.advance(10)
    tier.write(sample(2).key, page(1))
    clock.advance(10)
    tier.touch(sample(1).key)
    assert [record.key for record in tier.records()] == [sample(2).key, sample(1).key]


def test_uses_at_the_same_time_keep_their_order_over_a_rescan(
    make_disk: MakeDisk, clock: FakeClock, sample: MakeSample, page: Page
) -> None:
    tier = make_disk()
    for number in range(8):
        tier.write(sample(number).key, page(1))
    clock.advance(100)
    for number in reversed(range(8)):
        tier.touch(sample(number).key)
    assert [record.key for record in tier.records()] == [sample(number).key for number in reversed(range(8))]


def test_a_replacement_that_fails_costs_at_most_the_others(
    make_disk: MakeDisk, sample: MakeSample, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = make_disk(max_bytes=3 * 4096)
    old = page(1)
    tier.write(sample(1).key, old)
    tier.write(sample(2).key, page(2))

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwritev", fail)
        with pytest.raises(TierUnavailable):
            tier.write(sample(1).key, page(2))
    assert tier.read(sample(1).key) == old
    assert tier.usage().bytes == 4096


def test_a_folder_deleted_behind_our_back_is_made_again(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page
) -> None:
    tier = make_disk()
    tier.write(sample(1).key, page(1))
    subprocess.run(["rm", "-r", root], check=True)
    assert tier.read(sample(1).key) is None
    tier.write(sample(1).key, page(1))
    assert tier.length(sample(1).key) == 4096


def test_the_file_is_touched_at_most_once_a_minute(
    make_disk: MakeDisk, root: Path, clock: FakeClock, sample: MakeSample, page: Page
) -> None:
    tier = make_disk()
    tier.write(sample(1).key, page(1))
    written_s = clock()
    clock.advance(59)
    tier.touch(sample(1).key)
    assert file_of(root, sample(1)).stat().st_mtime == written_s
    clock.advance(1)
    tier.touch(sample(1).key)
    assert file_of(root, sample(1)).stat().st_mtime == clock()


@pytest.mark.parametrize("length", [0, 1, 100, 4095, 4097, 8191])
def test_a_file_of_an_impossible_length_is_corrupt_and_stays_for_the_store_to_drop(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page, length: int
) -> None:
    tier = make_disk()
    tier.write(sample(1).key, page(2))
    os.truncate(file_of(root, sample(1)), length)
    with pytest.raises(BlockCorrupt, match=f"{length} bytes"):
        tier.read(sample(1).key)
    assert file_of(root, sample(1)).exists()


def test_a_file_larger_than_the_tier_is_not_read(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page
) -> None:
    tier = make_disk(max_bytes=1 << 20)
    tier.write(sample(1).key, page(2))
    os.truncate(file_of(root, sample(1)), 1 << 40)
    with pytest.raises(BlockCorrupt):
        tier.read(sample(1).key)


def test_drafts_of_the_dead_go_at_start_and_those_of_the_living_stay(
    make_disk: MakeDisk, root: Path, clock: FakeClock
) -> None:
    make_disk()
    folder = root / "v1" / "drafts"
    for name, age_s in {"old": DRAFT_AGE_S + 1, "held": DRAFT_AGE_S + 1, "new": DRAFT_AGE_S - 1}.items():
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, times=(clock() - age_s, clock() - age_s))
    writer = os.open(folder / "held", os.O_WRONLY)
    try:
        fcntl.flock(writer, fcntl.LOCK_EX)
        make_disk()
    finally:
        os.close(writer)
    assert {draft.name for draft in drafts(root)} == {"held", "new"}


def test_a_writer_that_takes_its_time_keeps_its_draft(
    make_disk: MakeDisk, clock: FakeClock, sample: MakeSample, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier, whole = make_disk(), os.pwritev

    def suspended(fd: int, parts: list[memoryview], at: int) -> int:
        clock.now_s = os.fstat(fd).st_mtime + 10 * DRAFT_AGE_S
        make_disk()
        return whole(fd, parts, at)

    with monkeypatch.context() as slow:
        slow.setattr(os, "pwritev", suspended)
        # The second tier probes with a write of its own, which must not start a third.
        slow.setattr("nightfill.kv.tiers.folder.probe", lambda _: True)
        tier.write(sample(1).key, page(2))
    assert tier.length(sample(1).key) == 8192


@pytest.mark.parametrize("direct", [True, False])
def test_o_direct_is_used_for_blocks_where_it_was_found(
    make_disk: MakeDisk, sample: MakeSample, page: Page, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    monkeypatch.setattr("nightfill.kv.tiers.folder.probe", lambda _: direct)
    tier, plain_open, flags_seen = make_disk(), os.open, list[int]()

    def spy(path: Path, flags: int, mode: int = 0o777) -> int:
        flags_seen.append(flags)
        return plain_open(path, flags & ~os.O_DIRECT, mode)

    monkeypatch.setattr(os, "open", spy)
    tier.write(sample(1).key, page(1))
    tier.read(sample(1).key)
    assert [bool(flags & os.O_DIRECT) for flags in flags_seen] == [direct, direct]
    assert tier.usage().direct_io == direct


def test_a_file_that_came_within_the_same_tick_as_a_scan_is_seen_by_the_next(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page
) -> None:
    tier = make_disk()
    tier.write(sample(1).key, page(1))
    shard = file_of(root, sample(1)).parent
    assert tier.usage().blocks == 1
    before = shard.stat()
    other = file_of(root, sample(1)).with_name(shard.name + "0" * 62 + ".kv")
    other.write_bytes(bytes(4096))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tier.usage().blocks == 2


def test_what_changes_during_a_scan_is_not_undone_by_it(
    make_disk: MakeDisk, sample: MakeSample, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = make_disk(refresh_every_s=1e9)
    tier.write(sample(1).key, page(1))
    whole = BlockFolder.shards

    def shards_then_change(folder: BlockFolder) -> dict[int, int]:
        found = whole(folder)
        records = {shard: folder.scan(shard) for shard in found}
        monkeypatch.setattr(BlockFolder, "scan", lambda _, shard: records[shard])
        tier.drop(sample(1).key)
        tier.write(sample(2).key, page(2))
        return found

    monkeypatch.setattr(BlockFolder, "shards", shards_then_change)
    assert [record.key for record in tier.records()] == [sample(2).key]


def test_a_cold_start_leaves_blocks_alone(make_disk: MakeDisk, sample: MakeSample, page: Page) -> None:
    make_disk().write(sample(1).key, page(1))
    assert make_disk().length(sample(1).key) == 4096


def test_the_oldest_blocks_go_to_keep_the_file_system_above_its_floor(
    make_disk: MakeDisk, clock: FakeClock, sample: MakeSample, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = make_disk(min_free_bytes=100 * 4096)
    free = 100 * 4096 + 3 * 4096
    monkeypatch.setattr("nightfill.kv.tiers.folder.BlockFolder.free_bytes", lambda _: free)
    for number in (1, 2, 3):
        tier.write(sample(number).key, page(1))
        clock.advance(100)
    free = 100 * 4096
    tier.write(sample(4).key, page(2))
    assert [record.key for record in tier.records()] == [sample(3).key, sample(4).key]
    free = 90 * 4096
    with pytest.raises(TierFull):
        tier.write(sample(5).key, page(1))
    assert tier.usage().blocks == 2, "nothing goes when it would not help"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, TierFull),
        (errno.EDQUOT, TierFull),
        (errno.EIO, TierUnavailable),
        (errno.EROFS, TierUnavailable),
        (errno.ESTALE, TierUnavailable),
    ],
)
def test_a_write_that_fails_leaves_nothing_behind(
    make_disk: MakeDisk,
    root: Path,
    sample: MakeSample,
    page: Page,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    error: type[Exception],
) -> None:
    tier = make_disk()

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwritev", fail)
        with pytest.raises(error, match="cannot write a block"):
            tier.write(sample(1).key, page(2))
    assert drafts(root) == []
    assert (tier.usage().bytes, tier.length(sample(1).key)) == (0, None)
    tier.write(sample(1).key, page(2))
    assert tier.length(sample(1).key) == 8192


def test_a_write_that_comes_out_short_is_refused(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = make_disk()
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: len(parts[0]))
    with pytest.raises(TierUnavailable, match="0 of 8192 bytes arrived"):
        tier.write(sample(1).key, page(2))
    assert drafts(root) == []


def test_a_read_that_fails_deletes_nothing(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = make_disk()
    tier.write(sample(1).key, page(2))

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "preadv", fail)
        with pytest.raises(TierUnavailable, match="cannot read a block"):
            tier.read(sample(1).key)
    assert tier.read(sample(1).key) is not None


def test_a_folder_out_of_reach_comes_back_when_it_can(
    make_disk: MakeDisk, root: Path, sample: MakeSample, page: Page
) -> None:
    root.write_text("in the way")
    tier = make_disk()
    with pytest.raises(TierUnavailable):
        tier.write(sample(1).key, page(1))
    assert tier.usage().free_bytes is None
    root.unlink()
    tier.write(sample(1).key, page(1))
    assert tier.length(sample(1).key) == 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 pages."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_file_system_is_a_full_tier(
    make_disk: MakeDisk, small_disk: Path, sample: MakeSample, page: Page
) -> None:
    tier = make_disk(root=small_disk)
    (small_disk / "ballast").write_bytes(bytes(200 * 1024))
    tier.write(sample(1).key, page(4))
    with pytest.raises(TierFull, match=r"nothing that may be evicted|No space left"):
        tier.write(sample(2).key, page(16))
    assert drafts(small_disk) == []
    assert tier.read(sample(1).key) is not None
    (small_disk / "ballast").unlink()
    tier.write(sample(2).key, page(16))
    assert tier.length(sample(2).key) == 16 * 4096


def test_space_that_goes_between_the_look_and_the_write_is_a_full_tier(
    make_disk: MakeDisk, small_disk: Path, sample: MakeSample, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = make_disk(root=small_disk)
    monkeypatch.setattr("nightfill.kv.tiers.folder.BlockFolder.free_bytes", lambda _: 1 << 30)
    with pytest.raises(TierFull, match="No space left"):
        tier.write(sample(1).key, page(80))
    assert drafts(small_disk) == []
    assert tier.usage().bytes == 0


_LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
from nightfill.errors import TierFull
from nightfill.kv.buffer import Buffers
from nightfill.kv.key import BlockKey
from nightfill.kv.tiers.disk import DiskTier
import time
root, buffers = Path(sys.argv[1]), Buffers()
tier = DiskTier(root, max_bytes=1 << 30, buffers=buffers, clock=time.time, direct=sys.argv[2] == "direct")
key, other = BlockKey(bytes(32)), BlockKey(b"1" * 32)
try:
    tier.write(key, buffers.take(65536))
except TierFull as error:
    assert "File too large" in str(error), error
else:
    raise SystemExit("the write should have failed")
assert tier.read(key) is None and not list((root / "v1" / "drafts").iterdir())
tier.write(other, buffers.take(8192))
assert tier.length(other) == 8192
"""


@pytest.mark.parametrize("mode", ["direct", "buffered"])
def test_a_write_that_the_kernel_cuts_short_is_a_full_tier(root: Path, mode: str) -> None:
    done = subprocess.run([sys.executable, "-c", _LIMITED, root, mode], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_WRITER = """
import sys, time
from pathlib import Path
from nightfill.kv.buffer import Buffers
from nightfill.kv.key import BlockKey
from nightfill.kv.tiers.disk import DiskTier
root, fill = Path(sys.argv[1]), int(sys.argv[2])
buffers = Buffers()
tier = DiskTier(root, max_bytes=40 * 65536, buffers=buffers, clock=time.time, refresh_every_s=0.0)
data = buffers.take(65536)
data[:] = bytes([fill]) * 65536
print("ready", flush=True)
sys.stdin.readline()
for _ in range(15):
    for number in range(12):
        tier.write(BlockKey(bytes([number]) * 32), data)
        found = tier.read(BlockKey(bytes([number]) * 32))
        assert found is not None and bytes(found) in {bytes([1]) * 65536, bytes([2]) * 65536}
"""


def test_two_processes_write_the_same_blocks_at_once_and_each_is_whole(root: Path, make_disk: MakeDisk) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, root, str(fill)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for fill in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
    tier = make_disk()
    assert drafts(root) == []
    assert tier.usage().blocks == 12
    for record in tier.records():
        found = tier.read(record.key)
        assert found is not None
        assert bytes(found) in {bytes([1]) * 65536, bytes([2]) * 65536}


_KILLED = """
import os, sys, time
from pathlib import Path
from nightfill.kv.buffer import Buffers
from nightfill.kv.key import BlockKey
from nightfill.kv.tiers.disk import DiskTier
buffers = Buffers()
tier = DiskTier(Path(sys.argv[1]), max_bytes=1 << 30, buffers=buffers, clock=time.time)
whole = os.pwritev
def killed(fd, parts, at):
    whole(fd, [parts[0][:4096]], at)
    os.kill(os.getpid(), 9)
os.pwritev = killed
tier.write(BlockKey(bytes(32)), buffers.take(65536))
"""


def test_a_writer_killed_midway_leaves_a_draft_and_no_block(root: Path, make_disk: MakeDisk, clock: FakeClock) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, root], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert len(drafts(root)) == 1
    tier = make_disk()
    assert tier.usage().blocks == 0
    clock.now_s = drafts(root)[0].stat().st_mtime + DRAFT_AGE_S + 1
    make_disk()
    assert drafts(root) == []
