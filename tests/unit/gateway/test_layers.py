from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from fakes.engine import SIGNATURE
from fakes.house import CHAT, post
from nightfill.contexts import (
    DEFAULT_TENANT,
    Content,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Form,
    Message,
    Messages,
    Tenant,
    Text,
    fingerprint_of,
)
from nightfill.contexts.context import DRIFTED, TextSource
from nightfill.engines.engine import Reuse, Weighed
from nightfill.kv.key import salt_of
from nightfill.state.jobs import JobKind

if TYPE_CHECKING:
    from fakes.house import House
    from nightfill.contexts import Context

BOOK_TEXT = "The harbour of the town lies to the north of the old customs house. " * 4
NAMED = {**CHAT, "nightfill": {"context": "repo"}}


async def add(house: House, name: str = "repo", content: Content | None = None, *, user: str = "") -> Context:
    content = content or Text(BOOK_TEXT)
    return await house.book.put(
        tenant=DEFAULT_TENANT,
        name=ContextName(name),
        source=TextSource(),
        content=content,
        fingerprint=fingerprint_of(content),
        forms=[Form.CHAT] if isinstance(content, Messages) else list(Form),
        user=user,
    )


async def fill(house: House, context: Context, *, form: Form = Form.CHAT, stored: int = 100, **options: Any) -> Fill:
    row = Fill(
        key=FillKey(tenant=context.tenant, fingerprint=context.current, form=form, signature=SIGNATURE),
        state=FillState.READY,
        tokens=tuple(range(100)),
        stored_tokens=stored,
        filled_at_s=time.time(),
        fill_seconds=1,
    )
    row = replace(row, **options)
    assert await house.book.put_fill(row)
    return row


async def test_a_named_context_goes_in_front_and_its_fill_is_promised(house: House) -> None:
    context = await add(house)
    await fill(house, context)
    house.engine.reused = 99
    async with house.client() as client, client.post("/v1/chat/completions", json=NAMED) as reply:
        assert reply.headers["x-nightfill-layer"] == "fill"
        assert reply.headers["x-nightfill-context"] == f"repo@{context.current[:12]}"
        assert reply.headers["x-nightfill-promised-tokens"] == "100"
        assert reply.headers["x-nightfill-reused-tokens"] == "99"
    call = house.engine.calls[0]
    messages = json.loads(bytes(call.body["messages"]))
    assert messages == [{"role": "system", "content": BOOK_TEXT}, *NAMED["messages"]]
    assert call.prefix is not None
    assert (tuple(call.prefix.tokens), call.prefix.salt) == (tuple(range(100)), salt_of(DEFAULT_TENANT))
    assert "nightfill" not in call.body
    assert house.book.marks == []
    row = house.access.rows[0]
    assert (row.layer, row.context, row.promised_tokens, row.reused_tokens) == ("fill", "repo", 100, 99)


@pytest.mark.parametrize(
    ("reused", "restore_s", "saved_tokens", "saved_s"),
    [
        (99, 0.0, 99, 0.99),
        (130, 0.0, 100, 1.0),  # the rest is the engine's own cache's merit
        (99, 0.6, 99, 0.39),
        (99, 2.0, 99, 0.0),  # never a loss
        (None, 0.0, 0, 0.0),  # nobody said anything
        (3, 0.0, 0, 0.0),  # the promise was broken
    ],
)
async def test_what_a_fill_saved_is_what_the_engine_reused_of_it_less_the_loading(
    house: House, reused: int | None, restore_s: float, saved_tokens: int, saved_s: float
) -> None:
    await fill(house, await add(house, user="ann"), fill_seconds=1.0)
    house.engine.reused, house.engine.restore_s = reused, restore_s
    house.machines = {"fake": "h100"}
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json=NAMED)
    row = house.access.rows[0]
    assert (row.user, row.machine, row.saved_tokens) == ("ann", "h100", saved_tokens)
    assert row.saved_s == pytest.approx(saved_s)
    assert house.value("nightfill_saved_tokens_total") == saved_tokens
    assert house.value("nightfill_saved_seconds_total") == pytest.approx(saved_s)


async def test_a_request_that_was_recognised_is_booked_on_the_contexts_user(house: House) -> None:
    await fill(house, await add(house, user="ann"))
    async with house.client() as client:
        ask = {"messages": [{"role": "system", "content": BOOK_TEXT}, *CHAT["messages"]]}
        await post(client, "/v1/chat/completions", json=ask)
        await post(client, "/v1/chat/completions", json=CHAT)
    assert [(row.context, row.user) for row in house.access.rows] == [("repo", "ann"), (None, "")]


