from __future__ import annotations

import pytest

from nightfill.engines.backoff import BackoffPolicy, GiveUp, Restart, after_exit

POLICY = BackoffPolicy(base_s=1.0, cap_s=10.0, healthy_s=60.0, max_start_failures=3)


@pytest.mark.parametrize(
    ("exits", "ready_s", "ever_ready", "verdict"),
    [
        (0, 5.0, True, Restart(delay_s=1.0, exits=1)),
        (1, 5.0, True, Restart(delay_s=2.0, exits=2)),
        (3, 5.0, True, Restart(delay_s=8.0, exits=4)),
        (4, 5.0, True, Restart(delay_s=10.0, exits=5)),  # the cap
        (10_000, 0.0, True, Restart(delay_s=10.0, exits=10_001)),  # no overflow, and never given up
        (7, 60.0, True, Restart(delay_s=1.0, exits=1)),  # it was healthy: counted anew
        (7, 59.9, True, Restart(delay_s=10.0, exits=8)),
        (0, 0.0, False, Restart(delay_s=1.0, exits=1)),
        (1, 0.0, False, Restart(delay_s=2.0, exits=2)),
        (2, 0.0, False, GiveUp(exits=3)),
    ],
)
def test_the_delay_doubles_up_to_the_cap_and_a_healthy_span_resets_it(
    exits: int, ready_s: float, ever_ready: bool, verdict: Restart | GiveUp
) -> None:
    assert after_exit(exits=exits, ready_s=ready_s, ever_ready=ever_ready, policy=POLICY) == verdict
