from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fakes.access import access
from fakes.background import house
from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import now_s, virtual
from nightfill.contexts.context import Signature
from nightfill.sleep.autoscale import PACE
from nightfill.sleep.description import note_of
from nightfill.sleep.planner import Planner, plan_lines
from nightfill.sleep.speeds import speeds_of
from nightfill.sleep.worth import ALIKE, Speeds
from nightfill.state.engines import EngineNote

if TYPE_CHECKING:
    from pathlib import Path

    from nightfill.state.access import Access

SIGNATURE = Signature("5" * 64)


def loaded(**more: Any) -> Access:
    return access(**{"layer": "fill", "reused_tokens": 3900, "restore_s": 0.1, "ttft_s": 0.2, **more})


def note(pace: object, *, signature: str = SIGNATURE) -> EngineNote:
    return EngineNote(name=f"{pace}", body={"signature": signature, PACE: pace}, seen_at_s=0)  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("rows", "notes", "found"),
    [
        ([], [], ALIKE),
        ([access()] * 2, [], ALIKE),
        ([access()] * 3, [], Speeds(prefill=2000, fill=2000, restore=float("inf"))),
        ([], [note(500)], Speeds(prefill=500, fill=500, restore=float("inf"))),
        ([access()] * 3, [note(500)], Speeds(prefill=2000, fill=500, restore=float("inf"))),
        ([*[access()] * 3, *[loaded()] * 3], [note(500)], Speeds(prefill=2000, fill=500, restore=39000)),
        # The slowest of three waited for others.
        ([access(), access(), access(ttft_s=60.0)], [], Speeds(prefill=2000, fill=2000, restore=float("inf"))),
        (
            [access(layer="prefix", reused_tokens=2000, ttft_s=1.0)] * 3,
            [],
            Speeds(prefill=2000, fill=2000, restore=float("inf")),
        ),
        (
            [access()] * 3,
            [note(500), note(900, signature="another")],
            Speeds(prefill=2000, fill=500, restore=float("inf")),
        ),
    ],
)
def test_speeds_are_medians_of_what_engines_did(rows: list[Access], notes: list[EngineNote], found: Speeds) -> None:
    assert speeds_of(rows, notes, model="m", signature=SIGNATURE) == found


@pytest.mark.parametrize(
    "useless",
    [
        access(model="other"),
        access(status=500),
        access(broken=True),
        access(ttft_s=0.0),
        access(prompt_tokens=100),
        access(layer="answer"),
        access(layer="prefix", reused_tokens=3990),
        loaded(restore_s=0.0),
    ],
)
def test_what_tells_nothing_of_a_speed_is_left_out(useless: Access) -> None:
    assert speeds_of([useless] * 9, [], model="m", signature=SIGNATURE) == ALIKE


def test_a_note_of_another_kind_is_no_speed() -> None:
    assert speeds_of([], [note("fast"), note(0)], model="m", signature=SIGNATURE) == ALIKE


@virtual
async def test_a_fill_on_a_slow_machine_is_worth_less(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        engine = await FakeFillEngine().describe()
        await h.put("text")
        (alike,) = await plan_lines(h.state, [engine], now_s=now_s(), default_ttl_s=3600)
        await h.state.access.append([access(model=engine.model)] * 3)
        await h.state.engines.put("spot", {**note_of(engine), PACE: 500})
        (slow,) = await plan_lines(h.state, [engine], now_s=now_s(), default_ttl_s=3600)
        assert slow.priority == pytest.approx(alike.priority / 4)
        (queued,) = await Planner(h.state, clock=now_s, default_ttl_s=3600).tick([engine])
        assert queued.priority == pytest.approx(slow.priority)
