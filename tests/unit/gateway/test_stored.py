from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from fakes.answers import FakeIndex
from fakes.embedder import WordReader
from fakes.engine import DONE, event
from fakes.house import CHAT, House
from nightfill.answers.look import Kind
from nightfill.answers.neighbours import NearSearch, Parts
from nightfill.answers.question import Questions
from nightfill.answers.shadow import shadow_report
from nightfill.config import AnswerSettings, ForeseeSettings, GatewaySettings
from nightfill.contexts import DEFAULT_TENANT, ContextName, Form, Text, fingerprint_of
from nightfill.contexts.context import ContextOptions, TextSource
from nightfill.errors import StateUnavailable
from nightfill.gateway.stored import AnswerRoom, StoredAnswers
from nightfill.sleep.answer_request import Requests
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

    def furnish(self, *, neighbours: NearSearch | None = None, **settings: Any) -> None:
        """Have the gateway that is opened next store answers by these settings."""
        state, wanted = self.state, AnswerSettings(**settings)
        keys = Questions(max_temperature=wanted.max_temperature)
        room = Room(settings=wanted, answers=state.answers, questions=state.questions, keys=keys, neighbours=neighbours)
        self.house.answers = room
        self.rooms.append(room)

    @property
    def asked(self) -> int:
        """Requests that reached the engine."""
        return len(self.house.engine.calls)

    async def ask(self, client: aiohttp.ClientSession, said: dict[str, Any] | None = None, **headers: str) -> Reply:
        """Ask, and wait until what the gateway has to write is written."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with client.post("/v1/chat/completions", json={**ASK, **(said or {})}, headers=named) as reply:
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


async def test_a_stream_is_answered_from_a_whole_reply_and_the_other_way_round(place: Place) -> None:
    place.house.engine.script = [
        b'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant"}}]}\n\n',
        event("To the "),
        event("north."),
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        DONE,
    ]
    streams = {"stream": True, "stream_options": {"include_usage": True}}
    other = {"messages": [{"role": "user", "content": "Where is it?"}]}
    async with place.house.client() as client:
        await place.ask(client)
        streamed = await place.ask(client, streams)
        await place.ask(client, other | {"stream": True})
        whole = await place.ask(client, other)
    assert place.asked == 2
    assert (streamed.cache, whole.cache) == ("HIT", "HIT")
    assert streamed.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert streamed.body.endswith(b'"usage":{"prompt_tokens":9,"completion_tokens":11,"total_tokens":20}}\n\n' + DONE)
    assert whole.json()["choices"][0]["message"] == {"role": "assistant", "content": "To the north."}
    assert whole.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    ("said", "headers", "shown"),
    [
        ({"temperature": 0.7}, {}, ("BYPASS", "BYPASS")),
        ({"temperature": 0.7, "seed": 1}, {}, ("MISS", "HIT")),
        ({"temperature": None}, {}, ("MISS", "HIT")),
        ({}, {"cache_control": "no-store"}, ("MISS", "MISS")),
        ({}, {"cache_control": "no-cache"}, ("BYPASS", "BYPASS")),
        ({}, {"cache_control": "max-age=0"}, ("MISS", "MISS")),
        ({"nightfill": {"max_age_s": 0}}, {}, ("MISS", "MISS")),
        ({"nightfill": {"max_age_s": 60}}, {}, ("MISS", "HIT")),
        ({"nightfill": {"skip": ["answer"]}}, {}, ("BYPASS", "BYPASS")),
        ({"cache": {"no-cache": True}}, {}, ("BYPASS", "BYPASS")),
        ({"cache": {"no-store": True}}, {}, ("MISS", "MISS")),
        ({"cache": {"ttl": 0}}, {}, ("MISS", "MISS")),
        ({"cache": {"namespace": "n"}}, {}, ("MISS", "HIT")),
        ({"cache_salt": "mine"}, {}, ("MISS", "HIT")),
    ],
)
async def test_a_request_may_skip_or_bound_stored_answers(
    place: Place, said: dict[str, Any], headers: dict[str, str], shown: tuple[str, str]
) -> None:
    async with place.house.client() as client:
        assert tuple([(await place.ask(client, said, **headers)).cache for _ in range(2)]) == shown
    assert place.asked == 3 - len(set(shown)) if "HIT" in shown else 2
    assert "cache" not in place.house.engine.calls[0].body


async def test_what_may_not_be_served_is_stored_all_the_same_unless_that_is_forbidden_too(place: Place) -> None:
    async with place.house.client() as client:
        await place.ask(client, cache_control="no-cache")
        assert (await place.ask(client)).cache == "HIT"


@pytest.mark.parametrize("one", [{"cache": {"namespace": "n"}}, {"cache_salt": "mine"}])
async def test_namespaces_and_salts_keep_answers_apart(place: Place, one: dict[str, Any]) -> None:
    async with place.house.client() as client:
        await place.ask(client)
        assert (await place.ask(client, one)).cache == "MISS"


@pytest.mark.parametrize("mode", ["off", "exact"])
async def test_who_wants_a_stored_answer_or_none_is_refused_where_there_is_none(place: Place, mode: str) -> None:
    place.furnish(mode=mode)
    async with place.house.client() as client:
        refused = await place.ask(client, cache_control="only-if-cached")
        assert (refused.status, refused.json()["error"]["code"]) == (504, "not_stored")
        assert refused.headers["x-should-retry"] == "false"
        assert place.asked == 0
        await place.ask(client)
        found = await place.ask(client, cache_control="only-if-cached")
        assert found.status == (504 if mode == "off" else 200)


async def test_off_by_default_nothing_is_looked_up_stored_or_said(place: Place) -> None:
    place.furnish()
    async with place.house.client() as client:
        for _ in range(2):
            reply = await place.ask(client)
            assert (reply.cache, reply.headers.get("cache-status")) == (None, None)
    assert place.asked == 2
    assert await place.state.answers.after(0) == []
    assert place.house.value("nightfill_answers_kept_total", outcome="stored") == 0


@pytest.mark.parametrize(
    ("settings", "option", "hit"),
    [
        ({"mode": "exact"}, "off", False),
        ({"mode": "off"}, "exact", True),
        ({"mode": "off", "tenants": {"default": "exact"}}, None, True),
        ({"mode": "exact", "tenants": {"default": "off"}}, None, False),
        ({"mode": "off", "tenants": {"default": "off"}}, "exact", True),
        ({"mode": "exact", "tenants": {"other": "off"}}, None, True),
    ],
)
async def test_a_contexts_word_comes_before_the_tenants_and_that_before_the_settings(
    place: Place, settings: dict[str, Any], option: str | None, hit: bool
) -> None:
    place.furnish(**settings)
    await place.add("A text.", **({"answers": option} if option else {}))
    async with place.house.client() as client:
        replies = [await place.ask(client, {"nightfill": {"context": "repo"}}) for _ in range(2)]
    assert (replies[1].cache == "HIT") is hit


async def test_an_answer_is_not_given_to_another_tenant(place: Place) -> None:
    keys = {"a": "key-a", "b": "key-b"}
    place.house.settings = GatewaySettings(port=0, api_keys=keys)
    async with place.house.client() as client:
        await place.ask(client, authorization="Bearer key-a")
        assert (await place.ask(client, authorization="Bearer key-b")).cache == "MISS"
        assert (await place.ask(client, authorization="Bearer key-a")).cache == "HIT"
    assert place.asked == 2


async def test_a_foreign_tenants_look_up_asks_the_store_for_a_key_that_is_not_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No time tells whether somebody else has asked the same: the store is asked for a key that nobody has."""
    asked: list[bytes] = []
    get = place.state.answers.get

    async def listening(key: Any) -> Any:
        asked.append(key)
        return await get(key)

    monkeypatch.setattr(place.state.answers, "get", listening)
    place.house.settings = GatewaySettings(port=0, api_keys={"a": "key-a", "b": "key-b"})
    async with place.house.client() as client:
        for key in ("key-a", "key-b"):
            await place.ask(client, authorization=f"Bearer {key}")
    stored = {note.key for note in await place.state.answers.after(0)}
    assert len(set(asked)) == 2
    assert len(stored) == 2
    assert asked[1] != asked[0]


