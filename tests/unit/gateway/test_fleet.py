from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest

from fakes.engine import SIGNATURE, FakeEngine
from fakes.house import CHAT, House
from nightfill.contexts import (
    DEFAULT_TENANT,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Form,
    Signature,
    Text,
    fingerprint_of,
)
from nightfill.contexts.context import TextSource
from nightfill.errors import EngineUnavailable, EngineUnfit
from nightfill.gateway.fleet import Fleet

if TYPE_CHECKING:
    import aiohttp

    from nightfill.engines.engine import Description

GONE = EngineUnavailable("cannot be reached", engine="fake")


async def ask(client: aiohttp.ClientSession, **more: Any) -> tuple[int, str | None]:
    async with client.post("/v1/chat/completions", json={**CHAT, **more}) as reply:
        await reply.read()
        return reply.status, reply.headers.get("x-nightfill-engine")


async def filled(house: House, name: ContextName, tokens: dict[Signature, int]) -> None:
    """Put a context whose fills have so many tokens, by signature."""
    text = Text("t" * 99)
    fingerprint = fingerprint_of(text)
    await house.book.put(
        tenant=DEFAULT_TENANT,
        name=name,
        source=TextSource(),
        content=text,
        fingerprint=fingerprint,
        forms=[Form.CHAT],
    )
    for signature, count in tokens.items():
        row = Fill(
            key=FillKey(tenant=DEFAULT_TENANT, fingerprint=fingerprint, form=Form.CHAT, signature=signature),
            state=FillState.READY,
            tokens=tuple(range(count)),
            stored_tokens=count,
            filled_at_s=0,
            fill_seconds=1,
        )
        assert await house.book.put_fill(row)


async def test_the_next_engine_answers_when_one_cannot_be_reached_and_comes_first_for_a_while() -> None:
    house = House(engine=FakeEngine(name="one", refusal=GONE), others=[FakeEngine(name="two")])
    async with house.client() as client:
        assert await ask(client) == (200, "two")
        assert await ask(client, stream=True) == (200, "two")
    assert len(house.engine.calls) == 1
    assert [row.status for row in house.access.rows] == [200, 200]


async def test_an_engine_that_was_asked_already_is_not_given_up_for_another() -> None:
    dying = FakeEngine(name="one", dies_before=1, death=GONE)
    house = House(engine=dying, others=[FakeEngine(name="two")])
    streamed = {**CHAT, "stream": True}
    async with house.client() as client, client.post("/v1/chat/completions", json=streamed) as reply:
        body = await reply.read()
    assert b"cannot be reached" in body
    assert not house.others[0].calls


async def test_one_that_dies_before_its_first_byte_is_passed_over() -> None:
    dying = FakeEngine(name="one", dies_before=0, death=GONE)
    house = House(engine=dying, others=[FakeEngine(name="two")])
    async with house.client() as client:
        assert await ask(client, stream=True) == (200, "two")


async def test_the_client_is_told_when_no_engine_can_be_reached() -> None:
    house = House(engine=FakeEngine(name="one", refusal=GONE), others=[FakeEngine(name="two", refusal=GONE)])
    async with house.client() as client:
        assert (await ask(client))[0] == 503
    assert [len(engine.calls) for engine in (house.engine, *house.others)] == [1, 1]


async def test_an_engines_refusal_is_an_answer() -> None:
    house = House(engine=FakeEngine(name="one", status=400), others=[FakeEngine(name="two")])
    async with house.client() as client:
        assert await ask(client) == (400, "one")


async def test_the_less_busy_engine_is_asked() -> None:
    busy = FakeEngine(name="one", gates={0: asyncio.Event()})
    house = House(engine=busy, others=[FakeEngine(name="two")])
    async with house.client() as client:
        first = asyncio.create_task(ask(client))
        await busy.opened.wait()
        assert await ask(client) == (200, "two")
        busy.gates[0].set()
        assert await first == (200, "one")


async def test_a_session_stays_with_its_engine_and_its_names_go_on_unchanged() -> None:
    house = House(engine=FakeEngine(name="one"), others=[FakeEngine(name="two"), FakeEngine(name="three")])
    named = {"x-session-id": "s 1", "session-id": "t", "x-dynamo-session-final": "true"}
    async with house.client() as client:
        places = set()
        for _ in range(6):
            async with client.post("/v1/chat/completions", json={**CHAT, "user": "u"}, headers=named) as reply:
                await reply.read()
                places.add(reply.headers["x-nightfill-engine"])
                assert reply.headers["x-nightfill-route"] == "session"
    assert len(places) == 1
    (asked,) = (engine for engine in (house.engine, *house.others) if engine.calls)
    assert all(named.items() <= call.headers.items() for call in asked.calls)
    assert bytes(asked.calls[0].body["user"]) == b'"u"'
    assert house.value("nightfill_routes_total", reason="session") == 6


