from __future__ import annotations

import pytest

from nightfill.gateway.proof import Layer, judge


@pytest.mark.parametrize(
    ("planned", "promised", "reused", "ready", "layer", "broken"),
    [
        (0, 0, 0, False, Layer.COLD, False),
        (0, 0, 31, False, Layer.COLD, False),
        (0, 0, 32, False, Layer.PREFIX, False),
        (0, 0, None, False, Layer.COLD, False),
        (6000, 6000, 6000, True, Layer.FILL, False),
        (6000, 6000, 5999, True, Layer.FILL, False),
        (6000, 6000, 5992, True, Layer.FILL, False),
        (6000, 6000, 5991, True, Layer.PREFIX, True),
        (6000, 6000, 0, True, Layer.COLD, True),
        (6000, 6000, None, True, Layer.FILL, False),
        (6000, 2048, 2048, True, Layer.FILL, True),
        (6000, 0, 0, True, Layer.COLD, True),
        (6000, 0, 500, True, Layer.PREFIX, True),
        (6000, 2048, 2047, False, Layer.FILL, False),
        (6000, 0, 0, False, Layer.COLD, False),
        (6, 6, 5, True, Layer.FILL, False),
        (6, 6, 0, True, Layer.COLD, True),
    ],
)
def test_a_request_is_judged_by_what_the_engine_reused(
    planned: int, promised: int, reused: int | None, ready: bool, layer: Layer, broken: bool
) -> None:
    verdict = judge(planned=planned, promised=promised, reused=reused, claimed_ready=ready)
    assert (verdict.layer, verdict.broken) == (layer, broken)
    assert verdict.proven == (reused is not None)
    assert bool(verdict.reason) == broken
