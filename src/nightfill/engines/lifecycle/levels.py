"""How deep models sleep, and whose turn it is to leave host memory: pure. The rules are told in `policy`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nightfill.engines.lifecycle.state import ModelState
from nightfill.engines.lifecycle.view import Sleep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.config import LifecycleSettings
    from nightfill.engines.lifecycle.sleeper import Level
    from nightfill.engines.lifecycle.view import Action, View

S = ModelState


@dataclass(slots=True)
class Levels:
    """Host memory for those at level 1, and the level that whoever is drained sleeps at. For one decision."""

    models: Sequence[View]
    """Those about which nothing is decided yet."""
    everybody: Sequence[View]
    settings: LifecycleSettings
    now_s: float
    actions: dict[str, Action] = field(default_factory=dict)

    def slept(self) -> list[Action]:
        """At most one action for each of `models`."""
        used = sum(model.host_bytes for model in self.everybody)
        free = (self.settings.host_max_bytes or math.inf) - used
        free_soon = free + sum(model.host_bytes for model in self._leaving())
        self._deepened(-free_soon, before_s=math.inf, reason="host memory runs short")
        for model in self.models:
            if model.acting:
                continue
            if model.state is S.ASLEEP_1 and 2 in model.levels and model.name not in self.actions:
                after_s = self.settings.level_2_after_s
                if model.told == 2:
                    self._sleep(model, 2, "sent to sleep by hand")
                elif after_s > 0 and self.now_s >= model.since_s + after_s:
                    self._sleep(model, 2, f"nobody asked for it for {self.now_s - model.since_s:.0f} s more")
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