async def test_an_engine_that_failed_comes_last_until_a_probe_is_answered() -> None:
    """That it has rested is not enough: every so manieth request would try a dead server first."""
    one, two = FakeEngine(name="one"), FakeEngine(name="two")
    house = House(engine=one, others=[two])
    async with house.client() as client, asyncio.timeout(20):
        assert await ask(client) == (200, "one")
        one.refusal, one.is_healthy = GONE, False
        assert await ask(client) == (200, "two")
        one.probed.clear()
        await one.probed.wait()
        one.calls.clear()
        assert await ask(client) == (200, "two")
        assert not one.calls
        one.refusal, one.is_healthy = None, True
        one.probed.clear()
        await one.probed.wait()
        assert await ask(client) == (200, "one")


async def test_who_served_a_fill_last_is_asked_again_if_engines_do_not_tell_until_it_fails() -> None:
    one, two = FakeEngine(name="one"), FakeEngine(name="two")
    house = House(engine=one, others=[two])
    await filled(house, ContextName("notes"), {SIGNATURE: 32})
    seen = []
    async with house.client() as client:

        async def asked() -> None:
            async with client.post("/v1/chat/completions", json={**CHAT, "nightfill": {"context": "notes"}}) as reply:
                await reply.read()
                seen.append((reply.headers["x-nightfill-engine"], reply.headers["x-nightfill-route"]))

        await asked()
        await asked()
        one.refusal = GONE
        await asked()
        one.refusal = None
        await asked()
        one.probed.clear()
        async with asyncio.timeout(10):
            await one.probed.wait()
        one.distance, two.distance = 1, 2
        await asked()
        two.distance = 0
        await asked()
    assert seen == [
        ("one", "tier"),
        ("one", "holder"),
        ("two", "tier"),
        ("two", "holder"),
        ("one", "tier"),
        ("two", "holder"),
    ]


async def test_each_model_is_listed_once() -> None:
    others = [FakeEngine(name="two"), FakeEngine(name="three", model="other")]
    house = House(engine=FakeEngine(name="one"), others=others)
    async with house.client() as client:
        async with client.get("/v1/models") as reply:
            assert [model["id"] for model in (await reply.json())["data"]] == ["demo", "other"]
        assert await ask(client, model="other") == (200, "three")


async def test_an_engine_that_is_not_there_at_the_start_does_not_keep_the_others_waiting() -> None:
    house = House(engine=FakeEngine(name="one", ailment=GONE), others=[FakeEngine(name="two")])
    async with house.client() as client:
        assert await ask(client) == (200, "two")


async def test_what_ails_the_only_engine_is_told() -> None:
    house = House(engine=FakeEngine(name="one", ailment=EngineUnfit("lacks a flag", engine="one")))
    async with house.client() as client, client.post("/v1/chat/completions", json=CHAT) as reply:
        assert reply.status == 502
        assert "lacks a flag" in (await reply.json())["error"]["message"]


async def test_a_fill_is_looked_up_under_the_signature_of_the_engine_that_is_asked() -> None:
    other = FakeEngine(name="two", signature=Signature("6" * 64), reused=64)
    house = House(engine=FakeEngine(name="one", refusal=GONE), others=[other])
    await filled(house, ContextName("notes"), {SIGNATURE: 32, other.signature: 64})
    async with house.client() as client:
        assert await ask(client, nightfill={"context": "notes"}) == (200, "two")
        assert await ask(client, nightfill={"context": "notes"}, cache_salt="mine") == (200, "two")
    asked = [len(call.prefix.tokens) if call.prefix is not None else 0 for call in other.calls]
    assert asked == [64, 0], "a client that keeps apart has no share in what was filled"
    assert not any(row.broken for row in house.access.rows)


class Changing(FakeEngine):
    """Is not there at first, and another one later; `looks` counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = itertools.count()
        self.seen = asyncio.Event()

    async def describe(self) -> Description:
        look = next(self.looks)
        if look == 0:
            raise GONE
        if look > 2:
            self.signature = Signature("6" * 64)
            self.seen.set()
        return await super().describe()


async def test_an_engine_that_comes_later_or_as_another_one_is_noticed() -> None:
    engine = Changing()
    async with Fleet([engine], check_s=0.001) as fleet:
        with pytest.raises(EngineUnavailable):
            await fleet.members()
        async with asyncio.timeout(5):
            await engine.seen.wait()
        (member,) = await fleet.members()
        await asyncio.sleep(0)
        assert member.description.signature == "6" * 64


async def test_a_fleet_of_nobody_says_so() -> None:
    async with Fleet([]) as fleet:
        with pytest.raises(EngineUnavailable, match="no engine is configured"):
            await fleet.members()


async def test_tenants_and_their_clients_get_salts_of_their_own(house: House) -> None:
    chosen = "0" * 64
    async with house.client() as client:
        await ask(client)
        await ask(client, cache_salt=chosen)
        await ask(client, cache_salt=chosen, kv_transfer_params={"nightfill": {}})
    plain, salted, again = house.engine.calls
    assert len(plain.salt) == len(salted.salt) == 32
    assert plain.salt != salted.salt == again.salt != bytes.fromhex(chosen)
    assert not {"cache_salt", "kv_transfer_params"} & (salted.body.keys() | again.body.keys())


async def test_a_salt_that_is_no_text_is_refused(house: House) -> None:
    async with house.client() as client:
        assert (await ask(client, cache_salt=""))[0] == 400
        assert (await ask(client, cache_salt=7))[0] == 400
