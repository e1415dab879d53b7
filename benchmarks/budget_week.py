"""What a day's budget saves when the worker's own planner spends it, over a recorded week, with and without a price.

    python benchmarks/budget_week.py servegen_rates_week1.csv.gz [--days 7] [--seed 1] [--budget-share 0.25] [--ttl-h 4]

One context per client, as in `nightfill simulate`, with its requests by windows of ten minutes. But nothing of the
planner is simulated: `Planner`, `Bill` and `Survey` run on a state file as a worker has it, at the beginning of each
window, by a clock that jumps; what they queue is leased and completed at once, and serves from the next window on. A
fill lasts `--ttl-h` from its last use, and is then marked as evicted, as a store's sweep would. Lengths are a hundredth
of the simulator's, for token lists are real.

Three arms: `unlimited` without a budget, to see what would be spent; then, with `--budget-share` of that for each day,
`at_once`, which takes the budget dearest first, and `priced`, which keeps it for what is worth its price.

The last line is one JSON object: for each arm `saved_tokens`, `background_tokens`, `fills`, and `saved_share` of what
`unlimited` saves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sqlite3
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from _engine import ENGINE, SIGNATURE
from nightfill.bench.machine import commit, this_machine
from nightfill.config import PriceSettings
from nightfill.contexts.context import ContextName, Fill, FillKey, FillState, Form, Tenant, Text, TextSource
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.simulate.fleet import DAY, Machines, fleet_of
from nightfill.simulate.rates import WINDOW_S, read_rates
from nightfill.sleep.bill import Bill
from nightfill.sleep.planner import Planner
from nightfill.sleep.survey import Survey
from nightfill.sleep.worth import ALIKE
from nightfill.state.access import Access
from nightfill.state.budgets import BudgetRules
from nightfill.state.jobs import JobKind, QueueRules, Work, WorkerId
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.context import Context
    from nightfill.simulate.fleet import Fleet
    from nightfill.state.sqlite import SqliteState

NAME: Final = "budget_week"
BEGINS_S: Final = 1.728e9
"""A midnight, UTC."""
SCALE: Final = 100
TENANT: Final = Tenant("default")
WORKER: Final = WorkerId("benchmark")
_USES: Final = """INSERT INTO access_hours (tenant, context, hour, accesses, broken, last_s) VALUES (?, ?, ?, ?, 0, ?)
    ON CONFLICT (tenant, context, hour)
    DO UPDATE SET accesses = accesses + excluded.accesses, last_s = excluded.last_s"""


@dataclass(slots=True)
class Arm:
    """One run. Contexts by their client's number."""

    fleet: Fleet
    ttl_s: float
    contexts: dict[int, Context] = field(default_factory=dict)
    filled: dict[int, float] = field(default_factory=dict)
    """Until when, Unix seconds."""
    saved_tokens: int = 0
    background_tokens: int = 0
    fills: int = 0

    def length(self, number: int) -> int:
        return max(1, self.fleet.tokens[number] // SCALE)


class Week:
    """A state file, its clock, and what happens window by window."""

    def __init__(self, state: SqliteState, path: Path, arm: Arm, planner: Planner) -> None:
        self.state = state
        self.arm = arm
        self.planner = planner
        self.past = sqlite3.connect(path, isolation_level=None)

    async def window(self, window: int, now_s: float) -> None:
        """Plan, fill, and then what the live traffic does until the next window."""
        await self._expire(now_s)
        serves = set(self.arm.filled)
        await self.planner.tick([ENGINE])
        await self._work(now_s)
        for number, client in enumerate(self.arm.fleet.clients):
            if uses := client.uses[window]:
                await self._use(number, uses, now_s + WINDOW_S - 1, hit=number in serves)

    async def _expire(self, now_s: float) -> None:
        for number, until_s in list(self.arm.filled.items()):
            if until_s <= now_s:
                del self.arm.filled[number]
                key = key_of(self.arm.contexts[number])
                await self.state.book.mark_fill(key, state=FillState.EVICTED, reason="expired", stored_tokens=0)

    async def _work(self, now_s: float) -> None:
        numbers = {str(key_of(context)): number for number, context in self.arm.contexts.items()}
        while True:
            lease = await self.state.jobs.lease(WORKER, kinds=[JobKind.FILL], lease_s=60.0, needs=[SIGNATURE])
            if lease is None:
                return
            number = numbers[lease.job.target]
            tokens = self.arm.length(number)
            fill = Fill(
                key=key_of(self.arm.contexts[number]),
                state=FillState.READY,
                tokens=tuple(range(tokens)),
                stored_tokens=tokens,
                filled_at_s=now_s,
                fill_seconds=1.0,
            )
            assert await self.state.book.put_fill(fill)
            await self.state.jobs.complete(lease, work=Work(tokens=tokens, seconds=1.0))
            self.arm.filled[number] = now_s + self.arm.ttl_s
            self.arm.fills += 1
            self.arm.background_tokens += tokens

    async def _use(self, number: int, uses: int, at_s: float, *, hit: bool) -> None:
        name = ContextName(f"c{number}")
        if number not in self.arm.contexts:
            content = Text(f"{number:06}".ljust(3 * self.arm.length(number), "x"))
            self.arm.contexts[number] = await self.state.book.put(
                tenant=TENANT,
                name=name,
                source=TextSource(),
                content=content,
                fingerprint=fingerprint_of(content),
                forms=[Form.CHAT],
            )
        if hit:
            self.arm.saved_tokens += uses * self.arm.length(number)
            if number in self.arm.filled:
                self.arm.filled[number] = max(self.arm.filled[number], at_s + self.arm.ttl_s)
        # One as the gateway writes it, which also sets off a look at what was cold; the others past the log.
        await self.state.access.append([_row(name, at_s, layer="fill" if hit else "cold")])
        if uses > 1:
            self.past.execute(_USES, (TENANT, name, int(at_s // 3600), uses - 1, at_s))


def key_of(context: Context) -> FillKey:
    return FillKey(tenant=TENANT, fingerprint=context.current, form=Form.CHAT, signature=SIGNATURE)


def _row(name: ContextName, at_s: float, *, layer: str) -> Access:
    counts: dict[str, Any] = dict.fromkeys(("prompt_tokens", "promised_tokens", "reused_tokens", "output_tokens"), 0)
    seconds: dict[str, Any] = dict.fromkeys(("ttft_s", "total_s", "restore_s"), 0.0)
    return Access(
        **counts,
        **seconds,
        at_s=at_s,
        tenant=TENANT,
        context=name,
        fingerprint=None,
        form=Form.CHAT,
        model="m",
        layer=layer,
        status=200,
    )


async def run(fleet: Fleet, name: str, *, days: int, ttl_s: float, day_tokens: int | None) -> Arm:
    arm = Arm(fleet, ttl_s)
    now_s = BEGINS_S
    rules = QueueRules(budgets=BudgetRules(all_day=day_tokens))
    with tempfile.TemporaryDirectory(prefix="nightfill-week-") as folder:
        path = Path(folder) / "state.db"
        clock = lambda: now_s  # noqa: E731
        async with open_state(path, rules=rules, clock=clock, steady=clock, boot="week") as state:
            planner = Planner(
                state,
                clock=clock,
                default_ttl_s=ttl_s,
                bill=Bill(state, prices=PriceSettings(), stop_after_s=0.0),
                survey=Survey(state) if name == "priced" else None,
            )
            week = Week(state, path, arm, planner)
            with contextlib.closing(week.past):
                for window in range(days * DAY):
                    now_s = BEGINS_S + window * WINDOW_S
                    await week.window(window, now_s)
                    if window % DAY == DAY - 1:
                        print(f"{name}: day {window // DAY + 1} of {days}", file=sys.stderr, flush=True)
    return arm


async def measure(files: Sequence[Path], options: argparse.Namespace) -> dict[str, Any]:
    machines = Machines(speeds=ALIKE)
    rng = random.Random(options.seed)
    fleet = fleet_of(read_rates(files), rng, lasts_s=options.ttl_h * 3600, budget_share=0.25, machines=machines)
    days = min(options.days, fleet.days)
    arms: dict[str, dict[str, Any]] = {}
    day_tokens: int | None = None
    for name in ("unlimited", "at_once", "priced"):
        began_s = time.monotonic()
        arm = await run(fleet, name, days=days, ttl_s=options.ttl_h * 3600, day_tokens=day_tokens)
        if day_tokens is None:
            day_tokens = int(options.budget_share * arm.background_tokens / days)
        told = {key: getattr(arm, key) for key in ("saved_tokens", "background_tokens", "fills")}
        share = arm.saved_tokens / arms["unlimited"]["saved_tokens"] if arms else 1.0
        arms[name] = {**told, "saved_share": round(share, 4), "took_s": round(time.monotonic() - began_s, 1)}
        print(f"{name}: {arms[name]}", file=sys.stderr, flush=True)
    return {"clients": len(fleet.clients), "days": days, "day_tokens": day_tokens, "arms": arms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--budget-share", type=float, default=0.25)
    parser.add_argument("--ttl-h", type=float, default=4.0)
    options = parser.parse_args()
    told = asyncio.run(measure(options.files, options))
    setting = {"command": "python " + " ".join(sys.argv), "commit": commit(), "machine": asdict(this_machine())}
    print(msgspec.json.encode({"name": NAME, **setting, **told}).decode())


if __name__ == "__main__":
    main()
