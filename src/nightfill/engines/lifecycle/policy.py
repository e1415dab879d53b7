"""Which model wakes, which gives way to it, and how deep it sleeps: pure, over frozen views and a clock.

Models of a device share its bytes. Whoever waits is served by model, in turns: a model that is awake serves all that
arrives for it until others wait and its turn is over (`max_turn_s` after it woke), or until nobody asks it any more
(`min_awake_s` after it woke at the earliest). Then the room goes to the model whose oldest request has waited longest;
what is free beside it is kept for it, so that nobody smaller slips in before it.

Each model is loaded once at start, and as long as nobody knows what it takes it is loaded alone on its device, so that
no budget is exceeded by a guess. Nobody gives way to a use that is merely expected, to a pinned model or to background
work but those that nobody asked for a turn.

The bound on waiting that follows, for `n` models on a device that holds one: a request is let through within

    n * (max(max_turn_s, min_awake_s) + drain + sleep + wake)

seconds, where `drain` is what a model takes to answer all that it was given, `sleep` what it takes to be put to sleep,
and `wake` to wake and warm up. For the model that is awake ends its turn, then each of the `n - 1` others has at most
one (what comes for it afterwards is younger), then this one wakes. A model that fails takes `start_timeout_s` in place
of its turn. Requests that wait longer than `max_wait_s` are refused whatever happens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nightfill.engines.lifecycle.levels import Levels
from nightfill.engines.lifecycle.room import Room
from nightfill.engines.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nightfill.config import LifecycleSettings
    from nightfill.engines.lifecycle.view import Action, View

S = ModelState


def decide(
    models: Sequence[View], devices: Mapping[str, int], settings: LifecycleSettings, now_s: float
) -> tuple[Action, ...]:
    """What to do now; empty when nothing is. At most one action for each model, none for one that is being acted on.

    `devices` are names and bytes; each model is on one of them.
    """
    actions: list[Action] = []
    for device, max_bytes in devices.items():
        room = Room([model for model in models if model.device == device], device, max_bytes, settings, now_s)
        actions += room.shared_out()
    named = {action.name for action in actions}
    rest = [model for model in models if model.name not in named]
    return (*actions, *Levels(rest, models, settings, now_s).slept())


def next_look_s(models: Sequence[View], settings: LifecycleSettings, now_s: float) -> float:
    """When `decide` may come to another result though nothing happens in between; infinity for never."""
    return min(
        (at_s for model in models for at_s in _turning_points(model, settings) if at_s > now_s), default=math.inf
    )


def _turning_points(model: View, settings: LifecycleSettings) -> Iterator[float]:
    # The very sums that are compared with the time, or rounding could make a look come to nothing, and be the last.
    yield model.retry_at_s
    yield model.expected_until_s
    if model.state is S.AWAKE:
        yield model.woke_s + settings.min_awake_s
        yield model.woke_s + settings.max_turn_s
        yield model.used_s + settings.max_turn_s
        yield max(model.used_s, model.woke_s) + settings.level_1_after_s
    elif model.state is S.ASLEEP_1:
        yield model.since_s + settings.level_2_after_s
