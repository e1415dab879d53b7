"""What a fill must be worth to be made: the price at which what is wanted until the budget's reset just fits it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def clearing_price(wanted: Iterable[tuple[float, float]], left_tokens: float) -> float:
    """The lowest score among `wanted` (score, tokens) that the budget reaches, dearest first; 0 if it reaches all.

    Whoever fills only what scores as much spends what is left of the budget by its reset, on the best there will be,
    instead of at once on the best there is now. Where not even the first can be paid, the price is its score.
    """
    price: float | None = None
    for score, tokens in sorted(wanted, reverse=True):
        left_tokens -= tokens
        if left_tokens < 0:
            return score if price is None else price
        price = score
    return 0.0


def fills_until(reset_s: float, *, from_s: float, ttl_s: float) -> Iterator[float]:
    """When a context would have to be filled from `from_s` on, to stay filled until the budget's reset."""
    while from_s < reset_s:
        yield from_s
        from_s += ttl_s
