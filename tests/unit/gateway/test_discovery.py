from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.house import House, post
from fakes.state import FakeAccessLog, FakeBook
from nightfill.config import ByteSize, DiscoverySettings, Duration
from nightfill.contexts import ContextName, Form, Tenant, Text, fingerprint_of
from nightfill.contexts.context import TextSource
from nightfill.contexts.discovery_prompt import found_name
from nightfill.engines.engine import Call
from nightfill.errors import NotFound
from nightfill.gateway.discovery import Discovery
from nightfill.gateway.layers import Plan
from nightfill.kv.key import salt_of
from nightfill.observe.metrics import Metrics
from nightfill.state.access import Access

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ANN, BOB = Tenant("ann"), Tenant("bob")
RULES = "".join(f"Rule {number}: what is numbered {number * 7919} comes first.\n" for number in range(40))
"""A little under 2,000 bytes."""


class Mask:
    """Seals by turning bytes round, so that a text does not show."""

    def seal(self, plain: bytes) -> bytes:
        return plain[::-1]

    def open(self, sealed: bytes) -> bytes:
        return sealed[::-1]


@dataclass
class Watch:
    """A discovery over fakes, with a clock of its own."""

    settings: DiscoverySettings = field(
        default_factory=lambda: DiscoverySettings(enabled=True, min_tokens=256, register=True)
    )
    tenants: int = 1
    book: FakeBook = field(default_factory=FakeBook)
    access: FakeAccessLog = field(default_factory=FakeAccessLog)
    now_s: float = 1_000_000.0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Discovery]:
        discovery = Discovery(
            self.book,
            self.access,
            self.settings,
            max_context_bytes=1 << 20,
            tenants=self.tenants,
            seal=Mask(),
            clock=lambda: self.now_s,
        )
        async with discovery:
            yield discovery

    async def names(self, tenant: Tenant = ANN) -> list[str]:
        return [context.name for context in await self.book.contexts(tenant)]


def plan(
    text: str, question: str, *, tenant: Tenant = ANN, context: str | None = None, form: Form = Form.CHAT, **call: Any
) -> Plan:
    body: dict[str, object] = {"prompt": text + question}
    if form is Form.CHAT:
        body = {"messages": [{"role": "system", "content": text}, {"role": "user", "content": question}]}
    path = "/v1/chat/completions" if form is Form.CHAT else "/v1/completions"
    raw = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()}
    given = {"salt": salt_of(tenant), **call}
    return Plan(
        call=Call(path=path, body=raw, stream=False, **given),
        context=ContextName(context) if context is not None else None,
    )


async def ask(discovery: Discovery, text: str, *questions: str, tenant: Tenant = ANN, **more: Any) -> None:
    for question in questions:
        discovery.note(tenant, plan(text, question, tenant=tenant, **more))
    await discovery.settled()


async def put(watch: Watch, name: str, text: str, *, ttl_s: float | None = 60.0, form: Form = Form.CHAT) -> None:
    content = Text(text)
    await watch.book.put(
        tenant=ANN,
        name=ContextName(name),
        source=TextSource(),
        content=content,
        fingerprint=fingerprint_of(content),
        forms=(form,),
        ttl_s=ttl_s,
    )


def values(discovery: Discovery) -> dict[str, float]:
    return {sample.name.removeprefix("discovery_"): sample.value for sample in discovery.samples()}


@pytest.mark.parametrize("form", list(Form))
async def test_what_enough_requests_begin_with_becomes_a_context(form: Form) -> None:
    watch = Watch()
    async with watch.open() as discovery:
        await ask(discovery, RULES, "one", "two", form=form)
        assert await watch.names() == []
        assert values(discovery)["kept_bytes"] == 0, "no text is kept of what did not recur often enough"
        await ask(discovery, RULES, "three", form=form)
        (context,) = await watch.book.contexts(ANN)
        content = await watch.book.content(ANN, context.current)
        assert context.name == f"found-{context.current[:8]}"
        assert (context.forms, context.ttl_s) == ((form,), float(watch.settings.ttl_s))
        assert isinstance(content, Text)
        assert RULES.startswith(content.text)
        assert len(content.text) > len(RULES) - 1024
        assert values(discovery)["kept_bytes"] == 0
        await ask(discovery, RULES, "four", "five", form=form)
        assert len(await watch.names()) == 1


