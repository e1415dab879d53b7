"""Which model wakes, which gives way to it, and how deep it sleeps: pure, over frozen views and a clock.

Models of a device share its bytes. Whoever waits is served by model, in turns: a model that is awake serves all that
arrives for it until others wait and its turn is over (`max_turn_s` after it woke), or until nobody asks it any more
(`min_awake_s` after it woke at the earliest). Then the room goes to the model whose oldest request has waited longest;
what is free beside it is kept for it, so that nobody smaller slips in before it.

The bound on waiting that follows, for `n` models on a device that holds one: a request is let through within

    n * (max(max_turn_s, min_awake_s) + drain + sleep + wake)

seconds, where `drain` is what a model takes to answer all that it was given, `sleep` what it takes to be put to sleep,
and `wake` to wake and warm up. For the model that is awake ends its turn, then each of the `n - 1` others has at most
one (what comes for it afterwards is younger), then this one wakes. A model that fails takes `start_timeout_s` in place
of its turn. Requests that wait longer than `max_wait_s` are refused whatever happens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nightfill.engines.lifecycle.state import ModelState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nightfill.config import LifecycleSettings
    from nightfill.engines.lifecycle.sleeper import Level

S = ModelState
UP: Final = frozenset({S.STARTING, S.WARMING, S.AWAKE, S.DRAINING})
"""States in which a model takes its full size of the device, or is about to, or still does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One model as the policy sees it. Times are seconds of one monotonic clock; -inf for never."""

    name: str
    device: str
    state: ModelState = S.STOPPED
    acting: bool = False
    """A call to its sleeper is under way."""
    levels: frozenset[Level] = frozenset({1, 2})
    pinned: bool = False
    size_bytes: int | None = None
    """Of the device when it is awake; None while it was never measured."""
    held_bytes: int = 0
    """Of the device that it takes now, or may be about to take."""
    host_bytes: int = 0
    """Of the host that it takes now because it is asleep at level 1, or may be about to."""
    host_1_bytes: int = 0
    """Of the host when it was asleep at level 1 the last time; 0 while it never was."""
    in_flight: int = 0
    asked_s: float | None = None
    """When the oldest of its waiting requests came; None where none waits."""
    since_s: float = -math.inf
    """When it came into its state."""
    woke_s: float = -math.inf
    used_s: float = -math.inf
    """When it was last asked for, or done with a request."""
    told: Level | None = None
    """Sent to sleep by hand, to this level."""
    expected_until_s: float = -math.inf
    retry_at_s: float = -math.inf
    """Not to be started before."""
    tried: bool = False
    """It was started at least once, well or not."""

    @property
    def idle(self) -> bool:
        """No request is in flight or waits."""
        return self.in_flight == 0 and self.asked_s is None

    @property
    def unknown(self) -> bool:
        """It is to be loaded, and nobody knows yet what it will take."""
        return self.size_bytes is None and self.state not in UP and (not self.tried or self.asked_s is not None)


@dataclass(frozen=True, slots=True)
class Wake:
    """Start it, or bring it back."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Let no more requests in; it sleeps when those in flight have ended."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Drain no longer."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sleep:
    """It is drained, or asleep at level 1: put it to sleep at `level`."""

    name: str
    level: Level
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """It cannot wake however long its requests wait: answer them with an error."""

    name: str
    reason: str


Action = Wake | Drain | Resume | Sleep | Refuse


def decide(
    models: Sequence[View], devices: Mapping[str, int], settings: LifecycleSettings, now_s: float
) -> tuple[Action, ...]:
    """What to do now; empty when nothing is. At most one action for each model, none for one that is being acted on.

    `devices` are names and bytes; each model is on one of them.
    """
    actions: list[Action] = []
    for device, max_bytes in devices.items():
        room = _Room([model for model in models if model.device == device], device, max_bytes, settings, now_s)
        actions += room.shared_out()
    host = _Host([model for model in models if model not in _named(models, actions)], models, settings, now_s)
    return (*actions, *host.slept())


def next_look_s(models: Sequence[View], settings: LifecycleSettings, now_s: float) -> float:
    """When `decide` may come to another result though nothing happens in between; infinity for never."""
    return min(
        (at_s for model in models for at_s in _turning_points(model, settings) if at_s > now_s), default=math.inf
    )


def _turning_points(model: View, settings: LifecycleSettings) -> Iterator[float]:
    yield model.retry_at_s
    yield model.expected_until_s
    if model.state is S.AWAKE:
        yield model.woke_s + settings.min_awake_s
        yield model.woke_s + settings.max_turn_s
        yield model.used_s + settings.max_turn_s
        yield max(model.used_s, model.woke_s) + settings.level_1_after_s
    elif model.state is S.ASLEEP_1:
        yield model.since_s + settings.level_2_after_s


def _named(models: Sequence[View], actions: Sequence[Action]) -> list[View]:
    names = {action.name for action in actions}
    return [model for model in models if model.name in names]