async def test_a_hit_is_a_row_of_the_access_log_with_what_it_saved(place: Place) -> None:
    context = await place.add("A text.")
    named = {"nightfill": {"context": "repo"}}
    async with place.house.client() as client:
        await place.ask(client, named)
        await place.ask(client, named)
    made, served = place.house.access.rows
    assert made.looked.startswith("exact:miss:")
    assert served.looked.startswith("exact:hit:")
    assert (served.layer, served.context, served.fingerprint) == ("answer", "repo", context.current)
    assert (served.prompt_tokens, served.output_tokens, served.saved_tokens, served.status) == (9, 11, 9, 200)
    house = place.house
    house.metrics.render()
    assert house.value("nightfill_answer_lookups_total", layer="exact", result="hit") == 1
    assert house.value("nightfill_answer_lookups_total", layer="exact", result="miss") == 1
    assert house.value("nightfill_answer_lookup_seconds_count", layer="exact") == 2
    assert house.value("nightfill_answers_kept_total", outcome="stored") == 1
    assert house.value("nightfill_answer_saved_tokens_total", part="output") == 11


async def test_a_hit_counts_as_used_in_the_book(place: Place) -> None:
    await place.add("A text.")
    async with place.house.client() as client:
        for _ in range(3):
            await place.ask(client, {"nightfill": {"context": "repo"}})
    (counts,) = (await place.state.answers.counts(DEFAULT_TENANT, ContextName("repo"))).values()
    assert (counts.stored, counts.used, counts.uses) == (1, 1, 2)


