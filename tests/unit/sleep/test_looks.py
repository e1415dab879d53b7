from __future__ import annotations

from dataclasses import replace

import pytest

from nightfill.contexts.context import Context, ContextName, Fingerprint, Form, Tenant, TextSource
from nightfill.sleep.looks import LATEST_S, SOONEST_S, SPREAD, USED_LATEST_S, again_in_s, looked
from nightfill.sleep.plan import PlanLine, Verdict, Waits
from nightfill.state.access import Usage
from nightfill.state.agenda import Due
from nightfill.state.budgets import Scope

NOW_S = 1e9
HOUR_S = 3600.0
CONTEXT = Context(
    tenant=Tenant("t"),
    name=ContextName("repo"),
    source=TextSource(),
    forms=(Form.CHAT,),
    pinned=False,
    ttl_s=None,
    current=Fingerprint("a" * 64),
    content_bytes=100,
    created_at_s=0.0,
    updated_at_s=NOW_S - 100 * HOUR_S,
    checked_at_s=0.0,
)
UNUSED = Usage(last_access_s=None, accesses_7d=0, broken_7d=0)
DUE = Due(context=CONTEXT, usage=UNUSED, fills=(), jobs=(), shared=False, mark=None, changed=False)
LINE = PlanLine(
    tenant=CONTEXT.tenant,
    context=CONTEXT.name,
    form=Form.CHAT,
    engine="e",
    key=None,
    verdict=Verdict.SKIP,
    priority=1.0,
    total_tokens=0,
    why="",
)


def used(ago_s: float) -> Due:
    usage = Usage(last_access_s=NOW_S - ago_s, accesses_7d=1, broken_7d=0, hours={int((NOW_S - ago_s) // HOUR_S): 1})
    return replace(DUE, usage=usage)


@pytest.mark.parametrize(
    ("due", "in_s"),
    [
        (used(0.0), SOONEST_S),
        (used(2 * HOUR_S), HOUR_S / 2),
        (used(50 * HOUR_S), USED_LATEST_S),
        (DUE, LATEST_S),
    ],
)
def test_what_is_long_untouched_is_looked_at_less_often(due: Due, in_s: float) -> None:
    assert abs(again_in_s(due, NOW_S) - in_s) <= in_s * SPREAD / 2


def test_those_that_were_put_together_do_not_come_together() -> None:
    many = [replace(DUE, context=replace(CONTEXT, name=ContextName(f"c{n}"))) for n in range(100)]
    times = [again_in_s(due, NOW_S) for due in many]
    assert times == [again_in_s(due, NOW_S) for due in many]
    assert max(times) - min(times) > LATEST_S * SPREAD * 0.9


def test_what_waits_for_a_budget_comes_when_it_begins_anew_the_most_valuable_first() -> None:
    cheap, dear = (
        replace(LINE, priority=priority, waits=Waits(until_s=NOW_S + 1000, valued_s=600, scope=Scope("t")))
        for priority in (0.5, 8.0)
    )
    ((low,), (high,)) = (looked([DUE], [line], now_s=NOW_S) for line in (cheap, dear))
    assert 1000 < high.again_in_s < low.again_in_s <= 1600
    assert (high.waits_for, high.priority) == (Scope("t"), 8.0)
    ((both,)) = looked([DUE], [cheap, dear, LINE], now_s=NOW_S)
    assert both == high


def test_each_is_looked_at_again_also_one_without_a_line() -> None:
    other = replace(DUE, context=replace(CONTEXT, name=ContextName("other")))
    waits = Waits(until_s=NOW_S, valued_s=1.0)
    first, second = looked([other, DUE], [replace(LINE, waits=waits)], now_s=NOW_S)
    assert (first.due, first.waits_for, first.again_in_s) == (other, None, again_in_s(other, NOW_S))
    assert second.again_in_s <= 1.0
