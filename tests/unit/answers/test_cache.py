from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from nightfill.answers.cache import AnswerCache
from nightfill.answers.look import Result
from nightfill.answers.question import Question
from nightfill.contexts.context import DEFAULT_TENANT
from nightfill.errors import StateUnavailable
from nightfill.state.answers import Answer, AnswerKey, AnswerScope, Origin
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

QUESTION = Question(key=AnswerKey(b"k" * 32), scope=AnswerScope(b"s" * 32), text=None)
ANSWER = Answer(
    key=QUESTION.key,
    scope=QUESTION.scope,
    tenant=DEFAULT_TENANT,
    context=None,
    fingerprint=None,
    model="m",
    question="",
    body=b"{}",
    origin=Origin.LIVE,
    at_s=0,
    ttl_s=60,
)


async def test_a_store_that_failed_is_left_alone_for_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, asked = 100.0, 0

    async def away(_: AnswerKey) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.Event().wait()
        raise StateUnavailable("gone")

    async with open_state(tmp_path / "state.db") as state:
        await state.answers.put(ANSWER)
        cache = AnswerCache(state.answers, steady=lambda: now_s)
        with monkeypatch.context() as patch:
            patch.setattr(state.answers, "get", away)
            for _ in range(5):
                found, look = await cache.exact(QUESTION, max_age_s=None, began_s=0)
                assert (found, look.result) == (None, Result.FAILED)
            assert asked == 1
            now_s += 1.0
            assert (await cache.exact(QUESTION, max_age_s=None, began_s=0))[1].result is Result.FAILED
            assert asked == 2
        now_s += 1.0
        found, look = await cache.exact(QUESTION, max_age_s=None, began_s=0)
    assert look.result is Result.HIT
    assert found is not None
    assert found.answer.body == b"{}"


async def test_an_answer_of_tomorrow_is_no_younger_than_now(tmp_path: Path) -> None:
    async with open_state(tmp_path / "state.db") as state:
        await state.answers.put(ANSWER)
        found, _ = await AnswerCache(state.answers, clock=lambda: 0.0).exact(QUESTION, max_age_s=0, began_s=0)
    assert found is not None
    assert found.age_s == 0
