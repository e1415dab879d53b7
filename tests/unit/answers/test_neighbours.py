from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from fakes.answers import FakeIndex
from fakes.embedder import WordReader
from nightfill.answers.cache import AnswerCache
from nightfill.answers.index import NearIndex
from nightfill.answers.look import Kind, Result
from nightfill.answers.neighbours import NearSearch, Parts
from nightfill.answers.question import Bar, Question
from nightfill.contexts.context import DEFAULT_TENANT
from nightfill.errors import BadSetting, StateUnavailable
from nightfill.state.answers import Answer, AnswerKey, AnswerScope, Origin
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from nightfill.state.answers import AnswerBook
    from nightfill.state.state import State

SCOPE = AnswerScope(b"s" * 32)
BODY = b'{"choices":[{"message":{"content":"North."}}],"usage":{"completion_tokens":12}}'


def key(number: int) -> AnswerKey:
    return AnswerKey(bytes([number]) * 32)


def question(text: str | None, *, number: int = 99, scope: AnswerScope = SCOPE, **more: Any) -> Question:
    return Question(key=key(number), scope=scope, text=text, **more)


async def put(book: AnswerBook, number: int, text: str, *, scope: AnswerScope = SCOPE, at_s: float = 0) -> None:
    assert await book.put(
        Answer(
            key=key(number),
            scope=scope,
            tenant=DEFAULT_TENANT,
            context=None,
            fingerprint=None,
            model="m",
            question=text,
            body=BODY,
            origin=Origin.LIVE,
            at_s=at_s,
            ttl_s=3600,
        )
    )


class Place:
    def __init__(self, state: State) -> None:
        self.state = state
        self.index = FakeIndex()
        self.reader = WordReader()
        self.embedder = self.reader.embedder
        self.loads = 0

    def load(self) -> Parts:
        self.loads += 1
        return Parts(self.reader, self.index)

    def search(self, load: Callable[[], Parts] | None = None, **more: Any) -> NearSearch:
        options = {"floor": 0.6, "deadline_s": 5.0, "every_s": 0.01, **more}
        return NearSearch(self.state.answers, load or self.load, **options)

    async def indexed(self, count: int) -> None:
        await asyncio.to_thread(self.index.wait_for, count)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with open_state(tmp_path / "state.db") as state:
        yield Place(state)


async def test_a_near_question_that_the_guard_lets_pass_is_answered(place: Place) -> None:
    await put(place.state.answers, 1, "where is the old harbour")
    async with place.search(needed=True) as search:
        await search.ready()
        await place.indexed(1)
        found, look = await AnswerCache(place.state.answers, neighbours=search).near(
            question("where is the harbour"), max_age_s=None
        )
    assert found is not None
    assert (found.kind, found.answer.key, look.result) == (Kind.NEAR, key(1), Result.HIT)
    assert found.similarity is not None
    assert 0.6 < found.similarity < 1


@pytest.mark.parametrize(
    ("asked", "more", "result", "detail"),
    [
        ("how deep is it", {}, Result.MISS, ""),
        ("where is the harbour not", {}, Result.GUARD, "negation"),
        ("where is the harbour", {"scope": AnswerScope(b"t" * 32)}, Result.MISS, ""),
        ("where is the harbour", {"max_tokens": 11}, Result.MISS, "length"),
        ("where is the harbour", {"max_tokens": 12}, Result.HIT, ""),
        (None, {"bar": Bar.TOOLS}, Result.BARRED, "tools"),
    ],
)
async def test_what_is_far_or_refused_or_of_another_scope_or_too_long_does_not_serve(
    place: Place, asked: str | None, more: dict[str, Any], result: Result, detail: str
) -> None:
    await put(place.state.answers, 1, "where is the harbour")
    async with place.search(needed=True) as search:
        await search.ready()
        await place.indexed(1)
        cache = AnswerCache(place.state.answers, neighbours=search)
        found, look = await cache.near(question(asked, **more), max_age_s=None)
    assert (look.result, look.detail, found is not None) == (result, detail, result is Result.HIT)


