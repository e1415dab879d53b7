"""What every book of answers and log of questions keeps."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fakes.seal import XorSeal
from fakes.stores import redis_server
from nightfill.contexts.context import Context, ContextName, Fingerprint, Form, Tenant, Text, TextSource
from nightfill.errors import StateUnavailable
from nightfill.state.answers import (
    Answer,
    AnswerBounds,
    AnswerCounts,
    AnswerKey,
    AnswerScope,
    Asked,
    Origin,
)

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.stores import HostClock, Store
    from nightfill.state.answers import AnswerBook
    from nightfill.state.state import State

T, OTHER = Tenant("default"), Tenant("other")
REPO, MANUAL = ContextName("repo"), ContextName("manual")
SCOPE = AnswerScope(b"\0\xffscope".ljust(32, b"s"))


@pytest.fixture
def answers(state: State) -> AnswerBook:
    return state.answers


def fingerprint(text: str) -> Fingerprint:
    return Fingerprint(hashlib.sha256(text.encode()).hexdigest())


def key_of(name: str) -> AnswerKey:
    return AnswerKey(hashlib.sha256(name.encode()).digest())


def answer(
    name: str = "a",
    *,
    tenant: Tenant = T,
    context: ContextName | None = None,
    version: str | None = None,
    ttl_s: float = 60.0,
    at_s: float = 0.0,
    origin: Origin = Origin.LIVE,
    body: bytes = b'{"choices": []}',
) -> Answer:
    return Answer(
        key=key_of(name),
        scope=SCOPE,
        tenant=tenant,
        context=context,
        fingerprint=None if version is None else fingerprint(version),
        model="m",
        question=f"question {name}?",
        body=body,
        origin=origin,
        at_s=at_s,
        ttl_s=ttl_s,
    )


async def put(state: State, text: str, *, name: ContextName = REPO, tenant: Tenant = T) -> Context:
    return await state.book.put(
        tenant=tenant,
        name=name,
        source=TextSource(),
        content=Text(text),
        fingerprint=fingerprint(text),
        forms=[Form.CHAT],
    )


def bytes_below(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.rglob("*") if file.is_file()]


async def there(book: AnswerBook, *names: str) -> set[str]:
    return {name for name in names if await book.get(key_of(name)) is not None}


async def test_an_answer_is_read_back_by_another_handle_with_the_time_of_its_making(
    store: Store, clock: HostClock
) -> None:
    assert await store.open().answers.put(answer(body=b"\0\xff" * 500))
    found = await store.open().answers.get(key_of("a"))
    assert found == answer(body=b"\0\xff" * 500, at_s=clock.wall_s)


async def test_an_unknown_key_has_no_answer(answers: AnswerBook) -> None:
    assert await answers.get(key_of("a")) is None


async def test_a_second_answer_of_one_key_takes_the_place_of_the_first(answers: AnswerBook) -> None:
    await answers.put(answer(body=b"first"))
    await answers.put(answer(body=b"second"))
    found = await answers.get(key_of("a"))
    assert found is not None
    assert found.body == b"second"
    assert len(await answers.after(0)) == 1


async def test_an_answer_is_served_until_its_time_by_the_stores_clock(answers: AnswerBook, clock: HostClock) -> None:
    await answers.put(answer("short", ttl_s=10))
    await answers.put(answer("made before", ttl_s=10, at_s=clock.wall_s - 8))
    clock.advance(5)
    assert await there(answers, "short", "made before") == {"short"}
    clock.advance(5)
    assert await there(answers, "short") == {"short"}
    clock.advance(0.5)
    assert await there(answers, "short") == set()


async def test_pruning_drops_what_is_too_old(answers: AnswerBook, clock: HostClock) -> None:
    await answers.put(answer("short", ttl_s=10))
    await answers.put(answer("long", ttl_s=100))
    clock.advance(11)
    assert (await answers.prune(), await answers.prune()) == (1, 0)
    assert [note.key for note in await answers.after(0)] == [key_of("long")]


async def test_answers_go_with_the_version_of_their_context(state: State) -> None:
    await put(state, "old")
    await put(state, "old", name=MANUAL)
    assert await state.answers.put(answer("a", context=REPO, version="old"))
    assert await state.answers.put(answer("b", context=MANUAL, version="old"))
    assert await state.answers.put(answer("c"))
    await put(state, "old")
    assert await there(state.answers, "a", "b", "c") == {"a", "b", "c"}
    context = await put(state, "new")
    assert await there(state.answers, "a", "b", "c") == {"b", "c"}
    assert await state.answers.put(answer("a", context=REPO, version="new"))
    await state.book.replace(context, content=Text("newer"), fingerprint=fingerprint("newer"))
    assert await there(state.answers, "a", "b", "c") == {"b", "c"}
    await state.book.delete(T, MANUAL)
    assert await there(state.answers, "a", "b", "c") == {"c"}
    assert len(await state.answers.after(0)) == 1


async def put_many(state: State, count: int) -> None:
    await put(state, "old")
    await asyncio.gather(*(state.answers.put(answer(str(n), context=REPO, version="old")) for n in range(count)))
    assert len(await state.answers.after(0, limit=count + 1)) == count


async def test_however_many_answers_a_version_has_they_go_with_it(state: State) -> None:
    await put_many(state, 1100)
    await state.answers.put(answer("another"))
    await put(state, "new")
    assert [note.key for note in await state.answers.after(0)] == [key_of("another")]


async def test_what_a_killed_process_left_of_them_is_given_to_nobody_and_goes_with_the_next_pruning(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object) -> None:
        raise StateUnavailable("killed here")

    monkeypatch.setattr("nightfill.state.redis.book.sweep", killed)
    monkeypatch.setattr("nightfill.state.sqlite.book.ANY_OVERTAKEN", "no SQL")
    await put_many(state, 600)
    context = await put(state, "new")
    left = await state.answers.after(0)
    assert len(left) == 100
    assert [await state.answers.get(note.key) for note in left] == [None] * 100
    await state.book.put_distilled(context, content=Text("short"), fingerprint=fingerprint("short"))
    kept = [("a", "new"), ("b", "short")]
    for name, version in kept:
        assert await state.answers.put(answer(name, context=REPO, version=version))
    await state.answers.put(answer("c"))
    await state.answers.prune()
    assert {note.key for note in await state.answers.after(0)} == {key_of(name) for name in "abc"}
    assert await there(state.answers, "a", "b", "c") == {"a", "b", "c"}


async def test_an_answer_to_a_version_that_its_context_has_no_more_is_refused(state: State) -> None:
    assert not await state.answers.put(answer(context=REPO, version="old"))
    await put(state, "old")
    await put(state, "old", name=MANUAL)
    await put(state, "new")
    assert not await state.answers.put(answer(context=REPO, version="old"))
    assert await state.answers.get(key_of("a")) is None
    assert await state.answers.counts(T, REPO) == {}
    assert not await state.answers.put(answer(tenant=OTHER, context=REPO, version="new"))


async def test_answers_may_rest_on_the_distilled_version_and_go_with_it(state: State) -> None:
    context = await put(state, "long")
    assert not await state.answers.put(answer(context=REPO, version="short"))
    assert await state.book.put_distilled(context, content=Text("short"), fingerprint=fingerprint("short"))
    assert await state.answers.put(answer("a", context=REPO, version="short"))
    assert await state.answers.put(answer("b", context=REPO, version="long"))
    assert await state.book.put_distilled(context, content=Text("shorter"), fingerprint=fingerprint("shorter"))
    assert await there(state.answers, "a", "b") == {"b"}
    assert await state.answers.put(answer("a", context=REPO, version="shorter"))
    await put(state, "new")
    assert await there(state.answers, "a", "b") == set()


async def test_no_reader_sees_an_answer_to_the_old_version_after_a_change(store: Store) -> None:
    state, reader = store.open(), store.open()
    await put(state, "old")
    await state.answers.put(answer(context=REPO, version="old"))
    changed = False
    stale = 0

    async def read() -> None:
        nonlocal stale
        for _ in range(20):
            after = changed
            if await reader.answers.get(key_of("a")) is not None and after:
                stale += 1
            await asyncio.sleep(0)

    async def change() -> None:
        nonlocal changed
        await put(state, "new")
        changed = True

    await asyncio.gather(change(), *(read() for _ in range(100)))
    assert changed
    assert stale == 0
    assert await reader.answers.get(key_of("a")) is None


async def test_a_tenants_or_a_contexts_answers_can_be_dropped(state: State) -> None:
    await put(state, "x")
    await state.answers.put(answer("a", context=REPO, version="x"))
    await state.answers.put(answer("b"))
    await state.answers.put(answer("c", tenant=OTHER))
    assert await state.answers.drop(T, context=REPO) == 1
    assert await there(state.answers, "a", "b", "c") == {"b", "c"}
    assert await state.answers.drop(T) == 1
    assert await there(state.answers, "a", "b", "c") == {"c"}
    assert await state.answers.drop(T) == 0


async def test_beyond_a_bound_those_used_longest_ago_go_first(store: Store, clock: HostClock) -> None:
    book = store.open(bounds=AnswerBounds(answers=3)).answers
    for name, tenant in (("a", T), ("b", OTHER), ("c", T)):
        await book.put(answer(name, tenant=tenant))
        clock.advance(1)
    await book.served([key_of("a")])
    clock.advance(1)
    await book.put(answer("d"))
    assert await there(book, "a", "b", "c", "d") == {"a", "c", "d"}
    clock.advance(1)
    await book.put(answer("e", tenant=OTHER))
    assert await there(book, "a", "c", "d", "e") == {"a", "d", "e"}


async def test_one_tenants_bound_costs_no_other_tenant_an_answer(store: Store, clock: HostClock) -> None:
    book = store.open(bounds=AnswerBounds(tenant_answers=2)).answers
    await book.put(answer("theirs", tenant=OTHER))
    for name in ("a", "b", "c"):
        clock.advance(1)
        await book.put(answer(name))
    assert await there(book, "theirs", "a", "b", "c") == {"theirs", "b", "c"}


async def test_the_bytes_of_all_answers_are_bounded(store: Store, clock: HostClock) -> None:
    book = store.open(bounds=AnswerBounds(bytes=25_000)).answers
    for name in ("a", "b", "c"):
        clock.advance(1)
        assert await book.put(answer(name, body=b"x" * 10_000))
    assert await there(book, "a", "b", "c") == {"b", "c"}
    assert not await book.put(answer("d", body=b"x" * 30_000)), "larger than all together may be"
    assert await there(book, "b", "c", "d") == {"b", "c"}


async def test_a_lowered_bound_is_reached_in_steps(store: Store, clock: HostClock) -> None:
    book = store.open().answers
    for n in range(150):
        clock.advance(0.01)
        await book.put(answer(str(n)))
    lowered = store.open(bounds=AnswerBounds(answers=10)).answers
    clock.advance(0.01)
    await lowered.put(answer("x"))
    assert len(await book.after(0)) == 51
    clock.advance(0.01)
    await lowered.put(answer("y"))
    left = await book.after(0)
    assert len(left) == 10
    assert [note.key for note in left[-2:]] == [key_of("x"), key_of("y")]


async def test_what_was_foreseen_and_what_of_it_served_is_counted(state: State, clock: HostClock) -> None:
    await put(state, "x")
    for name in ("a", "b"):
        await state.answers.put(answer(name, context=REPO, version="x", origin=Origin.STRUCTURE))
    await state.answers.put(answer("c", context=REPO, version="x"))
    await state.answers.served([key_of("a"), key_of("a"), key_of("gone")])
    await state.answers.served([key_of("a")])
    expected = {Origin.STRUCTURE: AnswerCounts(stored=2, used=1, uses=3), Origin.LIVE: AnswerCounts(stored=1)}
    assert await state.answers.counts(T, REPO) == expected
    await put(state, "y")
    assert await state.answers.counts(T, REPO) == expected, "since the context was made"
    await state.book.delete(T, REPO)
    await put(state, "y")
    assert await state.answers.counts(T, REPO) == {}


async def test_notes_are_told_in_the_order_of_putting_from_any_serial_on(answers: AnswerBook) -> None:
    for name in ("c", "a", "b"):
        await answers.put(answer(name))
    await answers.put(replace(answer("exact only"), question=""))
    notes = await answers.after(0)
    assert [note.question for note in notes] == ["question c?", "question a?", "question b?"]
    assert {note.scope for note in notes} == {SCOPE}
    assert [note.key for note in await answers.after(notes[0].serial, limit=1)] == [key_of("a")]
    assert await answers.after(notes[-1].serial) == []
    await answers.put(answer("c"))
    again = await answers.after(notes[-1].serial)
    assert [note.key for note in again] == [key_of("c")]


async def test_of_many_keys_those_without_an_answer_are_told(answers: AnswerBook) -> None:
    names = [str(n) for n in range(700)]
    await asyncio.gather(*(answers.put(answer(name)) for name in names[::7]))
    gone = await answers.gone([key_of(name) for name in names])
    assert set(gone) == {key_of(name) for name in names if int(name) % 7}
    assert await answers.gone([]) == []


async def test_serials_grow_even_when_the_newest_answers_are_gone(answers: AnswerBook) -> None:
    await answers.put(answer("a"))
    (before,) = await answers.after(0)
    await answers.drop(T)
    await answers.put(answer("b"))
    (after,) = await answers.after(0)
    assert after.serial > before.serial


async def test_an_answer_sealed_with_another_key_is_a_miss_and_told_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.open(seal=XorSeal(7)).answers.put(answer(body=b"secret body"))
    wrong = store.open(seal=XorSeal(8))
    assert await wrong.answers.get(key_of("a")) is None
    assert await wrong.answers.get(key_of("a")) is None
    assert len(caplog.records) == 1
    assert "cannot be opened" in caplog.text
    assert [note.question for note in await wrong.answers.after(0)] == [""]
    assert await store.open(seal=XorSeal(7)).answers.get(key_of("a")) is not None, "and nothing was deleted"
    assert await wrong.answers.put(answer()), "and it is written again"
    assert await wrong.answers.get(key_of("a")) is not None


async def test_questions_and_bodies_lie_sealed(store: Store, tmp_path: Path) -> None:
    state = store.open(seal=XorSeal(7))
    await put(state, "x")
    await state.answers.put(answer("a", context=REPO, version="x", body=b"the body"))
    await state.questions.note(T, REPO, [Asked(text="what was asked", at_s=5.0)])
    (keys,) = redis_server().call([b"KEYS", b"*"])
    assert isinstance(keys, list)
    values = redis_server().call(*([b"DUMP", bytes(key)] for key in keys if isinstance(key, bytes)))
    lies = b"".join([*bytes_below(tmp_path), *(bytes(value) for value in values if isinstance(value, bytes))])
    assert len(lies) > 100
    for words in (b"the body", b"question a?", b"what was asked"):
        assert words not in lies


async def test_answers_and_questions_are_sealed_anew_after_a_change_of_keys(store: Store) -> None:
    old = store.open(seal=XorSeal(7))
    await put(old, "x")
    await old.answers.put(answer("a", context=REPO, version="x"))
    await old.answers.put(replace(answer("b"), question=""))
    await old.answers.served([key_of("a")])
    asked = [Asked(text=f"question {n}", at_s=float(n)) for n in range(3)]
    await old.questions.note(T, REPO, asked)
    renewed = XorSeal(9, old=7)
    both = store.open(seal=renewed)
    assert await both.reseal_texts(renewed) == 7, "text and source, two answers, three questions"
    assert await both.reseal_texts(renewed) == 0
    new = store.open(seal=XorSeal(9))
    assert await there(new.answers, "a", "b") == {"a", "b"}
    assert await new.questions.recent(T, REPO) == asked[::-1]
    await new.answers.served([key_of("a")])
    assert (await new.answers.counts(T, REPO))[Origin.LIVE] == AnswerCounts(stored=1, used=1, uses=2)
    await new.book.delete(T, REPO)
    await new.answers.drop(T)
    await new.answers.put(answer("c"))
    bounded = store.open(seal=XorSeal(9), bounds=AnswerBounds(bytes=600)).answers
    assert await bounded.put(answer("d")), "what the bytes add up to is still known"
    assert await there(bounded, "c", "d") == {"c", "d"}


async def test_the_newest_questions_of_a_context_are_kept_through_its_versions(store: Store) -> None:
    state = store.open(bounds=AnswerBounds(questions=3))
    await put(state, "x")
    await put(state, "x", name=MANUAL)
    asked = [Asked(text=f"naïve question {n}?", at_s=1.5 * n) for n in range(5)]
    await state.questions.note(T, REPO, asked[:2])
    await state.questions.note(T, REPO, asked[2:])
    await state.questions.note(T, MANUAL, asked[:1])
    assert await state.questions.recent(T, REPO) == [asked[4], asked[3], asked[2]]
    assert await state.questions.recent(T, REPO, limit=1) == [asked[4]]
    await put(state, "y")
    assert len(await state.questions.recent(T, REPO)) == 3
    await state.book.delete(T, REPO)
    assert await state.questions.recent(T, REPO) == []
    assert await state.questions.recent(T, MANUAL) == asked[:1]


async def test_no_question_is_kept_of_a_context_that_is_not_there(store: Store) -> None:
    state = store.open()
    await state.questions.note(T, REPO, [Asked(text="?", at_s=1.0)])
    await put(state, "x")
    assert await state.questions.recent(T, REPO) == []
    none = store.open(bounds=AnswerBounds(questions=0))
    await none.questions.note(T, REPO, [Asked(text="?", at_s=1.0)])
    assert await state.questions.recent(T, REPO) == []


async def test_a_question_that_cannot_be_opened_takes_no_other_with_it(store: Store) -> None:
    old, new = store.open(seal=XorSeal(7)), store.open(seal=XorSeal(8))
    await put(old, "x")
    await old.questions.note(T, REPO, [Asked(text="old", at_s=1.0)])
    await new.questions.note(T, REPO, [Asked(text="new", at_s=2.0)])
    assert await new.questions.recent(T, REPO) == [Asked(text="new", at_s=2.0)]


async def test_nothing_is_left_of_a_context_that_is_gone(store: Store, request: pytest.FixtureRequest) -> None:
    state = store.open()
    context = await put(state, "x")
    await state.book.put_distilled(context, content=Text("d"), fingerprint=fingerprint("d"))
    await state.answers.put(answer("a", context=REPO, version="x"))
    await state.answers.put(answer("b", context=REPO, version="d"))
    await state.answers.served([key_of("a")])
    await state.questions.note(T, REPO, [Asked(text="what was asked", at_s=5.0)])
    await state.book.delete(T, REPO)
    assert await state.answers.after(0) == []
    if "redis" in request.node.callspec.id:
        (keys,) = redis_server().call([b"KEYS", b"*"])
        assert isinstance(keys, list)
        assert sorted(bytes(key) for key in keys if isinstance(key, bytes)) == [
            b"{nightfill}:answers:serial",
            b"{nightfill}:changes",
        ]
