"""Which contexts to keep filled: a trace replayed window by window, through the functions of the planner."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Protocol

from nightfill.simulate.fleet import DAY, wished
from nightfill.simulate.rates import DAY_S, WINDOW_S
from nightfill.sleep.price import Demand, refills
from nightfill.sleep.worth import Case, worth
from nightfill.state.access import HISTORY_DAYS, Usage

if TYPE_CHECKING:
    from collections.abc import Collection

    from nightfill.simulate.fleet import Fleet
    from nightfill.sleep.priority import Policy

_WEEK: Final = 7 * DAY
_HOUR: Final = 3600 // WINDOW_S
Spans = list[tuple[int, int]]
"""Windows, each from the first up to and including the last, in order and apart from each other."""


@dataclass(slots=True)
class Known:
    """What a planner knows of a context that has been used. Times are in seconds since window 0 began."""

    number: int
    """Its place among the fleet's clients."""
    tokens: int
    since_s: float
    until: int
    """The last window that a fill of it serves, or has served."""
    last_s: float = 0.0
    accesses_7d: int = 0
    hours: dict[int, int] = field(default_factory=dict)

    def usage(self) -> Usage:
        """As an access log has it."""
        return Usage(last_access_s=self.last_s, accesses_7d=self.accesses_7d, broken_7d=0, hours=self.hours)


class Planner(Protocol):
    """Decides at the beginning of a window, with what is known then."""

    def order(self, known: Collection[Known], window: int, left_tokens: int) -> list[Known]:
        """What to fill in this window, first things first; what does not fit is passed over.

        `left_tokens` is what is left of the day's budget. A context is not filled while a fill of it serves windows
        after this one.
        """


class ByPolicy:
    """The contexts that are not filled, by the score of a policy, until the budget is spent."""

    def __init__(self, fleet: Fleet, policy: Policy) -> None:
        self._fleet = fleet
        self._policy = policy

    def order(self, known: Collection[Known], window: int, left_tokens: int) -> list[Known]:  # noqa: ARG002
        """See `Planner`."""
        now_s = float(window * WINDOW_S)
        scored = [(self._policy(_case(self._fleet, one, now_s)).score, one) for one in known if one.until <= window]
        return [one for _, one in sorted(scored, key=lambda pair: (-pair[0], pair[1].number))]


