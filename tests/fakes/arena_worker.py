"""A process of its own that uses an arena: `python arena_worker.py FOLDER MAX_BYTES race|flood|cut NUMBER`."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from nightfill.kv.buffer import Buffers
from nightfill.kv.key import BlockKey
from nightfill.kv.tiers.arena import ArenaTier

if TYPE_CHECKING:
    from types import FrameType

KEYS = [BlockKey(hashlib.sha256(b"%d" % number).digest()) for number in range(12)]
SIZES = [4096, 20480, 69632, 266240]


def content(buffers: Buffers, size: int) -> memoryview:
    """Bytes that tell whether they are whole."""
    view = buffers.take(size)
    view[16:] = os.urandom(size - 16)
    view[:16] = xxhash.xxh3_128_digest(view[16:])
    return view


def is_whole(view: memoryview) -> bool:
    return bytes(view[:16]) == xxhash.xxh3_128_digest(view[16:])


def say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def check(tier: ArenaTier, *, counts: bool = True) -> None:
    """All that is said to be there is, whole; and what is counted is what is there."""
    records = tier.records()
    for record in records:
        view = tier.read(record.key)
        assert view is not None
        assert len(view) == record.size_bytes
        assert is_whole(view)
    usage = tier.usage()
    if counts:
        assert (usage.bytes, usage.blocks) == (sum(record.size_bytes for record in records), len(records))


def race(tier: ArenaTier, buffers: Buffers, seed: int, steps: int) -> None:
    """Write, read and drop the keys that others write, read and drop; every read is checked."""
    dice = random.Random(seed)
    blocks = [content(buffers, size) for size in SIZES for _ in range(2)]
    hits = 0
    say("ready")
    for _ in range(steps):
        tier.write(dice.choice(KEYS), dice.choice(blocks))
        for key in dice.sample(KEYS, 3):
            view = tier.read(key)
            if view is not None:
                assert is_whole(view), "a mixture"
                hits += 1
            tier.touch(key)
        if dice.random() < 0.1:
            tier.drop(dice.choice(KEYS))
    say(hits)


def cut(folder: Path, max_bytes: int, buffers: Buffers, every: int) -> None:
    """Be killed before one line after the other of writes and a drop, and look at what each kill left."""
    tier = open_tier(folder, max_bytes, buffers)
    blocks = [content(buffers, size) for size in SIZES]
    deaths = 0
    for line in itertools.count(1, every):
        tier.write(KEYS[0], blocks[1])
        tier.write(KEYS[1], blocks[2])
        tier.write(KEYS[2], blocks[0])
        child = os.fork()
        if not child:
            mine = open_tier(folder, max_bytes, buffers)
            sys.settrace(killer(line))
            mine.write(KEYS[0], blocks[3])
            mine.drop(KEYS[0])
            mine.write(KEYS[3], blocks[1])
            os._exit(0)
        _, status = os.waitpid(child, 0)
        check(tier, counts=False)  # until the next writer repairs them
        tier.write(KEYS[4], blocks[3])
        check(tier)
        found = tier.read(KEYS[4])
        assert found is not None
        assert found == blocks[3]
        for key in KEYS:
            tier.drop(key)
        assert not any(tier.path.read_bytes()[-max_bytes:]), "bytes that were deleted are still there"
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            deaths += 1
        else:
            break
    say(deaths)


def killer(countdown: int) -> Any:
    left = [countdown]

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        if "arena" not in frame.f_code.co_filename.rpartition("/")[2] or frame.f_code.co_filename == __file__:
            return None
        if event == "line":
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def open_tier(folder: Path, max_bytes: int, buffers: Buffers) -> ArenaTier:
    return ArenaTier(data_dir=folder, folder=folder, max_bytes=max_bytes, buffers=buffers, clock=time.time)


def main() -> None:
    folder, max_bytes, mode, seed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    buffers = Buffers()
    if mode == "cut":
        cut(folder, max_bytes, buffers, every=seed)
        return
    tier = open_tier(folder, max_bytes, buffers)
    race(tier, buffers, seed, 400 if mode == "race" else 1 << 40)


if __name__ == "__main__":
    main()
