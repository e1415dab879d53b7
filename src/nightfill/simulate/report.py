"""What one policy achieved on one trace: the record that all simulations share."""

from __future__ import annotations

from typing import Any

import msgspec


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one trace, with one size of store or one budget."""

    policy: str
    saved_tokens: int
    """Prefill tokens that were not computed when they were asked for."""
    bound_tokens: int
    """No policy could have saved more; the same for all policies of a run."""
    hit_ratio: float
    """0 to 1."""
    background_tokens: int
    """Computed ahead of their use."""
    details: dict[str, Any] = {}
    """What only one kind of simulation knows; plain JSON values."""