async def test_a_header_names_a_context_as_well_as_the_body(house: House) -> None:
    await add(house)
    async with house.client() as client:
        async with client.post(
            "/v1/completions", json={"prompt": "Where?"}, headers={"x-nightfill-context": "repo"}
        ) as reply:
            assert reply.status == 200
        async with client.post("/v1/chat/completions", json=NAMED, headers={"x-nightfill-context": "x"}) as reply:
            assert (reply.status, (await reply.json())["error"]["param"]) == (400, "nightfill.context")
    assert json.loads(bytes(house.engine.calls[0].body["prompt"])) == BOOK_TEXT + "Where?"


async def test_what_is_stored_of_a_fill_under_way_is_used(house: House) -> None:
    await fill(house, await add(house), state=FillState.FILLING, stored=40)
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json=NAMED)
    prefix = house.engine.calls[0].prefix
    assert prefix is not None
    assert len(prefix.tokens) == 40


@pytest.mark.parametrize(
    "options", [{"state": FillState.STALE}, {"state": FillState.EVICTED}, {"stored": 0, "state": FillState.FILLING}]
)
async def test_a_fill_that_is_no_good_is_not_used(house: House, options: dict[str, Any]) -> None:
    await fill(house, await add(house), **options)
    async with house.client() as client, client.post("/v1/chat/completions", json=NAMED) as reply:
        assert (reply.status, reply.headers["x-nightfill-layer"]) == (200, "cold")
    assert house.engine.calls[0].prefix is None


async def test_skipping_the_fill_forces_the_engine_to_compute(house: House) -> None:
    await fill(house, await add(house))
    ask = {**CHAT, "nightfill": {"context": "repo", "skip": ["fill"]}}
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json=ask)
        await post(client, "/v1/chat/completions", json={**NAMED, "cache_prompt": False})
    for call in house.engine.calls:
        assert (call.prefix, call.reuse) == (None, False)
        assert "cache_prompt" not in call.body


async def test_a_request_that_carries_the_text_itself_is_recognised(house: House) -> None:
    context = await add(house)
    await fill(house, context)
    ask = {"messages": [{"role": "system", "content": BOOK_TEXT}, *CHAT["messages"]]}
    async with house.client() as client, client.post("/v1/chat/completions", json=ask) as reply:
        assert reply.headers["x-nightfill-context"] == f"repo@{context.current[:12]}"
    assert json.loads(bytes(house.engine.calls[0].body["messages"])) == ask["messages"]
    assert house.engine.calls[0].prefix is not None


async def test_messages_go_in_front_of_messages(house: House) -> None:
    await add(house, content=Messages((Message("user", "one"), Message("assistant", "two"))))
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json=NAMED)
    messages = json.loads(bytes(house.engine.calls[0].body["messages"]))
    assert [message["content"] for message in messages] == ["one", "two", "hi"]


async def test_a_new_version_is_used_by_the_very_next_request(house: House) -> None:
    await add(house)
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json=NAMED)
        await add(house, content=Text("Another text."))
        await post(client, "/v1/chat/completions", json=NAMED)
    assert b"Another text." in bytes(house.engine.calls[1].body["messages"])
    assert BOOK_TEXT.encode() not in bytes(house.engine.calls[1].body["messages"])


async def test_an_unknown_context_is_a_404_that_keeps_the_others_names(house: House) -> None:
    await add(house, name="repo")
    async with (
        house.client() as client,
        client.post("/v1/chat/completions", json={**CHAT, "nightfill": {"context": "rep"}}) as reply,
    ):
        error = (await reply.json())["error"]
    assert (reply.status, error["code"], error["param"]) == (404, "context_not_found", "nightfill.context")
    assert "repo" not in error["message"]
    assert "1 other" in error["message"]


async def test_another_tenants_context_does_not_exist(house: House) -> None:
    content = Text(BOOK_TEXT)
    await house.book.put(
        tenant=Tenant("other"),
        name=ContextName("repo"),
        source=TextSource(),
        content=content,
        fingerprint=fingerprint_of(content),
        forms=list(Form),
    )
    carried = {"messages": [{"role": "system", "content": BOOK_TEXT}, *CHAT["messages"]]}
    async with house.client() as client:
        async with client.post("/v1/chat/completions", json=NAMED) as reply:
            assert reply.status == 404
        async with client.post("/v1/chat/completions", json=carried) as reply:
            assert "x-nightfill-context" not in reply.headers


async def test_without_the_state_a_plain_request_is_served_and_a_named_context_refused(house: House) -> None:
    house.book.down = True
    async with house.client() as client:
        async with client.post("/v1/chat/completions", json=CHAT) as reply:
            assert (reply.status, reply.headers["x-nightfill-layer"]) == (200, "cold")
        async with client.post("/v1/chat/completions", json=NAMED) as reply:
            assert reply.status == 503
            assert "retry-after" in reply.headers
    assert len(house.engine.calls) == 1
    assert house.value("nightfill_failed_open_total") == 1