class ByValue:
    """What is worth more than the price at which the budget lasts until its reset: what the worker's planner does."""

    def __init__(self, fleet: Fleet, *, break_even: float) -> None:
        self._fleet = fleet
        self._floor = break_even
        self._price = break_even
        self._known = 0

    def order(self, known: Collection[Known], window: int, left_tokens: int) -> list[Known]:
        """See `Planner`. The price is found anew each hour, and when there are new contexts."""
        now_s = float(window * WINDOW_S)
        if window % _HOUR == 0 or len(known) > self._known:
            self._known = len(known)
            self._price = max(self._floor, self._demand(known, now_s, left_tokens).price())
        scored = []
        for one in known:
            if one.until <= window:
                score = worth(_case(self._fleet, one, now_s), start_s=now_s + WINDOW_S).score
                if score >= self._price:
                    scored.append((score, one))
        return [one for _, one in sorted(scored, key=lambda pair: (-pair[0], pair[1].number))]

    def _demand(self, known: Collection[Known], now_s: float, left_tokens: int) -> Demand:
        """What keeping all of them filled until the budget's reset would ask for."""
        demand, reset_s = Demand(left_tokens), (now_s // DAY_S + 1) * DAY_S
        for one in known:
            from_s = max(now_s, float(one.until * WINDOW_S))
            for score, fills in refills(_case(self._fleet, one, now_s), from_s=from_s, reset_s=reset_s, extended=False):
                demand.add(score, one.tokens, fills)
        return demand


class Clairvoyant:
    """Knows all uses to come, and prices as `ByValue` does: a schedule that is possible, whatever the best one is."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._sums = [[0, *accumulate(client.uses)] for client in fleet.clients]
        self._price = 0.0
        self._known = 0

    def order(self, known: Collection[Known], window: int, left_tokens: int) -> list[Known]:
        """See `Planner`. A fill is put off while it would be used less than its price asks for."""
        lasts = self._fleet.lasts
        if window % _HOUR == 0 or len(known) > self._known:
            self._known = len(known)
            demand = Demand(left_tokens)
            for one in known:
                for start in range(max(window, one.until), (window // DAY + 1) * DAY, lasts):
                    demand.add(float(self._uses(one, start + 1, lasts)), one.tokens)
            self._price = demand.price()
        chosen = [
            (uses, one)
            for one in known
            if one.until <= window
            and (uses := self._uses(one, window + 1, lasts)) >= max(self._price, 1.0)
            and self._uses(one, window + 1, 1) * lasts >= self._price
        ]
        return [one for _, one in sorted(chosen, key=lambda pair: (-pair[0], pair[1].number))]

    def _uses(self, one: Known, first: int, count: int) -> int:
        sums, windows = self._sums[one.number], self._fleet.windows
        return sums[min(windows, first + count)] - sums[min(windows, first)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was filled, and what it saved."""

    served: list[Spans]
    """Of each context: the windows in which it was filled."""
    uses: int
    hits: int
    """Uses in windows in which their context was filled."""
    saved_tokens: int
    """Tokens of contexts in the prompts of `hits`."""
    background_tokens: int
    fills: int


def run(fleet: Fleet, planner: Planner, *, evenly: bool = False) -> Run:
    """Replay the trace. A context is known from the end of the window of its first use on.

    `evenly`: a day's budget is handed out window by window, in equal parts, instead of at midnight.
    """
    known: dict[int, Known] = {}
    served: list[Spans] = [[] for _ in fleet.clients]
    left = 0
    for window in range(fleet.windows):
        if window % DAY == 0:
            left = fleet.day_tokens
        kept = fleet.day_tokens * (DAY - 1 - window % DAY) // DAY if evenly else 0
        room = {model: slack[window] for model, slack in fleet.slack.items()}
        for one in planner.order(known.values(), window, left):
            assert one.until <= window, "filled while it is filled"
            model = fleet.clients[one.number].model
            if one.tokens <= min(room[model], left - kept):
                room[model] -= one.tokens
                left -= one.tokens
                one.until = window + fleet.lasts
                served[one.number].append((window + 1, min(one.until, fleet.windows - 1)))
        _observe(known, fleet, window)
    return _tallied(fleet, served)


def nothing(fleet: Fleet) -> Run:
    """With no background work at all."""
    return _tallied(fleet, [[] for _ in fleet.clients])


def unlimited(fleet: Fleet) -> Run:
    """With no budget, all the slack that it takes, and knowing the future: each use after window 0 is served."""
    last = fleet.windows - 1
    return _tallied(
        fleet,
        [
            [(window + 1, min(window + fleet.lasts, last)) for window in wished(client, fleet.lasts)]
            for client in fleet.clients
        ],
    )


def _case(fleet: Fleet, one: Known, now_s: float) -> Case:
    return Case(
        usage=one.usage(),
        since_s=one.since_s,
        put_at_s=one.since_s,
        now_s=now_s,
        ttl_s=float(fleet.lasts * WINDOW_S),
        tokens=one.tokens,
        speeds=fleet.machines.speeds,
    )


def _observe(known: dict[int, Known], fleet: Fleet, window: int) -> None:
    """What the window's end tells. Its uses are taken to be evenly spread."""
    hour = window // _HOUR
    for number, client in enumerate(fleet.clients):
        uses = client.uses[window]
        if uses:
            one = known.get(number)
            if one is None:
                since_s = float(window * WINDOW_S)
                one = known[number] = Known(number, fleet.tokens[number], since_s, until=window)
            one.last_s = (window + 1 - 1 / (uses + 1)) * WINDOW_S
            one.accesses_7d += uses
            one.hours[hour] = one.hours.get(hour, 0) + uses
        if window >= _WEEK and number in known:
            known[number].accesses_7d -= client.uses[window - _WEEK]
            known[number].hours.pop(hour - 24 * HISTORY_DAYS, None)


def _tallied(fleet: Fleet, served: list[Spans]) -> Run:
    uses = hits = saved = background = fills = 0
    for client, tokens, spans in zip(fleet.clients, fleet.tokens, served, strict=True):
        uses += sum(client.uses)
        found = sum(sum(client.uses[first : last + 1]) for first, last in spans)
        hits += found
        saved += found * tokens
        background += len(spans) * tokens
        fills += len(spans)
    return Run(served=served, uses=uses, hits=hits, saved_tokens=saved, background_tokens=background, fills=fills)
