"""A context is changed while answers, a summary and fills exist: from then on no reply carries the old version."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import msgspec
import pytest

from fakes.answers import FakeIndex
from fakes.embedder import WordReader
from fakes.engine import DONE, FakeEngine, FakeReply, event
from fakes.house import House
from fakes.stores import STORES
from nightfill.answers.neighbours import NearSearch, Parts
from nightfill.answers.question import Questions
from nightfill.config import AnswerSettings, Duration, GatewaySettings
from nightfill.contexts import DEFAULT_TENANT, ContextName, Fill, FillKey, FillState, Form, Text, fingerprint_of
from nightfill.gateway.stored import AnswerRoom
from nightfill.state.redis.changes import SETTLE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from fakes.state import FakeBook
    from nightfill.engines.engine import Call
    from nightfill.state.state import State

READERS = 100
CHANGES = 3
HITS = {"HIT": 20, "SEMANTIC-HIT": 10}
"""From store, before the next change."""
QUESTIONS = ["where is the old harbour", "where is the harbour", "how deep is the water", "who was here"]
MODES = ["full", "distilled", "auto"]
NAME = ContextName("repo")


class Reader(FakeEngine):
    """Says which version of the context it was given."""

    @contextlib.asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[FakeReply]:
        found = re.search(rb"version (\d+)", bytes(call.body["messages"]))
        assert found is not None
        text = f"It says so in version {found[1].decode()}."
        finished = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        said = FakeEngine(name=self.name, script=[event(text), finished, DONE])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
        said.whole = msgspec.json.encode({"object": "chat.completion", "choices": [choice], "usage": usage})
        async with said.open(call) as reply:
            await asyncio.sleep(0)
            yield reply


@dataclass
class Town:
    """Gateways over one state file, each with a state of its own, as two processes would have it."""

    states: Sequence[State]
    urls: list[str] = field(default_factory=list)
    published: int = 0
    """The version whose PUT returned last."""
    layers: dict[str, int] = field(default_factory=dict)
    old: list[str] = field(default_factory=list)
    over: bool = False
    wanted: dict[str, int] = field(default_factory=dict)
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when `wanted` replies more came from store."""

    async def publish(self, client: aiohttp.ClientSession, version: int) -> None:
        text = f"This is version {version}. " * 20
        url = self.urls[version % len(self.urls)]
        async with client.put(f"{url}/v1/nightfill/contexts/{NAME}", json={"text": text}) as reply:
            assert reply.status in (200, 201), await reply.text()
        self.published = version
        await self.prepare(version)

    async def prepare(self, version: int) -> None:
        """A fill and a summary of the newest version, as workers make them."""
        book = self.states[version % len(self.states)].book
        context = await book.get(DEFAULT_TENANT, NAME)
        assert context is not None
        for text in (f"This is version {version}. " * 20, f"In short: version {version}."):
            content = Text(text)
            if fingerprint_of(content) != context.current:
                await book.put_distilled(context, content=content, fingerprint=fingerprint_of(content))
            await book.put_fill(
                Fill(
                    key=FillKey(
                        tenant=DEFAULT_TENANT,
                        fingerprint=fingerprint_of(content),
                        form=Form.CHAT,
                        signature=FakeEngine.signature,
                    ),
                    state=FillState.READY,
                    tokens=tuple(range(50)),
                    stored_tokens=50,
                    filled_at_s=time.time(),
                    fill_seconds=1,
                )
            )

    async def read(self, client: aiohttp.ClientSession, rng: random.Random) -> None:
        while not self.over:
            # Half of them as they are; the others near them, and equal to none.
            tail = f" please {rng.randrange(10**9)}" if rng.random() < 0.5 else ""
            question, known = rng.choice(QUESTIONS) + tail, self.published
            said: dict[str, Any] = {
                "model": "demo",
                "temperature": 0,
                "messages": [{"role": "user", "content": question}],
                "stream": rng.random() < 0.3,
                "nightfill": {"context": NAME, "mode": rng.choice(MODES)},
            }
            async with client.post(f"{rng.choice(self.urls)}/v1/chat/completions", json=said) as reply:
                body = await reply.text()
                assert reply.status == 200, body
                text = _text(body)
                cache = reply.headers["x-nightfill-cache"]
            self.layers[cache] = self.layers.get(cache, 0) + 1
            if cache in self.wanted:
                self.wanted[cache] -= 1
            if max(self.wanted.values(), default=0) <= 0:
                self.enough.set()
            found = re.search(r"version (\d+)", text)
            assert found is not None, text
            if int(found[1]) < known:
                self.old.append(f"{cache}: version {found[1]} after {known}")


def _text(body: str) -> str:
    """Of a reply, streamed or not."""
    if not body.startswith("data:"):
        return str(json.loads(body)["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    return "".join(one["choices"][0]["delta"].get("content") or "" for one in events if one["choices"])


@contextlib.asynccontextmanager
async def gateway(state: State, settle_s: float) -> AsyncIterator[str]:
    search = NearSearch(
        state.answers,
        lambda: Parts(WordReader(careless=True), FakeIndex()),
        floor=0.6,
        deadline_s=5,
        needed=True,
        every_s=0.01,
    )
    async with search:
        await search.ready()
        house = House(
            engine=Reader(),
            settings=GatewaySettings(port=0, drain_s=Duration(5), max_in_flight=1000),
            settle_s=settle_s,
        )
        house.book = cast("FakeBook", state.book)
        house.answers = AnswerRoom(
            settings=AnswerSettings(mode="near"),
            answers=state.answers,
            questions=state.questions,
            keys=Questions(max_temperature=0.3),
            neighbours=search,
        )
        async with house.open() as server:
            yield server.url


@pytest.mark.parametrize(
    ("kind", "gateways", "looks"),
    [("sqlite", 1, True), ("sqlite", 2, True), ("redis", 2, True), ("redis", 2, False)],
    ids=["one", "two", "redis", "redis, where no gateway looks for changes by others any more"],
)
async def test_from_the_moment_that_a_change_is_confirmed_no_reply_carries_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, gateways: int, looks: bool
) -> None:
    if not looks:
        monkeypatch.setattr("nightfill.state.redis.changes.LOOK_EVERY_S", 3600.0)
    settle_s = SETTLE_S if kind == "redis" else 0.0
    async with contextlib.AsyncExitStack() as stack:
        store = STORES[kind](tmp_path)
        stack.push_async_callback(store.aclose)
        states = [await stack.enter_async_context(store.open()) for _ in range(gateways)]
        town = Town(states, [await stack.enter_async_context(gateway(state, settle_s)) for state in states])
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        await town.publish(client, 1)
        async with asyncio.TaskGroup() as tasks:
            for seed in range(READERS):
                tasks.create_task(town.read(client, random.Random(seed)))
            try:
                for version in range(2, 2 + CHANGES):
                    town.wanted, town.enough = dict(HITS), asyncio.Event()
                    await asyncio.wait_for(town.enough.wait(), 60)
                    await town.publish(client, version)
            finally:
                town.over = True
    assert town.old == []