async def test_a_fill_that_the_engine_does_not_reuse_is_marked_stale_and_counted(house: House) -> None:
    row = await fill(house, await add(house))
    house.engine.reused = 3
    async with house.client() as client:
        async with client.post("/v1/chat/completions", json=NAMED) as reply:
            assert reply.headers["x-nightfill-layer"] == "cold"
        async with client.post("/v1/chat/completions", json=NAMED) as reply:
            assert reply.headers["x-nightfill-promised-tokens"] == "0"
    assert house.book.marks == [(row.key, FillState.STALE, "3 of 100 loaded tokens were reused")]
    assert house.value("nightfill_broken_promises_total") == 1


async def test_a_ready_fill_that_cannot_be_loaded_is_marked_stale(house: House) -> None:
    await fill(house, await add(house))
    house.engine.loaded, house.engine.reused = 0, 0
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json=NAMED)
    assert [mark[2] for mark in house.book.marks] == ["0 of 100 tokens could be loaded"]


async def test_an_engine_that_cannot_restore_breaks_no_promise_by_loading_nothing(house: House) -> None:
    await fill(house, await add(house))
    house.engine.reuse, house.engine.loaded, house.engine.reused = Reuse.NONE, 0, 0
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json=NAMED)
    assert house.book.marks == []


async def test_an_error_of_the_engine_proves_nothing_about_the_fill(house: House) -> None:
    await fill(house, await add(house))
    house.engine.status, house.engine.loaded, house.engine.reused = 400, 0, 0
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json=NAMED)
    assert house.book.marks == []


async def test_a_context_cannot_go_in_front_where_there_is_no_place_for_it(house: House) -> None:
    await add(house)
    async with house.client() as client:
        for path, ask in (("/v1/messages", CHAT), ("/v1/completions", {"prompt": [1, 2]})):
            async with client.post(path, json=ask, headers={"x-nightfill-context": "repo"}) as reply:
                assert reply.status == 400
    assert house.engine.calls == []


async def test_a_prefix_that_is_computed_again_by_choice_is_no_broken_promise(house: House) -> None:
    row = await fill(house, await add(house))
    house.engine.loaded, house.engine.reused = 0, 0
    house.engine.weighed = Weighed(load=False, restore_s=0.5, recompute_s=0.0123)
    async with house.client() as client:
        async with client.post("/v1/chat/completions", json=NAMED) as reply:
            assert reply.headers["x-nightfill-layer"] == "cold"
            assert reply.headers["x-nightfill-restore"] == "recomputed; restore-ms=500.0; recompute-ms=12.3"
        house.engine.loaded, house.engine.reused = None, 99
        house.engine.weighed = Weighed(load=True, restore_s=None, recompute_s=None)
        async with client.post("/v1/chat/completions", json=NAMED) as reply:
            assert (reply.headers["x-nightfill-layer"], reply.headers["x-nightfill-restore"]) == ("fill", "restored")
        house.engine.weighed = None
        async with client.post("/v1/chat/completions", json=NAMED) as reply:
            assert "x-nightfill-restore" not in reply.headers
    after = await house.book.fill(row.key)
    assert after is not None
    assert after.state is FillState.READY
    assert house.value("nightfill_broken_promises_total") == 0
    assert house.value("nightfill_restore_decisions_total", decision="recomputed") == 1
    assert house.value("nightfill_restore_decisions_total", decision="restored") == 1


async def test_a_request_whose_fill_is_in_quarantine_is_computed_anew_whatever_engines_hold(house: House) -> None:
    row = await fill(house, await add(house))
    async with house.client() as client:
        assert await post(client, "/v1/chat/completions", json=NAMED) == 200
        await house.book.mark_fill(row.key, state=FillState.STALE, reason=f"{DRIFTED}: 0.7 nats")
        assert await post(client, "/v1/chat/completions", json=NAMED) == 200
        await house.book.mark_fill(row.key, state=FillState.STALE, reason="for another reason")
        assert await post(client, "/v1/chat/completions", json=NAMED) == 200
    assert [(call.prefix is not None, call.reuse) for call in house.engine.calls] == [
        (True, True),
        (False, False),
        (False, True),
    ]


async def test_requests_have_their_fills_looked_over_and_metrics_say_what_came_of_it(house: House) -> None:
    row = await fill(house, await add(house))
    house.audit_share, house.engine.reused = 1.0, 99
    async with house.client() as client:
        assert await post(client, "/v1/chat/completions", json=CHAT) == 200
        assert house.queue.rows == {}
        assert await post(client, "/v1/chat/completions", json=NAMED) == 200
        (job,) = house.queue.rows.values()
        assert (job.kind, job.target) == (JobKind.VERIFY, str(row.key))
        await house.queue.count(JobKind.VERIFY, "drift")
        assert await (await client.get("/metrics")).read()
    assert house.value("nightfill_audits_total", outcome="drift") == 1
