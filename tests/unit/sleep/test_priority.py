from __future__ import annotations

import pytest

from nightfill.sleep.priority import recency_frequency
from nightfill.state.access import Usage

NOW_S = 1e9


@pytest.mark.parametrize(
    ("last_h", "accesses", "put_h", "score", "why"),
    [
        (0, 0, 0, 0.70, "not used in 7 days, priority 0.70"),
        (1, 1, 50, 0.353, "used once in 7 days, priority 0.35"),
        (6, 100, 50, 0.40, "used 100 times in 7 days, priority 0.40"),
        (6, 5000, 50, 0.40, "used 5,000 times in 7 days, priority 0.40"),
        (None, 0, 1, 0.35, "not used yet, priority 0.35"),
        (300, 0, 0, 0.70, "not used in 7 days, priority 0.70"),
        (-2, 3, 5, 0.709, "used 3 times in 7 days, priority 0.71"),
    ],
)
def test_recent_and_frequent_use_count(
    last_h: float | None, accesses: int, put_h: float, score: float, why: str
) -> None:
    last_s = None if last_h is None else NOW_S - 3600 * last_h
    usage = Usage(last_access_s=last_s, accesses_7d=accesses, broken_7d=0)
    priority = recency_frequency(usage, put_at_s=NOW_S - 3600 * put_h, now_s=NOW_S)
    assert (round(priority.score, 3), priority.why) == (score, why)
