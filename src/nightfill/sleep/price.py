"""What a fill must be worth to be made: the price at which what is wanted until the budget's reset just fits it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def clearing_price(wanted: Iterable[tuple[float, float]], left_tokens: float) -> float:
    """The score of the first of `wanted` (score, tokens) that the budget does not reach, dearest first; 0 if all fit.

    Whoever fills only what scores more spends what is left of the budget by its reset, on the best there will be,
    instead of at once on the best there is now.
    """
    for score, tokens in sorted(wanted, reverse=True):
        left_tokens -= tokens
        if left_tokens < 0:
            return score
    return 0.0


def fills_until(reset_s: float, *, from_s: float, ttl_s: float) -> Iterator[float]:
    """When a context would have to be filled from `from_s` on, to stay filled until the budget's reset."""
    while from_s < reset_s:
        yield from_s
        from_s += ttl_s
