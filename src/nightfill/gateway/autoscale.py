"""How many workers are wished for, as Prometheus knows it; `GET /v1/nightfill/autoscale` has the same as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nightfill.observe.metrics import Sample
from nightfill.sleep.trigger import Reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from nightfill.sleep.autoscale import Scale

    Autoscale = Callable[[], Awaitable[Scale]]


def scale_samples(scale: Scale) -> Iterable[Sample]:
    """As gauges."""
    for name, text, value in (
        ("queue_due", "Background jobs that could begin now.", scale.due),
        ("queue_later", "Background jobs that wait for another attempt.", scale.later),
        ("queue_leased", "Background jobs under way.", scale.leased),
        ("queue_tokens", "Tokens that all these still need, as far as known.", scale.tokens),
        ("wished_workers", "Workers that an autoscaler should run.", scale.wished_workers),
        ("worker_tokens_per_second", "Filled by one worker, as measured; 0 while unknown.", scale.tokens_per_s),
    ):
        yield Sample(name=name, help=text, value=value)
    for reason in Reason:
        yield Sample(
            name="background_allowed",
            help="1 for the reason why background work may run now; all 0 while it waits.",
            value=float(scale.reason == reason),
            labels={"reason": str(reason)},
        )
