"""Small fleets for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.simulate.fleet import DAY, Fleet, Machines
from nightfill.simulate.rates import Client
from nightfill.sleep.worth import Speeds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MACHINES = Machines(speeds=Speeds(prefill=100.0, fill=100.0, restore=1000.0), question_tokens=0)


def client(uses: Mapping[int, int], *, days: int = 1, name: str = "0", model: str = "m") -> Client:
    return Client(model, name, tuple(uses.get(window, 0) for window in range(days * DAY)))


def fleet(
    clients: Sequence[Client],
    tokens: Sequence[int],
    *,
    day_tokens: int,
    lasts: int = 24,
    slack: int = 10**12,
    engines: int = 10,
) -> Fleet:
    models = {one.model for one in clients}
    return Fleet(
        clients=clients,
        tokens=tokens,
        lasts=lasts,
        wished_tokens=0,
        day_tokens=day_tokens,
        slack={model: [slack] * len(clients[0].uses) for model in models},
        engines=dict.fromkeys(models, engines),
        machines=MACHINES,
    )