@dataclass(slots=True)
class _Room:
    """The bytes of one device, and who gets them. For one decision."""

    models: Sequence[View]
    device: str
    max_bytes: int
    settings: LifecycleSettings
    now_s: float
    actions: dict[str, Action] = field(default_factory=dict)

    def shared_out(self) -> list[Action]:
        free = self.max_bytes - sum(model.held_bytes for model in self.models)
        # What will be free once those that give way already are asleep.
        coming = sum(model.held_bytes for model in self.models if model.state is S.DRAINING)
        for model, rank in self._claims():
            if (refusal := self._never(model)) is not None:
                if model.asked_s is not None:
                    self.actions[model.name] = Refuse(model.name, refusal)
                continue
            need = self._need(model) - model.held_bytes
            if need <= free:
                if not model.acting:
                    self.actions[model.name] = Wake(model.name, rank.reason)
            elif (short := need - free - coming) > 0:
                victims = self._victims(model, rank, short)
                for victim in victims:
                    coming += victim.held_bytes
                    self.actions[victim.name] = _give_way(victim, model)
                if not victims and rank is _EXPECTED:
                    continue  # it does not keep others from the room
            free -= need
        self._end_drains(free + coming)
        self._send_idle_to_sleep()
        return list(self.actions.values())

    def _claims(self) -> list[tuple[View, _Rank]]:
        found = []
        for model in self.models:
            if model.state in UP or self.now_s < model.retry_at_s or model.told is not None:
                continue
            if model.asked_s is not None:
                found.append((_ASKED, model.asked_s, model))
            elif not model.tried:
                found.append((_FIRST, float(model.pinned), model))
            elif model.pinned:
                found.append((_PINNED, -model.used_s, model))
            elif self.now_s < model.expected_until_s:
                found.append((_EXPECTED, model.expected_until_s, model))
        found.sort(key=lambda claim: (claim[0].order, claim[1]))
        return [(model, rank) for rank, _, model in found]

    def _need(self, model: View) -> int:
        if model.size_bytes is not None:
            return model.size_bytes
        # Of unknown size: the whole device, so that no guess exceeds it, but for what nobody asleep can give back.
        return self.max_bytes - sum(
            other.held_bytes
            for other in self.models
            if other is not model
            and (other.state is S.ASLEEP_2 or (other.state is S.ASLEEP_1 and 2 not in other.levels))
        )

    def _never(self, model: View) -> str | None:
        """Why it would not fit even if everybody else gave way."""
        if model.size_bytes is None:
            return None
        rest = [other for other in self.models if other is not model]
        kept = [other for other in rest if other.pinned and other.state in UP]
        sleepers = [other for other in rest if other.state is S.ASLEEP_2]
        left = self.max_bytes - sum(other.held_bytes for other in (*kept, *sleepers))
        if model.size_bytes <= left:
            return None
        beside = "".join(f", beside {other.name} which is pinned" for other in kept)
        return (
            f"takes {model.size_bytes} bytes awake, and device {self.device} has {left} for it{beside}"
            " (lifecycle.devices, max_bytes)"
        )

    def _victims(self, claimant: View, rank: _Rank, short: int) -> list[View]:
        """Who gives way, so that `short` bytes come; none if they do not suffice."""
        chosen: list[View] = []
        for victim in self._candidates(claimant, rank):
            if short <= sum(other.held_bytes for other in chosen):
                break
            chosen.append(victim)
        surplus = sum(victim.held_bytes for victim in chosen) - short
        if surplus < 0:
            return []
        for victim in tuple(chosen):  # one that was taken before a larger one may not be needed
            if victim.held_bytes <= surplus:
                surplus -= victim.held_bytes
                chosen.remove(victim)
        return chosen

    def _candidates(self, claimant: View, rank: _Rank) -> list[View]:
        """In the order in which they give way."""
        settings, now_s = self.settings, self.now_s
        others = sorted(self.models, key=lambda model: model.used_s)
        others = [model for model in others if not model.acting and model.name not in self.actions]
        sleepers = [
            model
            for model in others
            if model is not claimant and model.state is S.ASLEEP_1 and 2 in model.levels and model.held_bytes
        ]
        # A first load has to be alone on the device, so that it can be measured: pinned models give way to it too.
        awake = [
            model for model in others if model.state is S.AWAKE and (not model.pinned or claimant.size_bytes is None)
        ]
        idle = [model for model in awake if model.idle and now_s >= model.woke_s + settings.min_awake_s]
        if rank.waits:
            turn_s = max(settings.max_turn_s, settings.min_awake_s)
            over = [model for model in awake if not model.idle and now_s >= model.woke_s + turn_s]
            return [*sleepers, *idle, *sorted(over, key=lambda model: model.woke_s)]
        if rank is _FIRST:
            return [*sleepers, *idle]
        unused = [model for model in idle if now_s >= model.used_s + settings.max_turn_s]
        return [*sleepers, *(model for model in unused if now_s >= model.expected_until_s)]

    def _end_drains(self, surplus: int) -> None:
        """Back to work for those whose room nobody needs any more, as long as anybody asks them."""
        for model in self.models:
            needed = model.acting or model.idle or model.told is not None or model.held_bytes > surplus
            if model.state is S.DRAINING and not needed:
                surplus -= model.held_bytes
                self.actions[model.name] = Resume(model.name, "nobody waits for its room any more")

    def _send_idle_to_sleep(self) -> None:
        for model in self.models:
            if model.state is not S.AWAKE or model.acting or model.name in self.actions:
                continue
            idle_s = self.now_s - max(model.used_s, model.woke_s)
            if model.told is not None:
                self.actions[model.name] = Drain(model.name, "sent to sleep by hand")
            elif (
                0 < self.settings.level_1_after_s <= idle_s
                and model.idle
                and not model.pinned
                and self.now_s >= model.expected_until_s
            ):
                self.actions[model.name] = Drain(model.name, f"nobody asked for it for {idle_s:.0f} s")


