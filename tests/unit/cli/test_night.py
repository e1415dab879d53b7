"""What an autoscaler is told, from a real state file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from fakes.background import FakeBoard
from nightfill.cli.night import Scaler
from nightfill.config import SleepSettings
from nightfill.sleep.autoscale import PACE
from nightfill.state.jobs import ASKED, JobKind, WorkerId
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from pathlib import Path

NEVER = SleepSettings(windows=("0 0 29 2 * for 1m",), wake_at_queue_depth=5, max_workers=4)


async def test_the_wish_follows_the_queue(tmp_path: Path) -> None:
    async with open_state(tmp_path / "state.db") as state:

        async def queue(n: int, *, priority: float = 1.0) -> None:
            await state.jobs.enqueue(
                kind=JobKind.FILL, target=f"t{n}", tenant="a", label="c", priority=priority, total_tokens=144_000
            )

        always = Scaler(state, FakeBoard(), SleepSettings(max_workers=4))
        asleep = Scaler(state, FakeBoard(), NEVER)
        assert ((await always.now()).wished_workers, (await always.now()).reason) == (0, "always")
        for n in range(3):
            await queue(n)
        assert (await always.now()).wished_workers == 1, "nobody knows yet how fast one is"
        await state.engines.put("local", {PACE: 10})
        found = await always.now()
        assert (found.wished_workers, found.due, found.tokens, found.tokens_per_s) == (3, 3, 432_000, 10)
        assert await state.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=60)
        assert (await always.now()).leased == 1
        found = await asleep.now()
        assert (found.wished_workers, found.allowed, found.reason) == (0, False, "wait")
        await queue(3, priority=ASKED)
        found = await asleep.now()
        assert (found.wished_workers, found.reason) == (1, "asked")
        for n in range(4, 8):
            await queue(n)
        awake = Scaler(state, FakeBoard(), NEVER)
        found = await awake.now()
        assert (found.wished_workers, found.reason, found.queue_depth) == (4, "depth", 8)
        deaf = Scaler(state, FakeBoard(), msgspec.structs.replace(NEVER, wake_at_queue_depth=0))
        assert (await deaf.now()).wished_workers == 1
