from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from fakes.house import CHAT, House
from nightfill.config import AnswerSettings
from nightfill.contexts import DEFAULT_TENANT, ContextName, Form, Text, fingerprint_of
from nightfill.contexts.context import ContextOptions, TextSource
from nightfill.gateway.stored import AnswerRoom, StoredAnswers
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    import aiohttp

    from fakes.state import FakeBook
    from nightfill.contexts import Context
    from nightfill.state.state import State

ASK: dict[str, Any] = {**CHAT, "temperature": 0}
WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":5,"model":"demo","choices":[{"index":0,"finish_reason":'
    b'"stop","message":{"role":"assistant","content":"The harbour lies to the north, behind the customs house."}}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":11,"total_tokens":20},"timings":{"prompt_n":9}}'
)


@dataclass(frozen=True, kw_only=True)
class Room(AnswerRoom):
    """Knows the layers that were made of it."""

    layers: list[StoredAnswers] = field(default_factory=list)

    def layer(self, **options: Any) -> StoredAnswers:
        self.layers.append(super().layer(**options))
        return self.layers[-1]

    async def flush(self) -> None:
        for layer in self.layers:
            await layer.flush()


@dataclass
class Place:
    """A gateway over a real state and a fake engine."""

    state: State
    house: House = field(default_factory=House)
    rooms: list[Room] = field(default_factory=list)
    """The newest last."""

    def furnish(self, **settings: Any) -> None:
        """Have the gateway that is opened next store answers by these settings."""
        state = self.state
        room = Room(settings=AnswerSettings(**settings), answers=state.answers, questions=state.questions)
        self.house.answers = room
        self.rooms.append(room)

    @property
    def asked(self) -> int:
        """Requests that reached the engine."""
        return len(self.house.engine.calls)

    async def ask(self, client: aiohttp.ClientSession, said: dict[str, Any] | None = None, **headers: str) -> Reply:
        """Ask, and wait until what the gateway has to write is written."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with client.post("/v1/chat/completions", json=ASK | (said or {}), headers=named) as reply:
            body = await reply.read()
        await self.rooms[-1].flush()
        return Reply(reply.status, reply.headers, body)

    async def add(self, text: str, *, name: str = "repo", **options: Any) -> Context:
        content = Text(text)
        return await self.state.book.put(
            tenant=DEFAULT_TENANT,
            name=ContextName(name),
            source=TextSource(),
            content=content,
            fingerprint=fingerprint_of(content),
            forms=[Form.CHAT],
            options=ContextOptions(**options) if options else None,
        )


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def cache(self) -> str | None:
        return self.headers.get("x-nightfill-cache")

    def json(self) -> Any:
        return json.loads(self.body)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with open_state(tmp_path / "state.db") as state:
        place = Place(state)
        place.house.book = cast("FakeBook", state.book)
        place.house.engine.whole = WHOLE
        place.furnish(mode="exact")
        yield place


async def test_an_equal_request_gets_the_reply_that_an_engine_gave_before(place: Place) -> None:
    async with place.house.client() as client:
        first = await place.ask(client)
        second = await place.ask(client)
    assert place.asked == 1
    assert (first.cache, second.cache) == ("MISS", "HIT")
    assert first.headers["Cache-Status"] == "nightfill; fwd=miss"
    assert second.headers["Cache-Status"] == "nightfill; hit; ttl=86399; detail=exact"
    assert second.headers["x-nightfill-layer"] == "answer"
    assert int(second.headers["Age"]) < 60
    assert "exact;dur=" in second.headers["server-timing"]
    assert first.json()["choices"] == second.json()["choices"]
    assert first.json()["usage"] == second.json()["usage"]
    assert second.json()["created"] == 5
    assert second.json()["id"] != first.json()["id"]
    assert "timings" not in second.json()  # they speak of the first one's making