async def test_the_second_nearest_serves_where_the_guard_refuses_the_nearest(place: Place) -> None:
    await put(place.state.answers, 1, "where is the harbour not")
    await put(place.state.answers, 2, "where the old harbour is")
    async with place.search(needed=True) as search:
        await search.ready()
        await place.indexed(2)
        found, _ = await AnswerCache(place.state.answers, neighbours=search).near(
            question("where is the harbour"), max_age_s=None
        )
    assert found is not None
    assert found.answer.key == key(2)


async def test_an_answer_that_is_gone_does_not_serve_and_leaves_the_index(place: Place) -> None:
    await put(place.state.answers, 1, "where is the harbour")
    async with place.search(needed=True) as search:
        await search.ready()
        await place.indexed(1)
        await place.state.answers.drop(DEFAULT_TENANT)
        cache = AnswerCache(place.state.answers, neighbours=search)
        found, look = await cache.near(question("where is the harbour"), max_age_s=None)
        assert (found, look.result) == (None, Result.MISS)
        await place.indexed(0)


async def test_an_answer_that_is_older_than_the_request_allows_does_not_serve(place: Place) -> None:
    await put(place.state.answers, 1, "where is the harbour", at_s=1.0)
    async with place.search(needed=True) as search:
        await search.ready()
        await place.indexed(1)
        cache = AnswerCache(place.state.answers, neighbours=search, clock=lambda: 3601.0)
        _, look = await cache.near(question("where is the harbour"), max_age_s=60)
    assert look.result in (Result.STALE, Result.MISS)


async def test_of_a_scope_without_answers_no_question_is_embedded(place: Place) -> None:
    await put(place.state.answers, 1, "where is the harbour")
    async with place.search(needed=True) as search:
        await search.ready()
        await place.indexed(1)
        before = len(place.embedder.calls)
        asked = question("where is the harbour", scope=AnswerScope(b"t" * 32))
        assert await search.near(asked) == ((), Result.MISS, "")
        assert len(place.embedder.calls) == before
        await search.near(question("where is the harbour"))
        assert len(place.embedder.calls) == before + 1


async def test_nothing_is_loaded_before_somebody_asks_and_who_asks_first_does_not_wait(place: Place) -> None:
    async with place.search() as search:
        assert place.loads == 0
        assert await search.near(question("where")) == ((), Result.BUSY, "loading")
        await search.ready()
        assert (await search.near(question("where")))[1] is Result.MISS
    assert place.loads == 1


async def test_a_look_up_that_takes_too_long_is_given_up_and_a_line_that_is_too_long_not_joined(place: Place) -> None:
    place.index.gate = threading.Event()
    async with place.search(needed=True, deadline_s=0.05) as search:
        await search.ready()
        await put(place.state.answers, 1, "how deep is it")
        await place.indexed(1)
        results = await asyncio.gather(*(search.near(question("where")) for _ in range(12)))
        assert [result for _, result, _ in results] == [Result.LATE] * 8 + [Result.BUSY] * 4
        assert (await search.near(question("where")))[1] in (Result.BUSY, Result.LATE)  # the thread is still at it
        place.index.gate.set()
        place.index.gate = None
        for _ in range(1000):
            if (await search.near(question("where")))[1] is Result.MISS:
                return
            await asyncio.sleep(0.005)
        pytest.fail("the line did not get shorter")


async def test_the_loop_goes_on_while_a_look_up_is_under_way(place: Place) -> None:
    place.index.gate = threading.Event()
    async with place.search(needed=True) as search:
        await search.ready()
        await put(place.state.answers, 1, "how deep is it")
        await place.indexed(1)
        looking = asyncio.create_task(search.near(question("where")))
        await asyncio.to_thread(place.index.looking.wait, 5)
        assert not looking.done()
        place.index.gate.set()
        assert (await looking)[1] is Result.MISS


async def test_without_what_it_needs_near_answers_are_refused_at_start_or_left_out(place: Place) -> None:
    def load() -> Parts:
        raise BadSetting("not installed", param="answers.embedding")

    async with place.search(load) as search:
        with pytest.raises(BadSetting, match="not installed"):
            await search.ready()
        assert await search.near(question("where")) == ((), Result.BARRED, "not-installed")
        assert await search.likeness("a", "b") is None


