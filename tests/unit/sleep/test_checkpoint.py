from __future__ import annotations

import pytest

from nightfill.sleep.checkpoint import save_due


@pytest.mark.parametrize(
    ("computed_s", "last_save_s", "due"),
    [(0.0, 0.0, False), (1.9, 0.0, False), (2.0, 0.0, True), (2.0, 0.1, True), (2.0, 0.2, False), (4.0, 0.2, True)],
)
def test_saving_takes_a_small_share_of_the_time(computed_s: float, last_save_s: float, due: bool) -> None:
    assert save_due(computed_s=computed_s, last_save_s=last_save_s, every_s=2.0) is due
