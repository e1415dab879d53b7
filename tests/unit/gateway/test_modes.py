"""Which text of a context goes in front: `mode: full | distilled | auto`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from fakes.engine import SIGNATURE
from fakes.house import CHAT
from nightfill.contexts import DEFAULT_TENANT, ContextName, FillKey, FillState, Form, Text, fingerprint_of
from nightfill.contexts.context import Fill, TextSource
from nightfill.kv.key import salt_of

if TYPE_CHECKING:
    from fakes.house import House
    from nightfill.contexts import Context, Fingerprint

LONG = Text("The harbour of the town lies to the north of the old customs house. " * 4)
SHORT = Text("The harbour lies to the north.")


async def add(house: House, content: Text = LONG) -> Context:
    return await house.book.put(
        tenant=DEFAULT_TENANT,
        name=ContextName("repo"),
        source=TextSource(),
        content=content,
        fingerprint=fingerprint_of(content),
        forms=list(Form),
    )


async def distilled(house: House, context: Context) -> Context:
    assert await house.book.put_distilled(context, content=SHORT, fingerprint=fingerprint_of(SHORT))
    found = await house.book.get(context.tenant, context.name)
    assert found is not None
    return found


async def fill(house: House, version: Fingerprint, state: FillState) -> None:
    row = Fill(
        key=FillKey(tenant=DEFAULT_TENANT, fingerprint=version, form=Form.CHAT, signature=SIGNATURE),
        state=state,
        tokens=tuple(range(100)),
        stored_tokens=100,
        filled_at_s=1.0,
        fill_seconds=1.0,
    )
    assert await house.book.put_fill(row)


async def asked(house: House, mode: str | None, **more: Any) -> tuple[str, str, str]:
    """The text in front, and what the reply says of it."""
    extension = {"context": "repo", **({"mode": mode} if mode else {})}
    body = {**CHAT, "nightfill": extension, **more}
    async with house.client() as client, client.post("/v1/chat/completions", json=body) as reply:
        assert reply.status == 200
        headers = reply.headers
    messages = json.loads(bytes(house.engine.calls[-1].body["messages"]))
    return messages[0]["content"], headers["x-nightfill-mode"], headers["x-nightfill-context"]


@pytest.mark.parametrize("mode", [None, "full"])
async def test_the_full_text_is_the_default(house: House, mode: str | None) -> None:
    context = await distilled(house, await add(house))
    assert await asked(house, mode) == (LONG.text, "full", f"repo@{context.current[:12]}")


async def test_who_asks_for_the_distilled_text_gets_it_filled_or_not(house: House) -> None:
    context = await distilled(house, await add(house))
    assert await asked(house, "distilled") == (SHORT.text, "distilled", f"repo@{fingerprint_of(SHORT)[:12]}")
    assert house.access.rows[0].fingerprint == context.distilled


@pytest.mark.parametrize("mode", ["distilled", "auto"])
async def test_without_a_distilled_text_the_full_one_serves_and_the_reply_says_so(house: House, mode: str) -> None:
    context = await add(house)
    assert await asked(house, mode) == (LONG.text, "full", f"repo@{context.current[:12]}")


@pytest.mark.parametrize(
    ("full", "short", "served"),
    [
        (FillState.READY, FillState.READY, "full"),
        (FillState.READY, None, "full"),
        (FillState.FILLING, FillState.READY, "distilled"),
        (None, FillState.READY, "distilled"),
        (FillState.STALE, FillState.READY, "distilled"),
        (FillState.EVICTED, FillState.FILLING, "full"),
        (None, None, "full"),
    ],
)
async def test_auto_takes_the_first_that_is_filled(
    house: House, full: FillState | None, short: FillState | None, served: str
) -> None:
    context = await distilled(house, await add(house))
    assert context.distilled is not None
    for state, version in ((full, context.current), (short, context.distilled)):
        if state is not None:
            await fill(house, version, state)
    assert (await asked(house, "auto"))[1] == served


async def test_a_distilled_fill_is_promised_as_any_other(house: House) -> None:
    context = await distilled(house, await add(house))
    assert context.distilled is not None
    await fill(house, context.distilled, FillState.READY)
    house.engine.reused = 99
    await asked(house, "auto")
    prefix = house.engine.calls[0].prefix
    assert prefix is not None
    assert (len(prefix.tokens), prefix.salt) == (100, salt_of(DEFAULT_TENANT))
    assert house.access.rows[0].layer == "fill"


async def test_auto_is_full_for_a_request_that_no_fill_may_serve(house: House) -> None:
    context = await distilled(house, await add(house))
    assert context.distilled is not None
    await fill(house, context.distilled, FillState.READY)
    assert (await asked(house, "auto", cache_salt="mine"))[1] == "full"


async def test_of_a_changed_context_the_old_distilled_text_is_never_served_again(house: House) -> None:
    await distilled(house, await add(house))
    async with house.client() as client:
        for content, served in ((LONG, "distilled"), (Text("The harbour has moved."), "full")):
            await add(house, content)
            named = {**CHAT, "nightfill": {"context": "repo", "mode": "distilled"}}
            async with client.post("/v1/chat/completions", json=named) as reply:
                assert reply.headers["x-nightfill-mode"] == served
    texts = [json.loads(bytes(call.body["messages"]))[0]["content"] for call in house.engine.calls]
    assert texts == [SHORT.text, "The harbour has moved."]


async def test_the_mode_may_come_as_a_header(house: House) -> None:
    await distilled(house, await add(house))
    headers = {"x-nightfill-context": "repo", "x-nightfill-mode": "distilled"}
    async with house.client() as client:
        async with client.post("/v1/chat/completions", json=CHAT, headers=headers) as reply:
            assert reply.headers["x-nightfill-mode"] == "distilled"
        async with client.post(
            "/v1/chat/completions", json={**CHAT, "nightfill": {"mode": "full"}}, headers=headers
        ) as reply:
            assert reply.status == 400
        headers["x-nightfill-mode"] = "short"
        async with client.post("/v1/chat/completions", json=CHAT, headers=headers) as reply:
            assert (reply.status, (await reply.json())["error"]["param"]) == (400, "nightfill.mode")