def _give_way(victim: View, claimant: View) -> Action:
    reason = f"gives way to {claimant.name}"
    return Sleep(victim.name, 2, reason) if victim.state is S.ASLEEP_1 else Drain(victim.name, reason)


@dataclass(frozen=True, slots=True)
class _Rank:
    order: int
    reason: str
    waits: bool = False
    """Somebody waits for it, so that others end their turn."""


_ASKED: Final = _Rank(0, "requests wait", waits=True)
_FIRST: Final = _Rank(1, "to be described and measured")
_PINNED: Final = _Rank(2, "it is pinned")
_EXPECTED: Final = _Rank(3, "it is expected to be asked for")


@dataclass(slots=True)
class _Host:
    """Host memory for those at level 1, and the level that whoever is drained sleeps at. For one decision."""

    models: Sequence[View]
    """Those about which nothing is decided yet."""
    everybody: Sequence[View]
    settings: LifecycleSettings
    now_s: float
    actions: dict[str, Action] = field(default_factory=dict)

    def slept(self) -> list[Action]:
        used = sum(model.host_bytes for model in self.everybody)
        free = (self.settings.host_max_bytes or math.inf) - used
        free_soon = free + sum(model.host_bytes for model in self._leaving())
        self._deepened(-free_soon, before_s=math.inf, reason="host memory runs short")
        for model in self.models:
            if model.acting:
                continue
            if model.state is S.ASLEEP_1 and 2 in model.levels and model.name not in self.actions:
                slept_s = self.now_s - model.since_s
                if model.told == 2:
                    self._sleep(model, 2, "sent to sleep by hand")
                elif 0 < self.settings.level_2_after_s <= slept_s:
                    self._sleep(model, 2, f"nobody asked for it for {slept_s:.0f} s more")
            elif model.state is S.DRAINING and model.in_flight == 0:
                level = self._level(model, free)
                if level is None:
                    continue
                free -= model.host_1_bytes if level == 1 else 0
                self._sleep(model, level, "no request is in flight")
        return list(self.actions.values())

    def _level(self, model: View, free: float) -> Level | None:
        """None while host memory for it is on its way. What it takes is known from the last time only."""
        if model.told is not None and model.told in model.levels:
            return model.told
        if 2 not in model.levels:
            return 1
        if 1 not in model.levels:
            return 2
        if any(other.unknown and other.device == model.device for other in self.everybody):
            return 2  # it needs the whole device
        short = model.host_1_bytes - free
        if short <= 0:
            return 1
        if short <= sum(other.host_bytes for other in self._leaving()):
            return None
        reason = f"its host memory goes to {model.name}"
        return None if self._deepened(short, before_s=model.used_s, reason=reason) else 2

    def _leaving(self) -> list[View]:
        """Those on their way from level 1 to level 2."""
        return [model for model in self.everybody if model.state is S.ASLEEP_1 and model.acting]

    def _deepened(self, short: float, *, before_s: float, reason: str) -> bool:
        """Whether so many bytes come from those at level 1 that were used longest ago, and before a time."""
        if short <= 0:
            return False
        came, chosen = 0, []
        for model in sorted(self.models, key=lambda model: model.used_s):
            if came >= short:
                break
            waits = model.acting or model.asked_s is not None or model.name in self.actions
            if model.state is S.ASLEEP_1 and 2 in model.levels and model.used_s < before_s and not waits:
                chosen.append(model)
                came += model.host_bytes
        if came < short and before_s < math.inf:
            return False  # no use in it: whoever asks sleeps at level 2
        for model in chosen:
            self._sleep(model, 2, reason)
        return True

    def _sleep(self, model: View, level: Level, reason: str) -> None:
        self.actions[model.name] = Sleep(model.name, level, reason)