async def test_replies_that_did_not_come_to_a_good_end_are_not_stored(place: Place) -> None:
    engine = place.house.engine
    async with place.house.client() as client:
        engine.whole = WHOLE.replace(b'"stop"', b'"length"')
        await place.ask(client)
        engine.status, engine.whole = 500, WHOLE
        await place.ask(client)
        engine.status = 200
        assert (await place.ask(client)).cache == "MISS"
    assert place.house.value("nightfill_answers_kept_total", outcome="cut") == 1


async def test_a_client_that_leaves_halfway_leaves_no_half_answer_behind(place: Place) -> None:
    engine = place.house.engine
    engine.gates[1] = asyncio.Event()
    async with place.house.client() as client:
        async with client.post("/v1/chat/completions", json=ASK | {"stream": True}) as reply:
            await reply.content.readany()
            reply.close()
        await asyncio.wait_for(engine.aborted.wait(), 5)
    assert await place.state.answers.after(0) == []
    assert engine.running == 0


async def test_while_the_store_is_away_the_engine_answers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_: object) -> Any:
        raise StateUnavailable("gone")

    async with place.house.client() as client:
        await place.ask(client)
        monkeypatch.setattr(place.state.answers, "get", gone)
        monkeypatch.setattr(place.state.answers, "put", gone)
        reply = await place.ask(client)
    assert (reply.status, reply.cache) == (200, "MISS")
    assert reply.headers["cache-status"] == "nightfill; fwd=miss; detail=failed"
    assert place.house.value("nightfill_answers_kept_total", outcome="failed") == 1


async def test_what_is_stored_and_cannot_be_read_is_as_good_as_not_there(place: Place) -> None:
    async with place.house.client() as client:
        await place.ask(client)
        (note,) = await place.state.answers.after(0)
        answer = await place.state.answers.get(note.key)
        assert answer is not None
        for body in (b"", b"7", b"{", b'{"choices": 7}'):
            await place.state.answers.put(replace(answer, body=body))
            for stream in (False, True):
                assert (await place.ask(client, {"stream": stream}, cache_control="no-store")).status == 200
                assert (await place.ask(client, {"stream": stream}, cache_control="only-if-cached")).status == 504
        assert place.asked == 9


async def test_an_answer_that_was_prepared_in_idle_time_has_the_key_of_the_request_that_asks_for_it(
    place: Place,
) -> None:
    context = await place.add("A text.")
    requests = Requests(Questions(max_temperature=0.3), ForeseeSettings())
    question = requests.question(context, "Where is it?", await place.house.engine.describe())
    assert question is not None
    said: dict[str, Any] = {
        "messages": [{"role": "user", "content": "Where is it?"}],
        "nightfill": {"context": "repo"},
        "temperature": ForeseeSettings().temperature,
        "max_tokens": ForeseeSettings().max_tokens,
    }
    async with place.house.client() as client:
        await place.ask(client, said)
    answer = await place.state.answers.get(question.key)
    assert answer is not None
    assert (answer.scope, answer.question) == (question.scope, "Where is it?")


