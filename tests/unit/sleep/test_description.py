from __future__ import annotations

from dataclasses import replace

from fakes.fill_engine import FakeFillEngine, FillLog, FillStore
from nightfill.contexts.context import Signature
from nightfill.sleep.description import SEEN_S, note_of, seen_last
from nightfill.state.engines import EngineNote


async def test_the_engines_seen_last_are_those_that_were_there_together() -> None:
    one = await FakeFillEngine(store=FillStore(), log=FillLog()).describe()
    two, twin = replace(one, engine="two", signature=Signature("2" * 64)), replace(one, engine="twin")
    notes = [
        EngineNote(name="old", body=note_of(replace(one, signature=Signature("0" * 64))), seen_at_s=1000 - SEEN_S),
        EngineNote(name="one", body=note_of(one), seen_at_s=1001 - SEEN_S),
        EngineNote(name="twin", body=note_of(twin), seen_at_s=1000),
        EngineNote(name="two", body=note_of(two), seen_at_s=1000),
        EngineNote(name="sleep of two", body={"awake": True}, seen_at_s=9000),
    ]
    assert {engine.signature for engine in seen_last(notes)} == {one.signature, two.signature}
    assert len(seen_last(notes)) == 2
    assert seen_last([]) == []
