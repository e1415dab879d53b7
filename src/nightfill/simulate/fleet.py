"""The fleet that is simulated: one context per client, the machines that serve them, and what may be spent."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nightfill.simulate.rates import DAY_S, WINDOW_S

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence

    from nightfill.simulate.rates import Client
    from nightfill.sleep.worth import Speeds

SHORTEST_TOKENS: Final = 4_000
LONGEST_TOKENS: Final = 200_000
DAY: Final = DAY_S // WINDOW_S
"""Windows of a day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """How the fleet computes; each model has machines of its own."""

    speeds: Speeds
    """Of one engine."""
    question_tokens: int = 500
    """Of a request, after its context; computed whatever is filled."""
    peak_load: float = 0.8
    """A model's engines are as many as are busy for so much of the time at its peak, when nothing is filled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """One trace with lengths drawn. Times are in windows; window `w` begins at `w * WINDOW_S`."""

    clients: Sequence[Client]
    tokens: Sequence[int]
    """Length of each client's context."""
    lasts: int
    """A fill that is computed in window `w` serves the windows `w + 1` to `w + lasts`."""
    wished_tokens: int
    """What has to be computed to find every context filled at every use: see `wished`."""
    day_tokens: int
    """Budget of each UTC day."""
    slack: dict[str, list[int]]
    """Tokens that each model's machines can compute in each window below the model's peak."""
    engines: dict[str, int]
    machines: Machines

    @property
    def windows(self) -> int:
        """Of the whole trace."""
        return len(self.clients[0].uses)

    @property
    def days(self) -> int:
        """Of the whole trace, which begins at a midnight and ends at one."""
        return self.windows // DAY

    @property
    def requests(self) -> int:
        """Of the whole trace."""
        return sum(sum(client.uses) for client in self.clients)


def fleet_of(
    clients: Sequence[Client], rng: random.Random, *, lasts_s: float, budget_share: float, machines: Machines
) -> Fleet:
    """Draw lengths log-uniformly, and set the daily budget to `budget_share` of what would be wished for on a day."""
    spread = math.log(LONGEST_TOKENS / SHORTEST_TOKENS)
    tokens = [round(SHORTEST_TOKENS * math.exp(spread * rng.random())) for _ in clients]
    lasts = max(1, int(lasts_s // WINDOW_S))
    windows = len(clients[0].uses)
    wished_tokens = sum(
        length * len(list(wished(client, lasts))) for client, length in zip(clients, tokens, strict=True)
    )
    live: dict[str, list[int]] = defaultdict(lambda: [0] * windows)
    for client, length in zip(clients, tokens, strict=True):
        work = live[client.model]
        each = length + machines.question_tokens
        for window, uses in enumerate(client.uses):
            if uses:
                work[window] += uses * each
    peaks = {model: max(work) for model, work in live.items()}
    per_engine = machines.speeds.prefill * WINDOW_S * machines.peak_load
    return Fleet(
        clients=clients,
        tokens=tokens,
        lasts=lasts,
        wished_tokens=wished_tokens,
        day_tokens=int(budget_share * wished_tokens * DAY / windows),
        slack={model: [peaks[model] - now for now in work] for model, work in live.items()},
        engines={model: max(1, math.ceil(peak / per_engine)) for model, peak in peaks.items()},
        machines=machines,
    )


def wished(client: Client, lasts: int) -> Iterator[int]:
    """The windows in which to fill, so that each use from window 1 on finds the context filled, with the fewest fills.

    Each fill is as late as it may be: in the window before the first use that no earlier one serves.
    """
    until = 0
    for window, uses in enumerate(client.uses):
        if uses and window > until:
            yield window - 1
            until = window - 1 + lasts
