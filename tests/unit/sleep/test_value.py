from __future__ import annotations

import pytest

from nightfill.contexts.context import (
    Context,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Fingerprint,
    Form,
    Signature,
    Tenant,
    TextSource,
)
from nightfill.sleep.priority import recency_frequency
from nightfill.sleep.value import STAYS, values
from nightfill.state.access import Usage

T, NOW_S = Tenant("default"), 1e9


def context(name: str, version: str, *, put_hours_ago: float = 0.0) -> Context:
    at_s = NOW_S - 3600 * put_hours_ago
    return Context(
        tenant=T,
        name=ContextName(name),
        source=TextSource(),
        forms=(Form.CHAT,),
        pinned=False,
        ttl_s=None,
        current=Fingerprint(version),
        content_bytes=1,
        created_at_s=at_s,
        updated_at_s=at_s,
        checked_at_s=at_s,
    )


def fill(version: str, state: FillState = FillState.READY) -> Fill:
    return Fill(
        key=FillKey(tenant=T, fingerprint=Fingerprint(version), form=Form.CHAT, signature=Signature("5" * 64)),
        state=state,
        tokens=(1, 2),
        stored_tokens=2,
        filled_at_s=0.0,
        fill_seconds=0.0,
    )


def test_a_fill_is_worth_its_priority_and_more_once_it_is_ready() -> None:
    known = [context("a", "a" * 64), context("b", "b" * 64)]
    ready, new = fill("a" * 64), fill("b" * 64, FillState.FILLING)
    assert values(known, [ready, new], {}, now_s=NOW_S) == {
        ready.key: pytest.approx(STAYS),
        new.key: pytest.approx(1.0),
    }


def test_a_version_of_two_contexts_is_worth_as_much_as_the_dearer() -> None:
    known = [context("old", "a" * 64, put_hours_ago=6), context("new", "a" * 64), context("older", "a" * 64)]
    one = fill("a" * 64, FillState.FILLING)
    assert values(known, [one], {}, now_s=NOW_S)[one.key] == pytest.approx(1.0)


def test_use_counts_and_what_no_context_has_is_worth_nothing() -> None:
    known = [context("a", "a" * 64, put_hours_ago=6)]
    used = Usage(last_access_s=NOW_S, accesses_7d=50, broken_7d=0, hours={int(NOW_S // 3600): 50})
    one, nobodys = fill("a" * 64, FillState.EVICTED), fill("b" * 64)
    found = values(known, [one, nobodys], {(T, ContextName("a")): used}, now_s=NOW_S)
    assert found[one.key] > 10
    assert found[nobodys.key] == 0
    reference = values(known, [one], {(T, ContextName("a")): used}, now_s=NOW_S, policy=recency_frequency)
    assert reference == {one.key: pytest.approx(0.85)}
