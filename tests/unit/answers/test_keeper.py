from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.answers.keeper import Deposit, Keeper
from nightfill.answers.question import Ground, Question
from nightfill.answers.reply import Recording
from nightfill.contexts.context import DEFAULT_TENANT, ContextName, Fingerprint
from nightfill.engines.engine import Tokens
from nightfill.errors import StateUnavailable
from nightfill.state.answers import AnswerKey, AnswerScope, Asked
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from nightfill.answers.reply import Kept, Unfit
    from nightfill.state.state import State

BODY = b'{"choices":[{"message":{"content":"North."},"finish_reason":"stop"}],"usage":{"completion_tokens":2}}'


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[State]:
    async with open_state(tmp_path / "state.db") as state:
        yield state


class Outcomes(Counter[str]):
    def note(self, outcome: str) -> None:
        self[outcome] += 1


def keeper(state: State, outcomes: Outcomes, **options: Any) -> Keeper:
    return Keeper(state.answers, state.questions, max_answer_bytes=10_000, on_outcome=outcomes.note, **options)


def deposit(number: int = 1, *, body: bytes = BODY, ground: Ground | None = None, **more: Any) -> Deposit:
    recording = Recording(streamed=False, max_bytes=10_000)
    recording.add(body)
    return Deposit(
        ground=ground or Ground(tenant=DEFAULT_TENANT),
        question=Question(key=key(number), scope=AnswerScope(b"s" * 32), text="Where?", **more),
        model="m",
        recording=recording,
        tokens=Tokens(prompt=9, output=2),
        ttl_s=60,
    )


def key(number: int) -> AnswerKey:
    return AnswerKey(number.to_bytes(32, "big"))


async def test_what_came_in_is_stored_before_the_end(state: State) -> None:
    outcomes = Outcomes()
    async with keeper(state, outcomes) as books:
        for number in range(5):
            assert books.keep(deposit(number))
    assert outcomes == {"stored": 5}
    answer = await state.answers.get(key(3))
    assert answer is not None
    assert (answer.body, answer.question, answer.ttl_s) == (BODY, "Where?", 60)


async def test_an_answer_that_a_bound_cut_serves_no_near_question(state: State) -> None:
    outcomes = Outcomes()
    async with keeper(state, outcomes) as books:
        books.keep(deposit(body=BODY.replace(b"stop", b"length"), max_tokens=2))
    answer = await state.answers.get(key(1))
    assert answer is not None
    assert answer.question == ""


async def test_a_reply_about_a_version_that_is_gone_is_not_stored(state: State) -> None:
    outcomes = Outcomes()
    ground = Ground(tenant=DEFAULT_TENANT, context=ContextName("repo"), fingerprint=Fingerprint("1" * 64))
    async with keeper(state, outcomes) as books:
        books.keep(deposit(ground=ground))
    assert outcomes == {"overtaken": 1}
    assert await state.answers.get(key(1)) is None


async def test_of_many_that_asked_the_same_at_once_one_reply_is_stored(state: State) -> None:
    outcomes = Outcomes()
    async with keeper(state, outcomes) as books:
        for _ in range(9):
            assert books.keep(deposit())
        await books.flush()
        books.keep(deposit())
    assert outcomes == {"double": 8, "stored": 2}


async def test_what_does_not_fit_in_is_dropped_and_counted(state: State) -> None:
    outcomes = Outcomes()
    async with keeper(state, outcomes) as books:
        taken = [books.keep(deposit(number)) for number in range(520)]
    assert taken == [True] * 512 + [False] * 8
    assert outcomes == {"stored": 512, "full": 8}


async def test_questions_wait_for_so_many_contexts_and_no_more(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: dict[str, list[str]] = {}

    async def note(_: object, context: ContextName, questions: list[Asked]) -> None:
        noted[context] = [one.text for one in questions]

    monkeypatch.setattr(state.questions, "note", note)
    books = keeper(state, Outcomes())
    for number in range(600):
        books.asked(DEFAULT_TENANT, ContextName(f"c{number}"), Asked(text="Where?", at_s=0.0))
    books.asked(DEFAULT_TENANT, ContextName("c7"), Asked(text="When?", at_s=0.0))
    async with books:
        pass
    assert sorted(noted) == sorted(f"c{number}" for number in range(512))
    assert noted["c7"] == ["Where?", "When?"]
    assert noted["c8"] == ["Where?"]


async def test_while_the_store_is_away_answers_are_lost_and_nothing_else(
    state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = Outcomes()

    async def gone(*_: object) -> None:
        raise StateUnavailable("gone")

    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    async with keeper(state, outcomes, write_s=0.05) as books:
        for away in (gone, silent):
            with monkeypatch.context() as patch:
                patch.setattr(state.answers, "put", away)
                books.keep(deposit())
                await books.flush()
        books.keep(deposit())
    assert outcomes == {"failed": 2, "stored": 1}


async def test_a_defect_costs_one_answer_and_not_those_that_follow(
    state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = Outcomes()

    async def broken(_: Kept | Unfit) -> bool:
        raise ValueError("a defect")

    async with keeper(state, outcomes) as books:
        one = deposit()
        object.__setattr__(one, "judge", broken)
        books.keep(one)
        books.keep(deposit(2))
    assert outcomes == {"failed": 1, "stored": 1}
    assert "a defect" in caplog.text


async def test_the_end_does_not_wait_for_a_store_that_hangs(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(state.answers, "put", silent)
    async with asyncio.timeout(5):
        async with keeper(state, Outcomes(), close_s=0.05) as books:
            books.keep(deposit())


async def test_uses_are_written_together(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[AnswerKey]] = []

    async def served(keys: list[AnswerKey]) -> None:
        told.append(sorted(keys))

    monkeypatch.setattr(state.answers, "served", served)
    async with keeper(state, Outcomes()) as books:
        for number in (1, 2, 1):
            books.served(key(number))
    assert told == [[key(1), key(1), key(2)]]
