"""Chats under way are filled as the contexts that they are, with what stands before them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fakes.background import T, key_of
from fakes.background import house as make_house
from fakes.virtual_time import virtual
from nightfill.contexts.chats import chat_name
from nightfill.contexts.context import Chat, ContextName, FillState, Form, Message, Messages, MessagesSource
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.state.jobs import JobState

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.background import House
    from nightfill.contexts.context import Context

TEXT = "t" * 900


async def put_chat(house: House, about: Context | None) -> Context:
    content = Messages(
        (Message("user", "hm"), Message("assistant", "yes")), behind=about.current if about is not None else None
    )
    fingerprint = fingerprint_of(content)
    chat = Chat(context=about.name, version=about.current) if about is not None else Chat()
    return await house.state.book.put(
        tenant=T,
        name=chat_name(fingerprint),
        source=MessagesSource(chat),
        content=content,
        fingerprint=fingerprint,
        forms=[Form.CHAT],
    )


async def filled(house: House, context: Context) -> tuple[int, ...]:
    async with asyncio.timeout(60):
        while True:
            fill = await house.state.book.fill(key_of(context))
            if fill is not None and fill.state is FillState.READY:
                return fill.tokens
            await asyncio.sleep(0.1)


@virtual
async def test_a_chat_is_filled_with_its_contexts_text_in_front_and_the_context_pays(tmp_path: Path) -> None:
    async with make_house(tmp_path) as house:
        notes = await house.put(TEXT, name="notes")
        chat = await put_chat(house, notes)
        alone = await put_chat(house, None)
        async with house.working():
            # The fake renders the first message alone: here that is the system message with the context's text.
            assert bytes((await filled(house, chat))[1:]) == TEXT.encode()
            assert bytes((await filled(house, alone))[1:]) == b"hm"
        labels = {job.target: job.label for job in await house.state.jobs.jobs()}
        assert labels[str(key_of(chat))] == "notes"
        assert labels[str(key_of(alone))] == "(chats)"
        assert all(job.state is JobState.DONE for job in await house.state.jobs.jobs())


@virtual
async def test_a_chat_whose_context_is_gone_is_not_filled(tmp_path: Path) -> None:
    async with make_house(tmp_path) as house:
        chat = await put_chat(house, await house.put(TEXT, name="notes"))
        await house.state.book.delete(T, ContextName("notes"))
        async with house.working():
            async with asyncio.timeout(60):
                while not await house.state.jobs.jobs(states=[JobState.CANCELLED]):  # noqa: ASYNC110 - the worker's doing
                    await asyncio.sleep(0.1)
        assert await house.state.book.fill(key_of(chat)) is None