async def test_the_same_text_in_another_form_is_filled_in_both() -> None:
    watch = Watch()
    await put(watch, found_name(fingerprint_of(Text(RULES))), RULES, form=Form.COMPLETION)
    async with watch.open() as discovery:
        await ask(discovery, RULES, "one", "two", "three")
    (context,) = await watch.book.contexts(ANN)
    assert set(context.forms) == set(Form)


async def test_requests_of_several_tenants_are_never_counted_together() -> None:
    watch = Watch(tenants=2)
    async with watch.open() as discovery:
        for tenant in (ANN, BOB):
            await ask(discovery, RULES, "one", "two", tenant=tenant)
        assert await watch.book.contexts() == []
        await ask(discovery, RULES, "three", tenant=BOB)
        assert [context.tenant for context in await watch.book.contexts()] == [BOB]
        assert (await discovery.shown(Tenant("eve")))["data"] == []
        secrets = {known.mind._secret for known in discovery._known.values()}
        assert len(secrets) == 2, "not even hashes are comparable"


async def test_without_register_the_text_is_kept_sealed_and_for_a_while() -> None:
    watch = Watch(settings=DiscoverySettings(enabled=True, min_tokens=256, keep_text_s=Duration(60)))
    async with watch.open() as discovery:
        await ask(discovery, RULES, "one", "two", "three")
        assert await watch.names() == []
        (kept,) = (await discovery.shown(ANN))["kept"]
        assert kept["why_not_registered"] == "discovery.register is off"
        (sealed,) = [one.sealed for one in discovery._known[ANN].kept.values()]
        assert b"Rule" not in sealed
        assert b"eluR" in sealed
        with pytest.raises(NotFound):
            await discovery.register(BOB, kept["name"])
        watch.now_s += 59
        assert len((await discovery.shown(ANN))["kept"]) == 1
        context = await discovery.register(ANN, kept["name"])
        assert context.name == kept["name"]
        assert (await discovery.shown(ANN))["kept"] == []


async def test_a_text_is_forgotten_after_its_time_also_when_nobody_asks_for_it() -> None:
    watch = Watch(settings=DiscoverySettings(enabled=True, min_tokens=256, keep_text_s=Duration(60)))
    async with watch.open() as discovery:
        await ask(discovery, RULES, "one", "two", "three")
        name = (await discovery.shown(ANN))["kept"][0]["name"]
        watch.now_s += 61
        await ask(discovery, RULES.upper(), "x")
        assert values(discovery)["kept_bytes"] == 0
        with pytest.raises(NotFound, match=name):
            await discovery.register(ANN, name)


@pytest.mark.parametrize(
    "left_out",
    [
        {"context": "manual"},
        {"reuse": False},
        {"salt": b"a client's own choice"},
    ],
)
async def test_requests_that_want_nothing_shared_or_have_a_context_are_left_out(left_out: dict[str, Any]) -> None:
    watch = Watch()
    async with watch.open() as discovery:
        await ask(discovery, RULES, "one", "two", "three", **left_out)
        assert values(discovery)["requests_total"] == 0
    assert await watch.names() == []


@pytest.mark.parametrize("system", ["Be kind.", RULES])
async def test_a_chat_that_goes_on_is_no_context_but_its_system_message_may_be(system: str) -> None:
    watch = Watch()
    messages = [{"role": "system", "content": system}]
    async with watch.open() as discovery:
        for turn in range(8):
            messages.append({"role": "user", "content": f"{turn} {RULES}"})
            body = {"messages": msgspec.Raw(msgspec.json.encode(messages))}
            call = Call(path="/v1/chat/completions", body=body, stream=False, salt=salt_of(ANN))
            discovery.note(ANN, Plan(call=call))
            messages.append({"role": "assistant", "content": f"{turn} {RULES.upper()}"})
        await discovery.settled()
    contents = [await watch.book.content(ANN, context.current) for context in await watch.book.contexts()]
    assert contents == ([Text(RULES)] if system == RULES else [])


