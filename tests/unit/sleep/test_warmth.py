from __future__ import annotations

from dataclasses import replace

import pytest

from nightfill.contexts.context import Context, ContextName, FillKey, Fingerprint, Form, Signature, Tenant, TextSource
from nightfill.engines.engine import Description, Reuse
from nightfill.sleep.warmth import capacity, to_keep_warm
from nightfill.state.access import Usage

T, NOW_S = Tenant("t"), 1e9
DESCRIPTION = Description(
    engine="local",
    model="m",
    signature=Signature("5" * 64),
    context_length=1000,
    kv_bytes_per_token=1,
    slots=3,
    reuse=Reuse.NONE,
    embeddings=False,
    version="v",
)


def context(name: str, *, mark: str = "", age_s: float = 0.0, forms: tuple[Form, ...] = (Form.CHAT,)) -> Context:
    return Context(
        tenant=T,
        name=ContextName(name),
        source=TextSource(),
        forms=forms,
        pinned=False,
        ttl_s=None,
        current=Fingerprint(mark or name),
        content_bytes=1,
        created_at_s=NOW_S - age_s,
        updated_at_s=NOW_S - age_s,
        checked_at_s=NOW_S,
    )


def key(name: str, form: Form = Form.CHAT) -> FillKey:
    return FillKey(tenant=T, fingerprint=Fingerprint(name), form=form, signature=DESCRIPTION.signature)


def kept(*contexts: Context, usages: dict[str, Usage] | None = None, impossible: tuple[FillKey, ...] = ()) -> list[str]:
    found = to_keep_warm(
        contexts,
        {(T, ContextName(name)): usage for name, usage in (usages or {}).items()},
        DESCRIPTION,
        impossible=impossible,
        now_s=NOW_S,
    )
    return [f"{one.fingerprint}/{one.form}" for one in found]


@pytest.mark.parametrize(("slots", "room"), [(1, 1), (2, 1), (3, 2), (8, 7)])
def test_one_slot_stays_for_others_where_there_are_several(slots: int, room: int) -> None:
    assert capacity(slots) == room


def test_the_most_valuable_ones_take_the_room() -> None:
    often = Usage(last_access_s=NOW_S - 10, accesses_7d=90, broken_7d=0, hours={int(NOW_S // 3600): 90})
    old, new = context("old", age_s=7200), context("new", age_s=60)
    busy = context("busy", age_s=7200)
    assert kept(old, new, busy, usages={"busy": often}) == ["busy/chat", "new/chat"]


def test_without_contexts_nothing_is_kept() -> None:
    assert kept() == []


def test_each_form_takes_a_slot() -> None:
    both = context("a", forms=(Form.CHAT, Form.COMPLETION))
    assert kept(both, context("b", age_s=9999)) == ["a/chat", "a/completion"]


def test_two_names_of_one_content_take_one_slot() -> None:
    assert kept(context("a", mark="x"), context("b", mark="x"), context("c", age_s=9999)) == ["x/chat", "c/chat"]


def test_what_does_not_fit_takes_no_room() -> None:
    assert kept(context("a"), context("b"), context("c"), impossible=(key("a"),)) == ["b/chat", "c/chat"]


def test_a_single_slot_keeps_the_best() -> None:
    found = to_keep_warm([context("a"), context("b")], {}, replace(DESCRIPTION, slots=1), impossible=(), now_s=NOW_S)
    assert found == [key("a")]
