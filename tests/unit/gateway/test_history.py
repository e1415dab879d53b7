from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from fakes.engine import DONE, SIGNATURE, FakeEngine, event
from fakes.house import House, post
from fakes.state import FakeBook
from nightfill.answers.reply import Recording
from nightfill.config import Duration, HistorySettings
from nightfill.contexts import (
    DEFAULT_TENANT,
    Context,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Form,
    Message,
    Messages,
    Text,
    fingerprint_of,
)
from nightfill.contexts.context import ContextOptions, TextSource
from nightfill.errors import StateError
from nightfill.gateway.history import History, Turn
from nightfill.gateway.talk import talk_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

NOTES: Final = ContextName("notes")
TEXT: Final = Text("t" * 99)
ALL: Final = HistorySettings(enabled=True, without_context=True, min_new_tokens=1)
SAID: Final = [{"role": "user", "content": "a long question"}]


class NoticedBook(FakeBook):
    """Tells when a chat was put or deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = asyncio.Event()

    async def put(self, **given: Any) -> Context:
        context = await super().put(**given)
        if context.chat is not None:
            self.moved.set()
        return context

    async def delete(self, *given: Any) -> bool:
        self.moved.set()
        return await super().delete(*given)

    async def after(self) -> list[Context]:
        """The chats, after the next one moved."""
        async with asyncio.timeout(5):
            await self.moved.wait()
        self.moved.clear()
        return [context for context in await self.contexts() if context.chat is not None]


def answering() -> FakeEngine:
    """Says `ab`, in both ways to a whole end."""
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    whole = b'{"choices":[{"message":{"role":"assistant","content":"ab"},"finish_reason":"stop"}]}'
    return FakeEngine(script=[event("a"), event("b"), end, DONE], whole=whole)


@dataclass
class Home(House):
    """A gateway that fills histories."""

    engine: FakeEngine = field(default_factory=answering)
    book: NoticedBook = field(default_factory=NoticedBook)
    histories: HistorySettings = ALL

    async def notes(self, text: Text = TEXT, options: ContextOptions | None = None) -> Context:
        return await self.book.put(
            tenant=DEFAULT_TENANT,
            name=NOTES,
            source=TextSource(),
            content=text,
            fingerprint=fingerprint_of(text),
            forms=[Form.CHAT],
            options=options,
            user="ann",
        )

    async def fill(self, context: Context, tokens: int) -> None:
        key = FillKey(tenant=DEFAULT_TENANT, fingerprint=context.current, form=Form.CHAT, signature=SIGNATURE)
        row = Fill(
            key=key,
            state=FillState.READY,
            tokens=tuple(range(tokens)),
            stored_tokens=tokens,
            filled_at_s=tokens,
            fill_seconds=1,
        )
        assert await self.book.put_fill(row)


async def ask(client: aiohttp.ClientSession, messages: object = SAID, **more: Any) -> int:
    body = {"messages": messages, "nightfill": {"context": NOTES}, **more}
    return await post(client, "/v1/chat/completions", json=body)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_turn_becomes_a_hidden_context_whose_fill_serves_the_next_one(stream: bool) -> None:
    home = Home()
    notes = await home.notes()
    await home.fill(notes, 50)
    async with home.client() as client:
        assert await ask(client, stream=stream) == 200
        (chat,) = await home.book.after()
        content = await home.book.content(DEFAULT_TENANT, chat.current)
        assert content == Messages(
            (Message("user", "a long question"), Message("assistant", "ab")), behind=notes.current
        ), "the context's own text is not stored again"
        assert (chat.user, chat.forms, chat.ttl_s) == ("ann", (Form.CHAT,), ALL.ttl_s)
        await home.fill(chat, 80)
        more = [*SAID, {"role": "assistant", "content": "ab"}, {"role": "user", "content": "and now?"}]
        assert await ask(client, more) == 200
        async with client.get("/v1/nightfill/contexts") as reply:
            assert [one["name"] for one in (await reply.json())["data"]] == [NOTES]
        async with client.get("/v1/nightfill/contexts?chats=1") as reply:
            assert {one["name"] for one in (await reply.json())["data"]} >= {NOTES, chat.name}
    first, second = home.engine.calls
    assert [len(call.prefix.tokens) if call.prefix is not None else 0 for call in (first, second)] == [50, 80]
    assert second.prefix is not None
    assert second.prefix.earlier == (50,)
    assert first.said[-1] in second.said
    assert [row.context for row in home.access.rows] == [NOTES, NOTES], "what it saved is the context's"


async def test_a_reply_that_came_back_changed_is_another_chat() -> None:
    home = Home()
    await home.fill(await home.notes(), 50)
    async with home.client() as client:
        await ask(client)
        (chat,) = await home.book.after()
        await home.fill(chat, 80)
        await ask(client, [*SAID, {"role": "assistant", "content": "AB"}, {"role": "user", "content": "and now?"}])
    prefix = home.engine.calls[1].prefix
    assert prefix is not None
    assert len(prefix.tokens) == 50


@pytest.mark.parametrize(
    ("settings", "options"),
    [(HistorySettings(min_new_tokens=1), None), (ALL, ContextOptions(history=False))],
)
async def test_where_it_is_off_nothing_is_kept(settings: HistorySettings, options: ContextOptions | None) -> None:
    home = Home(histories=settings)
    await home.notes(options=options)
    async with home.client() as client:
        assert await ask(client) == 200
    assert home.value("nightfill_history_turns_total", outcome="kept") == 0
    assert [context.name for context in await home.book.contexts()] == [NOTES]


async def test_a_chat_about_no_context_is_kept_where_that_is_wanted() -> None:
    home = Home()
    async with home.client() as client:
        assert await post(client, "/v1/chat/completions", json={"messages": SAID}) == 200
        (chat,) = await home.book.after()
    assert chat.chat is not None
    assert chat.chat.context == ""


async def test_a_deleted_context_takes_its_chats_and_their_kv_along() -> None:
    home = Home()
    await home.notes()
    async with home.client() as client:
        await ask(client)
        (chat,) = await home.book.after()
        await home.fill(chat, 80)
        async with client.delete(f"/v1/nightfill/contexts/{NOTES}") as reply:
            assert reply.status == 200
        assert await home.book.contexts() == []
    assert [fill.key.fingerprint for fill in home.forgotten] == [chat.current]


async def test_a_new_version_takes_the_chats_about_the_old_one_away() -> None:
    home = Home()
    await home.notes()
    async with home.client() as client:
        await ask(client)
        (chat,) = await home.book.after()
        await home.fill(chat, 80)
        await home.notes(Text("u" * 99))
        assert await home.book.after() == []
        assert await home.book.content(DEFAULT_TENANT, chat.current) is None


async def test_a_request_does_not_notice_that_the_state_is_away() -> None:
    home = Home()
    gate = home.engine.gates[0] = asyncio.Event()
    async with home.client() as client:
        asked = asyncio.create_task(post(client, "/v1/chat/completions", json={"messages": SAID}))
        await home.engine.opened.wait()
        home.book.down = True
        gate.set()
        assert await asked == 200
    assert counted(home, "kept") == 0
    assert counted(home, "dropped") == 1


def counted(home: Home, outcome: str) -> float:
    return home.value("nightfill_history_turns_total", outcome=outcome)


# --- without a gateway ---


class Keeper:
    """A history over fakes, not running by itself."""

    def __init__(self, settings: HistorySettings = ALL, *, now_s: float | None = None) -> None:
        self.book = FakeBook()
        self.outcomes: Counter[str] = Counter()
        self.now_s = time.time() if now_s is None else now_s
        self.history = History(
            settings,
            book=self.book,
            signatures=lambda: [SIGNATURE],
            on_turn=lambda outcome: self.outcomes.update([outcome]),
            clock=lambda: self.now_s,
        )


def turn(said: str = "a long question", *, reply: object = "ab", filled: int = 0) -> Turn:
    talk = talk_of(
        {"messages": msgspec.Raw(msgspec.json.encode([{"role": "user", "content": said}]))},
        context=None,
        version=None,
        user="",
        placed=False,
    )
    assert talk is not None
    recording = Recording(streamed=False, max_bytes=1000)
    message = reply if isinstance(reply, dict) else {"role": "assistant", "content": reply}
    recording.add(msgspec.json.encode({"choices": [{"message": message, "finish_reason": "stop"}]}))
    return Turn(tenant=DEFAULT_TENANT, talk=talk, filled=filled, recording=recording)


@pytest.mark.parametrize(
    "reply",
    [None, "", {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, "x" * 2000],
)
async def test_only_a_plain_reply_is_kept(reply: object) -> None:
    keeper = Keeper()
    keeper.history.note(turn(reply=reply))
    await keeper.history.flush()
    assert keeper.outcomes == {"unfit": 1}
    assert await keeper.book.contexts() == []


async def test_a_short_turn_waits_for_the_next_one() -> None:
    keeper = Keeper(HistorySettings(min_new_tokens=10))
    keeper.history.note(turn("x" * 27))
    keeper.history.note(turn("x" * 28))
    keeper.history.note(turn("x" * 400, filled=1))
    await keeper.history.flush()
    assert keeper.outcomes == {"short": 2, "kept": 1}


async def test_turns_that_nobody_can_take_in_are_dropped_and_counted() -> None:
    keeper = Keeper()
    for _ in range(300):
        keeper.history.note(turn())
    assert keeper.outcomes == {"dropped": 300 - 256}


async def test_one_turn_is_lost_with_each_failure_of_the_state() -> None:
    keeper = Keeper()
    keeper.book.down = True
    keeper.history.note(turn("one"))
    keeper.history.note(turn("two"))
    with pytest.raises(StateError):
        await keeper.history.flush()
    keeper.book.down = False
    await keeper.history.flush()
    assert keeper.outcomes == {"dropped": 1, "kept": 1}


async def test_chats_of_a_gateway_that_is_gone_are_forgotten_by_the_next_one() -> None:
    keeper = Keeper()
    keeper.history.note(turn())
    await keeper.history.flush()
    next_one = Keeper(HistorySettings(ttl_s=Duration(60)), now_s=time.time() + 61)
    next_one.history._book = keeper.book
    await next_one.history.sweep()
    assert await keeper.book.contexts() == []


async def test_chats_are_forgotten_in_time_and_the_oldest_beyond_a_bound() -> None:
    keeper = Keeper(HistorySettings(min_new_tokens=1, max_chats=2, ttl_s=Duration(60)))
    for said in ("one", "two", "three"):
        keeper.history.note(turn(said))
    await keeper.history.flush()
    await keeper.history.sweep()
    assert len(await keeper.book.contexts()) == 2
    keeper.now_s += 61
    await keeper.history.sweep()
    assert await keeper.book.contexts() == []


@contextlib.asynccontextmanager
async def running(history: History) -> AsyncIterator[None]:
    async with history:
        yield


async def test_it_ends_in_time_though_the_state_hangs() -> None:
    keeper = Keeper()
    hangs = asyncio.Event()

    async def put(**_: object) -> Context:
        hangs.set()
        await asyncio.Event().wait()
        raise AssertionError

    keeper.book.put = put  # type: ignore[method-assign]
    async with asyncio.timeout(6):
        async with running(keeper.history):
            keeper.history.note(turn())
            await hangs.wait()
    assert keeper.outcomes == {"dropped": 1}