async def test_a_prompt_that_is_too_short_is_not_looked_at() -> None:
    watch = Watch()
    async with watch.open() as discovery:
        await ask(discovery, "short", "one", "two", "three")
        assert values(discovery)["requests_total"] == 0


async def test_a_request_about_a_found_context_counts_for_what_goes_on_much_further() -> None:
    watch = Watch()
    async with watch.open() as discovery:
        await ask(discovery, RULES, "one", "two", "three")
        (name,) = await watch.names()
        await ask(discovery, RULES + "A bit more.\n", "one", "two", "three", context=name)
        assert await watch.names() == [name]
        await ask(discovery, RULES + RULES.upper(), "one", "two", "three", context=name)
        assert len(await watch.names()) == 2


async def test_what_somebody_deleted_does_not_come_back_by_itself() -> None:
    watch = Watch()
    async with watch.open() as discovery:
        await ask(discovery, RULES, "one", "two", "three")
        (name,) = await watch.names()
        await watch.book.delete(ANN, ContextName(name))
        await discovery.forget(ANN, ContextName(name))
        discovery._known[ANN].mind.reconsider()
        await ask(discovery, RULES, "one", "two", "three")
        assert await watch.names() == []
        assert values(discovery)["kept_bytes"] == 0


async def test_forgetting_a_tenant_leaves_nothing_of_it() -> None:
    watch = Watch(settings=DiscoverySettings(enabled=True, min_tokens=256))
    async with watch.open() as discovery:
        for tenant in (ANN, BOB):
            await ask(discovery, RULES, "one", "two", "three", tenant=tenant)
        await discovery.forget(ANN)
        assert (await discovery.shown(ANN))["data"] == (await discovery.shown(ANN))["kept"] == []
        assert len((await discovery.shown(BOB))["kept"]) == 1


async def test_found_contexts_are_bounded_and_the_rest_is_kept_to_be_asked_for() -> None:
    watch = Watch(settings=DiscoverySettings(enabled=True, min_tokens=256, register=True, max_contexts=1))
    async with watch.open() as discovery:
        await ask(discovery, RULES, "one", "two", "three")
        await ask(discovery, RULES[::-1], "one", "two", "three")
        assert len(await watch.names()) == 1
        (kept,) = (await discovery.shown(ANN))["kept"]
        assert "max_contexts" in kept["why_not_registered"]


async def test_texts_that_differ_by_a_short_piece_are_not_found_day_after_day() -> None:
    watch = Watch()
    async with watch.open() as discovery:
        for day in range(1, 6):
            await ask(discovery, f"Today is 2024-05-{day:02}.\n{RULES}", "one", "two", "three")
        assert len(await watch.names()) == 2


async def test_a_found_context_that_nobody_uses_is_deleted_and_others_stay() -> None:
    watch = Watch(now_s=0.0)
    await put(watch, "found-00000001", "used")
    await put(watch, "found-00000002", "not used")
    await put(watch, "found-00000003", "for good", ttl_s=None)
    await put(watch, "manual", "named")
    made_at_s = max(context.updated_at_s for context in await watch.book.contexts())
    watch.access.rows.append(_access("found-00000001", at_s=made_at_s + 50))
    watch.now_s = made_at_s + 100
    async with watch.open() as discovery:
        await ask(discovery, RULES.upper(), "x")
    assert await watch.names() == ["found-00000001", "found-00000003", "manual"]


def _access(name: str, *, at_s: float) -> Access:
    return Access(
        at_s=at_s,
        tenant=ANN,
        context=ContextName(name),
        fingerprint=None,
        form=Form.CHAT,
        model="m",
        layer="fill",
        prompt_tokens=1,
        promised_tokens=1,
        reused_tokens=1,
        output_tokens=1,
        ttft_s=0.1,
        total_s=0.1,
        restore_s=0.0,
        status=200,
    )


