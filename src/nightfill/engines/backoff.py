"""When to start an engine's process again, or to give up. Pure; `engines.supervised` acts on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffPolicy:
    """How restarts are spaced."""

    base_s: float = 0.25
    """Wait after the first exit; doubled with each further one."""
    cap_s: float = 30.0
    """Longest wait."""
    healthy_s: float = 60.0
    """A process that was ready for so long has proved itself: its exit counts as the first again."""
    max_start_failures: int = 3
    """Exits before ever being ready, after which the cause is taken to be permanent, such as a bad model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Start again after `delay_s` seconds; `exits` is the count to hand in next time."""

    delay_s: float
    exits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """It never became ready in `exits` attempts."""

    exits: int


def after_exit(*, exits: int, ready_s: float, ever_ready: bool, policy: BackoffPolicy) -> Restart | GiveUp:
    """What to do now that the process has ended.

    `exits` counts the exits since the process was last healthy, before this one; `ready_s` is how long it was ready
    this time (0: it never was); `ever_ready` says whether any attempt became ready. An engine that did work once is
    started again for ever: what stopped it (memory, a driver) may pass.
    """
    exits = 1 if ready_s >= policy.healthy_s else exits + 1
    if not ever_ready and exits >= policy.max_start_failures:
        return GiveUp(exits=exits)
    # The exponent is bounded, or a long series of exits would overflow a float.
    return Restart(delay_s=min(policy.base_s * 2.0 ** min(exits - 1, 62), policy.cap_s), exits=exits)
