"""How long requests wait for their first token when so much of their contexts is filled.

Each model has a queue of its own in front of its engines, each of which computes one prompt at a time. A window has far
too many requests to be followed one by one: their wait is the mean of a queue with Poisson arrivals, general times of
service and many servers (Allen and Cunneen's approximation with Sakasegawa's of the probability to wait, 1977).
Background work is left out: it takes what is idle, and stops when a request comes.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.simulate.rates import WINDOW_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.simulate.contexts import Spans
    from nightfill.simulate.fleet import Fleet

_FELT_S: Final = 0.001
"""Shorter waits are left out of single requests."""


class Ttft(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to the first token, over all requests."""

    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(slots=True)
class _Load:
    """What one model's engines have to do in one window: moments of the times of service, summed over requests."""

    requests: int = 0
    seconds: float = 0.0
    squares: float = 0.0

    def add(self, requests: int, service_s: float) -> None:
        self.requests += requests
        self.seconds += requests * service_s
        self.squares += requests * service_s * service_s


class Latency:
    """Times to first token on one fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        speeds, question = fleet.machines.speeds, fleet.machines.question_tokens / fleet.machines.speeds.prefill
        self._cold = [question + tokens / speeds.prefill for tokens in fleet.tokens]
        self._filled = [question + tokens / speeds.restore for tokens in fleet.tokens]

    def of(self, served: Sequence[Spans]) -> Ttft:
        """When these windows of each context were filled."""
        waits = self._waits(served)
        times: Counter[float] = Counter()
        for client, spans, cold_s, filled_s in zip(self._fleet.clients, served, self._cold, self._filled, strict=True):
            slow = waits[client.model]
            filled = {window for first, last in spans for window in range(first, last + 1)}
            felt = {window for window in slow if client.uses[window]}
            for window in felt:
                times[slow[window] + (filled_s if window in filled else cold_s)] += client.uses[window]
            quick = sum(client.uses[window] for window in filled - felt)
            times[filled_s] += quick
            times[cold_s] += sum(client.uses) - quick - sum(client.uses[window] for window in felt)
        return _summed(times)

    def _waits(self, served: Sequence[Spans]) -> dict[str, dict[int, float]]:
        """By model and window, where they are felt."""
        loads: dict[str, dict[int, _Load]] = defaultdict(lambda: defaultdict(_Load))
        for client, spans, cold_s, filled_s in zip(self._fleet.clients, served, self._cold, self._filled, strict=True):
            of = loads[client.model]
            filled = {window for first, last in spans for window in range(first, last + 1)}
            for window, uses in enumerate(client.uses):
                if uses:
                    of[window].add(uses, filled_s if window in filled else cold_s)
        return {
            model: {
                window: wait_s
                for window, load in of.items()
                if (wait_s := mean_wait_s(load.requests, load.seconds, load.squares, self._fleet.engines[model]))
                >= _FELT_S
            }
            for model, of in loads.items()
        }


def mean_wait_s(requests: int, seconds: float, squares: float, engines: int) -> float:
    """Of a window's requests, whose times of service sum up to `seconds`, and their squares to `squares`.

    A window with more to do than its engines can makes its requests wait for half of what is too much.
    """
    mean_s = seconds / requests
    load = seconds / (engines * WINDOW_S)
    if load >= 0.999:
        return max(0.0, load - 1) * WINDOW_S / 2 + mean_s
    spread = squares / requests / mean_s**2  # 1 + the squared coefficient of variation
    busy: float = load ** (math.sqrt(2 * (engines + 1)) - 1)
    return spread / 2 * busy / (engines * (1 - load)) * mean_s


def _summed(times: Counter[float]) -> Ttft:
    ordered = sorted(times.items())
    count = sum(times.values())

    def at(share: float) -> float:
        left = share * count
        for value, times_seen in ordered:
            left -= times_seen
            if left <= 0:
                return value
        return ordered[-1][0]

    mean = sum(value * seen for value, seen in ordered) / count
    return Ttft(mean=mean, p50=at(0.5), p95=at(0.95), p99=at(0.99))
