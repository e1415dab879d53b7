"""Who gets the bytes of one device, and who gives way: pure. The rules are told in `policy`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from nightfill.engines.lifecycle.state import ModelState
from nightfill.engines.lifecycle.view import UP, Drain, Refuse, Resume, Sleep, Wake

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.config import LifecycleSettings
    from nightfill.engines.lifecycle.view import Action, View

S = ModelState


@dataclass(frozen=True, slots=True)
class _Rank:
    """Why a model is to be awake; who has a lower `order` comes first."""

    order: int
    reason: str
    waits: bool = False
    """Somebody waits for it, so that others end their turn."""


_ASKED: Final = _Rank(0, "requests wait", waits=True)
_FIRST: Final = _Rank(1, "to be described and measured")
_PINNED: Final = _Rank(2, "it is pinned")
_EXPECTED: Final = _Rank(3, "it is expected to be asked for")


@dataclass(slots=True)
class Room:
    """The bytes of one device, and who gets them. For one decision."""

    models: Sequence[View]
    device: str
    max_bytes: int
    settings: LifecycleSettings
    now_s: float
    actions: dict[str, Action] = field(default_factory=dict)

    def shared_out(self) -> list[Action]:
        """At most one action for each model, none for one that is being acted on."""
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
        # One such load for each model is no to and fro, which `min_awake_s` is there against.
        stay_s = settings.min_awake_s if claimant.size_bytes is not None else 0.0
        idle = [model for model in awake if model.idle and now_s >= model.woke_s + stay_s]
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
            used_s, after_s = max(model.used_s, model.woke_s), self.settings.level_1_after_s
            if model.told is not None:
                self.actions[model.name] = Drain(model.name, "sent to sleep by hand")
            elif (
                after_s > 0
                and self.now_s >= max(used_s + after_s, model.expected_until_s)
                and model.idle
                and not model.pinned
            ):
                self.actions[model.name] = Drain(model.name, f"nobody asked for it for {self.now_s - used_s:.0f} s")


def _give_way(victim: View, claimant: View) -> Action:
    reason = f"gives way to {claimant.name}"
    return Sleep(victim.name, 2, reason) if victim.state is S.ASLEEP_1 else Drain(victim.name, reason)