async def test_while_the_state_is_away_nothing_is_lost_but_time() -> None:
    watch = Watch()
    async with watch.open() as discovery:
        await ask(discovery, RULES, "one", "two")
        watch.book.down = True
        await ask(discovery, RULES, "three")
        watch.book.down = False
        assert await watch.names() == []
        await ask(discovery, RULES, "four")
        assert len(await watch.names()) == 1


async def test_more_than_can_be_looked_at_is_dropped_and_counted() -> None:
    watch = Watch()
    async with watch.open() as discovery:
        for number in range(300):
            discovery.note(ANN, plan(RULES, str(number)))
        await discovery.settled()
        counted = values(discovery)
    assert counted["dropped_total"] > 0
    assert counted["requests_total"] + counted["dropped_total"] == 300


async def test_memory_is_bounded_by_the_setting() -> None:
    watch = Watch(settings=DiscoverySettings(enabled=True, min_tokens=16, max_bytes=ByteSize(1 << 20)), tenants=4)
    async with watch.open() as discovery:
        for number in range(30):
            text = f"{number} " * 5000
            await ask(discovery, text, "one", "two", "three")
        figures = values(discovery)
        assert figures["prefixes"] * 640 <= (1 << 20) / 4 / 2
        assert 0 < figures["kept_bytes"] <= (1 << 20) / 4 / 2


async def test_a_prompt_that_makes_the_looking_fail_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    async with watch.open() as discovery:
        broken = plan(RULES, "x")
        broken.call.body["messages"] = 3  # type: ignore[index]
        with pytest.raises(TypeError):
            discovery.note(ANN, broken)
        await ask(discovery, RULES, "one", "two", "three")
    assert len(await watch.names()) == 1
    assert "unexpected" not in caplog.text


async def test_over_http_a_tenant_sees_registers_and_clears_what_was_found(house: House) -> None:
    house.discovery = Discovery(
        house.book,
        house.access,
        DiscoverySettings(enabled=True, min_tokens=256),
        max_context_bytes=1 << 20,
        tenants=1,
        seal=Mask(),
    )
    async with house.client() as client:
        for question in ("one", "two", "three"):
            messages = [{"role": "system", "content": RULES}, {"role": "user", "content": question}]
            assert await post(client, "/v1/chat/completions", json={"model": "demo", "messages": messages}) == 200
        await house.discovery.settled()
        async with client.get("/v1/nightfill/discovery") as reply:
            text = await reply.text()
            shown = msgspec.json.decode(text)
        assert "Rule" not in text
        assert [row["requests"] for row in shown["data"]] == [3]
        name = shown["kept"][0]["name"]
        assert await post(client, f"/v1/nightfill/discovery/{name}") == 201
        assert await post(client, f"/v1/nightfill/discovery/{name}") == 404
        assert [context.name for context in await house.book.contexts()] == [name]
        async with client.delete("/v1/nightfill/discovery") as reply:
            assert reply.status == 200
        async with client.get("/v1/nightfill/discovery") as reply:
            assert (await reply.json())["data"] == []
        async with client.put("/v1/nightfill/discovery") as reply:
            assert reply.status == 405
        async with client.get("/metrics") as reply:
            assert "nightfill_discovery_requests_total 3.0" in await reply.text()


async def test_without_discovery_there_is_no_such_route(house: House) -> None:
    async with house.client() as client, client.get("/v1/nightfill/discovery") as reply:
        assert reply.status == 404


def test_samples_need_no_requests() -> None:
    metrics = Metrics()
    watch = Watch()
    discovery = Discovery(
        watch.book, watch.access, watch.settings, max_context_bytes=1, tenants=0, seal=Mask(), clock=lambda: 0.0
    )
    metrics.watch(discovery.samples)
    assert b"nightfill_discovery_prefixes 0.0" in metrics.render()
