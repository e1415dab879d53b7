"""Distilling as a worker does it, from the context to the fill of its distilled version, in virtual time."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from fakes.background import T, house
from fakes.embedder import WordEmbedder
from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import now_s, until, virtual
from nightfill.config import DistilSettings
from nightfill.contexts.context import (
    Chat,
    Content,
    Context,
    ContextName,
    ContextOptions,
    FillState,
    Form,
    Message,
    Messages,
    MessagesSource,
    Text,
)
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.sleep.distil import DistilDuty, wanted
from nightfill.state.budgets import Period, Scope
from nightfill.state.jobs import JobKind, JobState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from fakes.background import House
    from nightfill.state.jobs import Job

REPO = ContextName("repo")
DISTIL = ContextOptions(distil=True)
SETTINGS = DistilSettings(min_tokens=100, ratio=4.0)


def sentence(number: int) -> str:
    return f"Pump number {number} was found to lift {number * 7} litres because its valve number {number} is open."


TEXT = " ".join(map(sentence, range(40)))


def distilling(h: House, settings: DistilSettings = SETTINGS, *, by_model: bool = False) -> WordEmbedder:
    embedder = WordEmbedder()
    h.duties = [
        DistilDuty(
            h.state, settings, embed=lambda: embedder.embed, by_model=by_model, clock=h.wall, default_ttl_s=86400.0
        )
    ]
    return embedder


def small(h: House, replies: Callable[[str], str | int], *, speed_tps: float = 1e5) -> FakeFillEngine:
    """An engine whose context is too short to fill ours, and that is given sections of at most 1600 bytes."""
    return FakeFillEngine(store=h.store, log=h.log, replies=replies, context_length=1200, speed_tps=speed_tps)


async def distil_jobs(h: House) -> list[Job]:
    return [job for job in await h.state.jobs.jobs() if job.kind is JobKind.DISTIL]


async def made(h: House) -> tuple[Context, Content]:
    """The context with its distilled version, once it is there."""
    deadline_s = now_s() + 60
    while True:
        context = await h.state.book.get(T, REPO)
        if context is not None and context.distilled is not None:
            content = await h.state.book.content(T, context.distilled)
            assert content is not None
            return context, content
        assert now_s() < deadline_s, [(job.state, job.error, job.note) for job in await distil_jobs(h)]
        await asyncio.sleep(0.1)


async def distilled(h: House) -> tuple[Context, str]:
    context, content = await made(h)
    assert isinstance(content, Text)
    return context, content.text


def first_words(count: int) -> Callable[[str], str]:
    """A model that says the first words of what it is given to shorten."""

    def reply(said: str) -> str:
        return " ".join(said.split("-----\n")[1].split()[:count])

    return reply


@virtual
async def test_a_long_context_is_distilled_and_then_filled_in_both_versions(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        distilling(h)
        await h.put(TEXT, options=DISTIL)
        async with h.working():
            context, text = await distilled(h)
            await until(lambda: len(h.store.stored) == 2, within_s=60, step_s=0.1)
            await asyncio.sleep(3)
        assert 0 < len(text) <= len(TEXT) / 4
        assert set(text.split(". ")) <= set(TEXT.split(". ")) | {text.split(". ")[-1]}
        fills = {fill.key.fingerprint: fill for fill in await h.state.book.fills(T)}
        assert {version: fill.state for version, fill in fills.items()} == dict.fromkeys(
            context.versions, FillState.READY
        )
        (job,) = await distil_jobs(h)
        assert (job.state, job.note) == (
            JobState.DONE,
            f"by sentences of its own; {len(text):,} of {len(TEXT):,} bytes",
        )
        assert await h.state.jobs.outcomes(JobKind.DISTIL) == {"extractive": 1}


@virtual
async def test_a_new_version_drops_the_distilled_one_at_once_and_gets_its_own(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        distilling(h)
        before = await h.put(TEXT, options=DISTIL)
        async with h.working():
            old, _ = await distilled(h)
            changed = await h.put(TEXT.replace("Pump", "Crane"))
            assert changed.distilled is None
            assert old.distilled is not None
            assert await h.state.book.content(T, old.distilled) is None
            new, text = await distilled(h)
        assert new.current != before.current
        assert "Crane" in text
        assert "Pump" not in text


@virtual
async def test_what_is_being_distilled_of_a_replaced_version_is_thrown_away(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        embedder = distilling(h)
        await h.put(TEXT, options=DISTIL)
        h.board.enter()
        async with h.working():
            await asyncio.sleep(5)
            assert embedder.calls == []
            await h.put(TEXT.replace("Pump", "Crane"))
            h.board.leave()
            _, text = await distilled(h)
            await asyncio.sleep(1)
        assert "Pump" not in text
        states = sorted(job.state for job in await distil_jobs(h))
        assert states == [JobState.CANCELLED, JobState.DONE]


def test_only_long_contexts_that_ask_for_it_are_distilled() -> None:
    def context(**changes: object) -> Context:
        fields = {
            "tenant": T, "name": REPO, "source": MessagesSource(), "forms": (Form.CHAT,), "pinned": False,
            "ttl_s": None, "current": fingerprint_of(Text("x")), "content_bytes": 400, "created_at_s": 0.0,
            "updated_at_s": 0.0, "checked_at_s": 0.0, "options": DISTIL,
        }  # fmt: skip
        return Context(**{**fields, **changes})  # type: ignore[arg-type]

    assert wanted(context(), SETTINGS)
    assert not wanted(context(content_bytes=399), SETTINGS)
    assert not wanted(context(options=ContextOptions()), SETTINGS)
    assert wanted(context(options=ContextOptions()), DistilSettings(enabled=True, min_tokens=100))
    assert not wanted(context(options=ContextOptions(distil=False)), DistilSettings(enabled=True, min_tokens=100))
    assert not wanted(context(source=MessagesSource(chat=Chat())), SETTINGS)


@virtual
async def test_live_requests_go_before_each_few_sentences(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        embedder = distilling(h)
        await h.put(TEXT, options=DISTIL)
        async with h.working():
            await until(lambda: len(embedder.calls) > 0, within_s=60, step_s=0.01)
            h.board.enter()
            await asyncio.sleep(1)
            seen = len(embedder.calls)
            await asyncio.sleep(10)
            assert len(embedder.calls) == seen
            h.board.leave()
            await distilled(h)


@virtual
async def test_messages_are_shortened_one_by_one_and_short_ones_stay(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        distilling(h)
        content = Messages((Message("system", "Be kind."), Message("user", TEXT)))
        await h.state.book.put(
            tenant=T, name=REPO, source=MessagesSource(), content=content, fingerprint=fingerprint_of(content),
            forms=[Form.CHAT], options=DISTIL,
        )  # fmt: skip
        async with h.working():
            _, short = await made(h)
        assert isinstance(short, Messages)
        assert short.messages[0] == content.messages[0]
        assert len(short.messages[1].content) <= len(TEXT) / 4


@virtual
async def test_what_cannot_be_made_shorter_is_given_up_with_the_reason(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        distilling(h)
        content = Messages(tuple(Message("user", sentence(number)) for number in range(100)))
        await h.state.book.put(
            tenant=T, name=REPO, source=MessagesSource(), content=content, fingerprint=fingerprint_of(content),
            forms=[Form.CHAT], options=DISTIL,
        )  # fmt: skip
        async with h.working():
            await asyncio.sleep(20)
        (job,) = await distil_jobs(h)
        assert (job.state, job.error.split(":")[0]) == (JobState.DEAD, "not shorter")


# --- by a model ---


@virtual
async def test_a_model_writes_each_section_and_its_work_is_charged(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        distilling(h, by_model=True)
        h.make_engine = lambda house: small(house, first_words(60))
        await h.put(TEXT, options=DISTIL)
        async with h.working():
            _, text = await distilled(h)
            await asyncio.sleep(1)
        assert text.startswith("Pump number 0 was found")
        (job,) = await distil_jobs(h)
        assert job.note.startswith("by a model: 3 of 3 sections")
        assert await h.state.jobs.outcomes(JobKind.DISTIL) == {"model": 1}
        assert len(h.log.calls) == 3
        lines = await h.state.ledger.lines(since_day=0, until_day=10**6, tenant=T)
        # Of each request 5 tokens of the question and 10 of the reply; then the fill and the token of its proof.
        assert sum(line.background_tokens for line in lines) == 3 * (5 + 10) + len(text) + 1 + 1


@virtual
async def test_sections_that_a_model_spoils_are_shortened_by_their_own_sentences(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        distilling(h, by_model=True)
        good = first_words(60)

        def reply(said: str) -> str | int:
            return good(said) if "part 1 of" in said else 400

        h.make_engine = lambda house: small(house, reply)
        await h.put(TEXT, options=DISTIL)
        async with h.working():
            _, text = await distilled(h)
            await asyncio.sleep(1)
        assert await h.state.jobs.outcomes(JobKind.DISTIL) == {"mixed": 1}
        assert len(text) <= len(TEXT) / 3
        assert text.startswith("Pump number 0 was found")
        assert len(text) > len(good("-----\n" + TEXT))


@virtual
async def test_a_job_that_is_begun_again_does_not_ask_for_what_was_written(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        distilling(h, by_model=True)
        h.make_engine = lambda house: small(house, first_words(60), speed_tps=20.0)
        await h.put(TEXT, options=DISTIL)
        async with h.working("w1"):
            await until(lambda: len(h.log.calls) == 2, within_s=600, step_s=0.1)
        assert (await h.state.book.contexts())[0].distilled is None
        h.make_engine = lambda house: small(house, first_words(60))
        async with h.working("w2"):
            await distilled(h)
        asked = [bytes(call.body["messages"]) for call in h.log.calls]
        assert len(set(asked)) == 3
        assert asked.count(asked[0]) == 1, "the first section was there"
        assert len(asked) <= 4, "at most the one under way was asked for again"


@virtual
async def test_without_budget_it_waits_until_there_is_some(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        distilling(h, by_model=True)
        h.make_engine = lambda house: small(house, first_words(60))
        scope = Scope(T)
        await h.state.budgets.set_limit(scope, Period.DAY, 100)
        await h.put(TEXT, options=DISTIL)
        async with h.working():
            await asyncio.sleep(30)
            assert await distil_jobs(h) == []
            await h.state.budgets.set_limit(scope, Period.DAY, 1_000_000)
            await distilled(h)


@virtual
async def test_without_what_chooses_sentences_the_job_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nightfill.contexts.distil", None)
    async with house(tmp_path) as h:
        distilling(h, by_model=True)
        h.make_engine = lambda house: small(house, lambda _: "nonsense")
        await h.put(TEXT, options=DISTIL)
        async with h.working():
            await asyncio.sleep(20)
        (job,) = await distil_jobs(h)
        assert job.state is JobState.DEAD
        assert "extra `answers`" in job.error
