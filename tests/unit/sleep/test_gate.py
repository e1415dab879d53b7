from __future__ import annotations

import pytest

from nightfill.config import Duration, SleepSettings
from nightfill.sleep.gate import CHECK_CLOSED_S, Closed, Open, verdict
from nightfill.state.load import Load

QUIET = SleepSettings(quiet_s=Duration(0.5))


@pytest.mark.parametrize(
    ("in_flight", "idle_since_s", "max_live", "expected"),
    [
        (0, 0.0, 0, Open()),
        (1, 0.0, 0, Closed(reason="1 live request", check_again_in_s=CHECK_CLOSED_S)),
        (3, 99.9, 0, Closed(reason="3 live requests", check_again_in_s=CHECK_CLOSED_S)),
        (0, 99.75, 0, Closed(reason="quiet period", check_again_in_s=0.25)),
        (0, 99.5, 0, Open()),
        (2, 99.99, 2, Open()),
        (3, 0.0, 2, Closed(reason="3 live requests", check_again_in_s=CHECK_CLOSED_S)),
        (0, 1e6, 0, Closed(reason="quiet period", check_again_in_s=0.5)),
    ],
)
def test_the_gate_is_open_only_in_quiet(
    in_flight: int, idle_since_s: float, max_live: int, expected: Open | Closed
) -> None:
    settings = SleepSettings(quiet_s=QUIET.quiet_s, max_live=max_live)
    assert verdict(Load(in_flight=in_flight, idle_since_s=idle_since_s, ttft_s=0.0), settings, 100.0) == expected
