"""The states of a model that may sleep, and which may follow which."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class ModelState(enum.StrEnum):
    """What a model is doing. `STARTING` is also what wakes from either level of sleep."""

    STOPPED = "stopped"
    """Not started yet, or stopped for good."""
    STARTING = "starting"
    """Its process starts, or its weights come back."""
    WARMING = "warming"
    """One token is computed before any request gets in."""
    AWAKE = "awake"
    """Answers requests."""
    DRAINING = "draining"
    """Takes no more requests; those in flight end, and what is worth keeping of the KV is stored."""
    ASLEEP_1 = "asleep_1"
    """Off the device, quick to wake: vLLM has its weights in host memory, llama.cpp its process and the page cache."""
    ASLEEP_2 = "asleep_2"
    """Holds next to nothing: vLLM has dropped its weights, llama.cpp's process has ended."""
    FAILED = "failed"
    """Could not be started, woken or put to sleep; tried again when somebody asks, not before a while."""


S = ModelState
TRANSITIONS: Final[Mapping[ModelState, frozenset[ModelState]]] = {
    S.STOPPED: frozenset({S.STARTING}),
    S.STARTING: frozenset({S.WARMING, S.FAILED, S.STOPPED}),
    S.WARMING: frozenset({S.AWAKE, S.STARTING, S.FAILED, S.STOPPED}),
    S.AWAKE: frozenset({S.DRAINING, S.FAILED, S.STOPPED}),
    S.DRAINING: frozenset({S.ASLEEP_1, S.ASLEEP_2, S.AWAKE, S.FAILED, S.STOPPED}),
    S.ASLEEP_1: frozenset({S.STARTING, S.ASLEEP_2, S.FAILED, S.STOPPED}),
    S.ASLEEP_2: frozenset({S.STARTING, S.FAILED, S.STOPPED}),
    S.FAILED: frozenset({S.STARTING, S.STOPPED}),
}
"""What may come next. From WARMING back to STARTING: a probe showed that it woke up wrong, so it is started anew."""