# --- near answers, and the shadow of all ---


def asking(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


@contextlib.asynccontextmanager
async def near(place: Place, **settings: Any) -> AsyncIterator[tuple[aiohttp.ClientSession, FakeIndex]]:
    """A client of a gateway with near answers by shared words, and a guard that minds «not»."""
    index = FakeIndex()

    search = NearSearch(
        place.state.answers,
        lambda: Parts(WordReader(), index),
        floor=0.6,
        deadline_s=5,
        needed=True,
        every_s=0.01,
    )
    async with search:
        await search.ready()
        place.furnish(neighbours=search, **settings)
        async with place.house.client() as client:
            yield client, index


async def test_a_question_that_means_the_same_gets_the_answer_and_is_told_how_near_it_is(place: Place) -> None:
    async with near(place, mode="near") as (client, index):
        await place.ask(client, asking("where is the old harbour"))
        await asyncio.to_thread(index.wait_for, 1)
        found = await place.ask(client, asking("where is the harbour"))
        refused = await place.ask(client, asking("where is the old harbour not"))
        unsaid = await place.ask(client, asking("where is the harbour", temperature=None))
    assert (found.cache, found.headers["x-nightfill-layer"]) == ("SEMANTIC-HIT", "answer")
    assert 0.6 < float(found.headers["x-nightfill-cache-similarity"]) < 1
    assert found.headers["cache-status"].endswith("detail=semantic")
    assert "near;dur=" in found.headers["server-timing"]
    assert (refused.cache, refused.headers["cache-status"]) == ("MISS", "nightfill; fwd=miss; detail=negation")
    assert unsaid.headers["cache-status"] == "nightfill; fwd=miss; detail=temperature"
    assert place.house.value("nightfill_answer_guard_refusals_total", reason="negation") == 1
    row = place.house.access.rows[1]
    assert row.looked.startswith("exact:miss:")
    assert " near:hit:" in row.looked


async def test_where_only_equal_requests_are_to_be_served_near_ones_are_not(place: Place) -> None:
    async with near(place, mode="exact") as (client, index):
        await place.ask(client, asking("where is the old harbour"))
        await asyncio.to_thread(index.wait_for, 1)
        assert (await place.ask(client, asking("where is the harbour"))).cache == "MISS"


async def test_a_shadow_serves_nothing_and_tells_what_it_would_have_served(place: Place) -> None:
    other = WHOLE.replace(b"The harbour lies to the north, behind the customs house.", b"Nobody knows that.")
    asked = ["where is the old harbour", "where is the old harbour", "where is the harbour", "how deep is it"]
    async with near(place, mode="shadow") as (client, index):
        for number, text in enumerate(asked):
            place.house.engine.whole = other if number == 2 else WHOLE
            reply = await place.ask(client, asking(text))
            assert (reply.cache, reply.headers["x-nightfill-layer"]) == ("BYPASS", "cold")
            if number == 0:
                await asyncio.to_thread(index.wait_for, 1)
    assert place.asked == 4
    words = [row.looked.split()[-1] for row in place.house.access.rows]
    assert words[0] == "shadow:none"
    assert words[1] == "shadow:exact:1.0000"
    assert words[2].startswith("shadow:near:")
    assert words[3] == "shadow:none"
    report = shadow_report(place.house.access.rows)
    assert (report.requests, report.hit_rate) == (4, 0.5)
    assert (report.judged[Kind.NEAR].different, report.judged[Kind.EXACT].same) == (1, 1)
    assert place.house.value("nightfill_answer_shadows_total", layer="near", outcome="different") == 1
    # What would have been served would not have been made, and so not stored.
    assert len(await place.state.answers.after(0)) == 2


async def test_what_is_asked_of_a_context_is_noted_where_answers_are_to_be_foreseen(place: Place) -> None:
    await place.add("A text.", foresee=True)
    await place.add("Another.", name="other", foresee=False)
    async with place.house.client() as client:
        for name in ("repo", "other"):
            await place.ask(client, asking(f"What is {name}?", nightfill={"context": name}))
    (asked,) = await place.state.questions.recent(DEFAULT_TENANT, ContextName("repo"))
    assert asked.text == "What is repo?"
    assert await place.state.questions.recent(DEFAULT_TENANT, ContextName("other")) == []
