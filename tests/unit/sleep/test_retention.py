from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fakes.background import WALL_S, FakeUpkeep, House, T, house, key_of
from fakes.virtual_time import now_s, virtual
from nightfill.contexts.context import Fill, FillState, Fingerprint, Form, Text, TextSource
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.sleep import retention as retention_module
from nightfill.sleep.priority import value
from nightfill.sleep.retention import Retention
from nightfill.sleep.value import STAYS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import pytest

    from nightfill.contexts.context import Context, FillKey


class Kept(FakeUpkeep):
    """Remembers what is pinned, and what there is at all. The store has all of it."""

    def __init__(self) -> None:
        super().__init__(lambda _: {})
        self.pinned: set[FillKey] = set()
        self.there: set[FillKey] = set()

    def tend(self, fills: Collection[FillKey], pinned: Collection[FillKey]) -> Mapping[FillKey, int]:
        self.there, self.pinned = set(fills), set(pinned)
        return {}


def retention_of(h: House, upkeep: FakeUpkeep) -> Retention:
    return Retention(h.state, upkeep, policy=value, default_ttl_s=1e6, clock=lambda: WALL_S + now_s())


async def filled(h: House, name: str, text: str, state: FillState = FillState.READY) -> Context:
    context = await h.put(text, name=name)
    await h.state.book.put_fill(
        Fill(key=key_of(context), state=state, tokens=(1, 2), stored_tokens=2, filled_at_s=now_s(), fill_seconds=1.0)
    )
    return context


async def pin(h: House, context: Context, text: str) -> None:
    await h.state.book.put(
        tenant=T,
        name=context.name,
        source=TextSource(),
        content=Text(text),
        fingerprint=fingerprint_of(Text(text)),
        forms=[Form.CHAT],
        pinned=True,
    )


@virtual
async def test_the_store_is_tended_when_all_contexts_were_seen_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "STEP", 2)
    monkeypatch.setattr(retention_module, "STEPS", 2)
    async with house(tmp_path) as h:
        contexts = [await filled(h, f"c{n}", f"text {n}") for n in range(7)]
        await pin(h, contexts[6], "text 6")
        upkeep = Kept()
        retention = retention_of(h, upkeep)
        assert not await retention.tend(set())
        assert upkeep.there == set(), "what is not known to be pinned would be swept"
        assert await retention.tend(set())
        assert upkeep.there == {key_of(context) for context in contexts} == upkeep.worth.keys()
        assert upkeep.pinned == {key_of(contexts[6])}
        await h.state.book.drop_fill(key_of(contexts[6]))
        assert await retention.tend(set())
        assert (len(upkeep.there), upkeep.pinned) == (6, set())


@virtual
async def test_a_version_is_worth_what_its_dearest_context_is_and_pinned_if_one_is(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        old = await filled(h, "old", "same", FillState.STALE)
        await asyncio.sleep(36_000)
        new = await filled(h, "new", "same")
        await pin(h, old, "same")
        upkeep = Kept()
        retention = retention_of(h, upkeep)
        assert await retention.tend(set())
        assert (upkeep.worth, upkeep.pinned) == ({key_of(new): STAYS * 1.0}, {key_of(new)})


@virtual
async def test_what_was_looked_at_is_told_before_the_next_fill(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await filled(h, "repo", "text")
        upkeep = Kept()
        retention = retention_of(h, upkeep)
        await retention.see(await h.state.agenda.due(limit=10))
        assert upkeep.worth == {}
        await retention.holding(key_of(context))
        assert upkeep.worth == {key_of(context): STAYS * 1.0}
        assert upkeep.learnt.keys() == {key_of(context)}


@virtual
async def test_a_fill_whose_tokens_cannot_be_read_is_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        context = await filled(h, "repo", "text")
        read = h.state.book.fill

        async def unreadable(_: FillKey) -> Fill | None:
            return None

        monkeypatch.setattr(h.state.book, "fill", unreadable)
        assert await retention_of(h, Kept()).tend(set())
        found = await read(key_of(context))
        assert found is not None
        assert (found.state, found.reason) == (FillState.STALE, "its tokens cannot be read")


@virtual
async def test_where_there_is_no_store_nothing_is_looked_at(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await filled(h, "repo", "text")
        retention = Retention(h.state, None, policy=value, default_ttl_s=1.0, clock=now_s)
        assert await retention.tend({"any"})
        await retention.see(await h.state.agenda.due(limit=10))
        key = key_of(await h.put("text"))
        assert key.fingerprint != Fingerprint("")
        async with (await retention.holding(key))(await a_fill(h, key)):
            """As nobody holds anything."""


async def a_fill(h: House, key: FillKey) -> Fill:
    found = await h.state.book.fill(key)
    assert found is not None
    return found