async def test_while_the_state_is_away_the_index_waits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    after, away = place.state.answers.after, True

    async def sometimes(*args: Any, **more: Any) -> Any:
        if away:
            raise StateUnavailable("gone")
        return await after(*args, **more)

    monkeypatch.setattr(place.state.answers, "after", sometimes)
    await put(place.state.answers, 1, "where is the harbour")
    async with place.search(needed=True) as search:
        await search.ready()
        assert (await search.near(question("where is the harbour")))[1] is Result.MISS
        away = False
        await place.indexed(1)
    assert place.index.saves >= 1


async def test_without_a_reader_requests_go_to_the_engine_until_it_is_back(place: Place) -> None:
    await put(place.state.answers, 1, "where is the harbour")
    async with place.search(needed=True, every_s=3600) as search:
        await search.ready()
        await place.indexed(1)
        place.reader.away = True
        assert await search.near(question("where is the old harbour")) == ((), Result.BUSY, "")
        assert await search.passing("where is it", ["where is it not"]) == (None, Result.BUSY, "")
        assert await search.likeness("a", "b") is None
        place.reader.away = False
        assert (await search.near(question("where is the old harbour")))[1] is Result.HIT
    assert place.reader.closed


async def test_what_was_stored_while_the_reader_was_away_is_found_when_it_is_mended(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.reader.away, place.reader.mends = True, 5
    await put(place.state.answers, 1, "where is the harbour")
    async with place.search(needed=True) as search:
        await search.ready()
        await place.indexed(1)
        assert (await search.near(question("where is the old harbour")))[1] is Result.HIT
    assert caplog.text.count("the index of near answers is behind: the process that reads questions is gone") == 1


async def test_replies_that_say_the_same_are_alike(place: Place) -> None:
    def body(*texts: str) -> bytes:
        choices = ",".join(f'{{"message":{{"content":"{text}"}}}}' for text in texts)
        return b'{"choices":[' + choices.encode() + b"]}"

    async with place.search(needed=True) as search:
        await search.ready()
        cache = AnswerCache(place.state.answers, neighbours=search)
        assert await cache.alike(body("to the north"), body("to the north")) == 1.0
        near = await cache.alike(body("to the north"), body("to the far north"))
        far = await cache.alike(body("to the north"), body("nobody knows"))
        assert near is not None
        assert far is not None
        assert far < 0.5 < near < 1
        assert await cache.alike(body("a"), body("a", "b")) is None
    assert await AnswerCache(place.state.answers).alike(body("a"), body("b")) is None


async def test_what_the_book_has_no_more_leaves_the_index_without_being_asked_for(place: Place) -> None:
    for number in range(1, 4):
        await put(place.state.answers, number, f"where is harbour number {number}")
    async with place.search(needed=True):
        await place.indexed(3)
        await place.state.answers.drop(DEFAULT_TENANT)
        await place.indexed(0)
    assert place.index.closed


async def test_after_a_restart_the_real_index_has_what_it_had_and_embeds_only_what_came_meanwhile(
    place: Place, tmp_path: Path
) -> None:
    def load() -> Parts:
        return Parts(place.reader, NearIndex(tmp_path / "near", identity=place.reader.identity))

    async def found(search: NearSearch, words: str, number: int) -> bool:
        cache = AnswerCache(place.state.answers, neighbours=search)
        near, _ = await cache.near(question(words), max_age_s=None)
        return near is not None and near.answer.key == key(number)

    async def until_found(search: NearSearch, words: str, number: int) -> None:
        async with asyncio.timeout(30):
            while not await found(search, words, number):  # noqa: ASYNC110 - the index tells nobody
                await asyncio.sleep(0.01)

    await put(place.state.answers, 1, "where is the old harbour")
    async with place.search(load, needed=True) as search:
        await search.ready()
        await until_found(search, "where is the harbour", 1)
    await put(place.state.answers, 2, "how deep does the water get")
    place.embedder.calls.clear()
    async with place.search(load, needed=True) as search:
        await search.ready()
        assert await found(search, "where is the harbour", 1)
        await until_found(search, "how deep does water get", 2)
    assert not any("where is the old harbour" in call for call in place.embedder.calls)
