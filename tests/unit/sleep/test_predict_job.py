"""Foreseeing as a worker does it, from the question that was asked to the answer that is stored, in virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.background import T, house
from fakes.embedder import WordEmbedder
from fakes.fill_engine import SIGNATURE, FakeFillEngine
from fakes.virtual_time import now_s, until, virtual
from nightfill.answers.question import Questions
from nightfill.answers.reply import words_of
from nightfill.config import AnswerSettings, Duration, ForeseeSettings
from nightfill.contexts.context import ContextName, ContextOptions, Fill, FillState
from nightfill.errors import BadSetting
from nightfill.sleep.answer_job import BATCH, Answering
from nightfill.sleep.answer_request import Requests
from nightfill.sleep.gatekeeper import Gatekeeper
from nightfill.sleep.predict_context import Foresight, Target
from nightfill.sleep.predict_job import Predicting, queue_prediction, target_of
from nightfill.state.answers import Asked, Origin
from nightfill.state.budgets import Period, scopes_of
from nightfill.state.jobs import JobKind, JobState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fakes.background import House
    from nightfill.answers.embed import Embedder
    from nightfill.state.jobs import Job

WANTED = ContextOptions(answers="near", foresee=True)
TEXT = "word " * 100
REPO = ContextName("repo")


def foresight(
    h: House,
    *,
    sources: str = "log",
    per_context: int = 50,
    every_s: float = 1.0,
    load: Callable[[], Embedder] | None = None,
) -> Foresight:
    settings = ForeseeSettings(sources=tuple(sources.split()), per_context=per_context, every_s=Duration(every_s))  # type: ignore[arg-type]
    requests = Requests(Questions(max_temperature=0.3), settings)
    return Foresight(h.state, requests, answers=AnswerSettings(), settings=settings, load=load, clock=h.wall)


def foreseeing(h: House, **options: object) -> Foresight:
    sees = foresight(h, **options)  # type: ignore[arg-type]
    predicting = Predicting(sees, clock=h.wall)
    h.duties = [predicting, Answering(sees, again=predicting.again)]
    return sees


async def ask(h: House, *texts: str, name: ContextName = REPO) -> None:
    await h.state.questions.note(T, name, [Asked(text=text, at_s=h.wall()) for text in texts])


async def jobs(h: House, kind: JobKind) -> list[Job]:
    return [job for job in await h.state.jobs.jobs() if job.kind is kind]


async def stored(h: House, origin: Origin = Origin.LOG, *, name: ContextName = REPO) -> int:
    counts = await h.state.answers.counts(T, name)
    return counts[origin].stored if origin in counts else 0


async def prepared(h: House, count: int, origin: Origin = Origin.LOG) -> None:
    deadline_s = now_s() + 3600
    while await stored(h, origin) < count:
        assert now_s() < deadline_s, f"{await stored(h, origin)} answers, and not {count}"
        await asyncio.sleep(0.1)


async def settled(h: House) -> None:
    """All jobs at their end, for a while."""
    deadline_s, quiet = now_s() + 3600, 0
    while quiet < 20:
        open_jobs = await h.state.jobs.jobs(states=(JobState.QUEUED, JobState.LEASED))
        quiet = 0 if open_jobs else quiet + 1
        assert now_s() < deadline_s, open_jobs
        await asyncio.sleep(0.2)


@virtual
async def test_a_question_that_was_asked_is_answered_before_it_is_asked_again(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        sees = foreseeing(h)
        context = await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?")
        async with h.working():
            await prepared(h, 1)
            await settled(h)
        question = sees.requests.question(context, "How does it work?", await FakeFillEngine().describe())
        assert question is not None
        answer = await h.state.answers.get(question.key)
        assert answer is not None
        assert words_of(answer.body) == ["About How does it work?"]
        assert (answer.origin, answer.fingerprint, answer.model, answer.question, answer.scope) == (
            Origin.LOG, context.current, "m", "How does it work?", question.scope,
        )  # fmt: skip
        assert msgspec.json.decode(answer.body)["usage"]["prompt_tokens_details"] == {"cached_tokens": 501}
        (call,) = h.log.calls
        assert call.prefix is not None
        assert len(call.prefix.tokens) == 501, "with the filled KV in front"
        (job,) = await jobs(h, JobKind.ANSWER)
        assert (job.state, job.note) == (JobState.DONE, "1 answers prepared, 0 left")


@virtual
async def test_what_is_computed_for_answers_is_charged_to_the_contexts_budget_once(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)
        await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?", "What does it cost?")
        async with h.working():
            await prepared(h, 2)
            await settled(h)
        spent = {job.kind: job for job in await h.state.jobs.jobs()}
        assert spent[JobKind.ANSWER].reserved_tokens == 0
        lines = await h.state.ledger.lines(since_day=0, until_day=10**6, tenant=T)
        # Of the fill 501 and the token of its proof; of each answer 5 tokens of its question and 10 of its own.
        assert sum(line.background_tokens for line in lines) == 501 + 1 + 2 * (5 + 10)
        assert all(line.reserved == 0 for line in await h.state.budgets.lines(scopes_of(T, "")))


@virtual
async def test_nothing_new_means_no_new_work(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)
        await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?")
        async with h.working():
            await prepared(h, 1)
            await settled(h)
            await asyncio.sleep(90)
            assert (len(await jobs(h, JobKind.PREDICT)), len(h.log.calls)) == (1, 1)
            await ask(h, "What does it cost?")
            await prepared(h, 2)
            await settled(h)
        assert (len(await jobs(h, JobKind.PREDICT)), len(h.log.calls)) == (2, 2)


@pytest.mark.parametrize(
    "options",
    [None, ContextOptions(answers="near"), ContextOptions(foresee=True), ContextOptions(answers="off", foresee=True)],
)
@virtual
async def test_nobody_is_foreseen_for_who_did_not_ask_for_it(tmp_path: Path, options: ContextOptions | None) -> None:
    async with house(tmp_path) as h:
        foreseeing(h, sources="log structure model")
        await h.put(f"# Installing it\n{TEXT}", options=options)
        await ask(h, "How does it work?")
        async with h.working():
            await asyncio.sleep(30)
        assert {job.kind for job in await h.state.jobs.jobs()} == {JobKind.FILL}


@virtual
async def test_the_text_and_the_model_are_sources_too(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        sees = foreseeing(h, sources="structure model")

        def replies(question: str) -> str:
            return "1. What is in the word?\n2. nonsense" if question == sees.list_prompt else "so"

        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, replies=replies)
        context = await h.put(f"# Word counter\n{TEXT}", options=WANTED)
        async with h.working():
            await prepared(h, 1, Origin.MODEL)
            await settled(h)
        assert await stored(h, Origin.STRUCTURE) == 1
        assert len(h.log.calls) == 3, "the list is asked for once"
        listed = sees.list_question(context, await FakeFillEngine().describe())
        assert listed is not None
        kept = await h.state.answers.get(listed.key)
        assert kept is not None
        assert kept.question == "", "no near request may get it"


@virtual
async def test_what_other_contexts_of_the_tenant_were_asked_is_foreseen(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        sees = foresight(h)
        for name in ("one", "two"):
            await h.put(f"{TEXT} {name}", name=name, options=WANTED)
            await ask(h, "Summarize the whole meeting.", f"who is {name}", name=ContextName(name))
        context = await h.put(TEXT, options=WANTED)
        content = await h.state.book.content(T, context.current)
        assert content is not None
        found = await sees.foreseen(context, content, await FakeFillEngine().describe())
        assert found is not None
        assert [one.candidate.text for one in found] == ["Summarize the whole meeting."]


@virtual
async def test_questions_are_embedded_a_few_at_a_time_while_no_live_request_is_in_flight(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        embedder = WordEmbedder()
        sees = foresight(h, load=lambda: embedder)
        context = await h.put(TEXT, options=WANTED)
        await ask(h, *(f"what is the meaning of part {number}" for number in range(40)))
        content = await h.state.book.content(T, context.current)
        assert content is not None
        engine, stop = await FakeFillEngine().describe(), asyncio.Event()
        gate = Gatekeeper(h.board, h.settings, stop=stop, clock=now_s)
        h.board.enter()
        looking = asyncio.create_task(sees.foreseen(context, content, engine, gate=gate))
        await asyncio.sleep(5)
        assert embedder.calls == []
        h.board.leave()
        found = await looking
        assert found is not None
        assert len(found) == 40
        assert [len(call) for call in embedder.calls] == [16, 16, 8], "those that are chosen are known by then"
        h.board.enter()
        looking = asyncio.create_task(sees.foreseen(context, content, engine, gate=gate))
        await asyncio.sleep(1)
        stop.set()
        assert await looking is None


@virtual
async def test_without_the_embedding_the_same_words_are_one_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> Embedder:
        raise BadSetting("near answers need onnxruntime", param="answers.mode")

    async with house(tmp_path) as h:
        sees = foresight(h, load=missing)
        context = await h.put(TEXT, options=WANTED)
        await ask(h, "What is it?", "what is it", "What is that?")
        content = await h.state.book.content(T, context.current)
        assert content is not None
        for _ in range(2):
            found = await sees.foreseen(context, content, await FakeFillEngine().describe())
            assert found is not None
            assert len(found) == 2
        assert caplog.text.count("onnxruntime") == 1, "told once"


@virtual
async def test_a_long_list_is_answered_in_batches(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)
        await h.put(TEXT, options=WANTED)
        await ask(h, *(f"what is the meaning of part {number}" for number in range(BATCH + 3)))
        async with h.working():
            await prepared(h, BATCH + 3)
            await settled(h)
        notes = sorted(job.note for job in await jobs(h, JobKind.ANSWER))
        assert notes == [f"{BATCH} answers prepared, 3 left", "3 answers prepared, 0 left"]
        assert len(h.log.calls) == BATCH + 3


@virtual
async def test_no_more_answers_than_the_quota_are_prepared(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h, per_context=2)
        await h.put(TEXT, options=WANTED)
        await ask(h, *(f"what is the meaning of part {number}" for number in range(9)))
        async with h.working():
            await prepared(h, 2)
            await settled(h)
        assert await stored(h) == 2


@virtual
async def test_a_quota_of_nothing_queues_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h, per_context=0)
        await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?")
        async with h.working():
            await asyncio.sleep(30)
        assert await jobs(h, JobKind.PREDICT) == []


@virtual
async def test_live_requests_come_before_foreseen_ones(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, freezes=False, speed_tps=20.0)
        await h.put("word " * 4, options=WANTED)
        await ask(h, "How does it work?")
        async with h.working():
            await until(lambda: bool(h.log.calls))
            for _ in range(3):
                await asyncio.sleep(0.3)
                h.board.enter()
                await asyncio.sleep(1.0)
                h.board.leave()
            await prepared(h, 1)
            await settled(h)
        late = [b for b in h.log.batches for begin, end in h.board.busy if b[1] > begin + 0.0045 and b[0] < end]
        assert late == []
        assert len(h.log.calls) > 1, "cut short, and asked again"


@virtual
async def test_a_worker_that_is_stopped_loses_nothing_and_the_next_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, speed_tps=20.0)
        await h.put("word " * 4, options=WANTED)
        await ask(h, *(f"what is the meaning of part {number}" for number in range(4)))
        async with h.working():
            await prepared(h, 2)
        done = await stored(h)
        assert 2 <= done < 4
        (job,) = await jobs(h, JobKind.ANSWER)
        assert (job.state, job.failures) == (JobState.QUEUED, 0)
        async with h.working("w2"):
            await prepared(h, 4)
            await settled(h)
        assert await stored(h) == 4, "none was made twice"
        lines = await h.state.ledger.lines(since_day=0, until_day=10**6, tenant=T)
        assert h.log.computed - 10 <= sum(line.background_tokens for line in lines) <= h.log.computed + 10


@virtual
async def test_a_job_that_is_cancelled_midway_ends_there(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, speed_tps=1.0)
        await h.put("word", options=WANTED)
        await ask(h, "How does it work?", "What does it cost?")
        async with h.working():
            await until(lambda: bool(h.log.calls))
            (job,) = await jobs(h, JobKind.ANSWER)
            assert await h.state.jobs.cancel(job.id)
            await asyncio.sleep(60)
        ended = await h.state.jobs.get(job.id)
        assert ended is not None
        assert (ended.state, ended.reserved_tokens, await stored(h), len(h.log.calls)) == (JobState.CANCELLED, 0, 0, 1)


@virtual
async def test_no_question_is_in_a_log_or_in_a_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with house(tmp_path) as h:
        foreseeing(h, sources="log structure model")
        await h.put(TEXT, options=WANTED)
        await ask(h, "How does Zyzzyx work?")
        async with h.working():
            await prepared(h, 1)
            await settled(h)
        assert "Zyzzyx" not in caplog.text
        assert "Zyzzyx" not in str(await h.state.jobs.jobs())
        assert caplog.text.count("answers prepared") == 1, "the log is looked at"


@virtual
async def test_an_engine_that_dies_is_replaced_and_the_answers_are_made(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)

        def make(h: House) -> FakeFillEngine:
            first = not h.engines
            return FakeFillEngine(store=h.store, log=h.log, dies_after=520 if first else None)

        h.make_engine = make
        await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?", "What does it cost?")
        async with h.working():
            await prepared(h, 2)
        assert (len(h.engines), await stored(h)) == (2, 2)


@virtual
async def test_an_engine_that_refuses_ends_the_job_and_is_not_asked_for_ever(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, replies=lambda _: 400)
        await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?")
        async with h.working():
            await settled(h)
            await asyncio.sleep(200)
        (job,) = await jobs(h, JobKind.ANSWER)
        assert job.state is JobState.DONE
        assert "status 400" in job.note
        assert len(h.log.calls) == h.settings.max_failures


@virtual
async def test_a_reply_that_cannot_be_stored_is_not_asked_for_again(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, replies=lambda _: "")
        await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?")
        async with h.working():
            await settled(h)
            await ask(h, "How does it work?")
            await asyncio.sleep(60)
        assert len(h.log.calls) == 1


@virtual
async def test_a_new_version_ends_what_was_foreseen_for_the_old_one(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        sees = foreseeing(h)
        old = await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?")
        async with h.working():
            await prepared(h, 1)
            await settled(h)
            new = await h.put(f"{TEXT} more", options=WANTED)
            await prepared(h, 2)
            await settled(h)
        engine = await FakeFillEngine().describe()
        keys = [sees.requests.question(one, "How does it work?", engine) for one in (old, new)]
        assert [await h.state.answers.get(key.key) is not None for key in keys if key] == [False, True]
        assert sees.wanted(new)


@virtual
async def test_a_job_whose_version_was_replaced_computes_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        sees = foreseeing(h)
        old = await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?")
        job = await queue_prediction(sees, old, await FakeFillEngine().describe(), priority=5.0)
        await h.put(f"{TEXT} more", options=ContextOptions(answers="off"))
        async with h.working():
            await asyncio.sleep(5)
        ended = await h.state.jobs.get(job.id)
        assert ended is not None
        assert (ended.state, h.log.calls) == (JobState.CANCELLED, [])


@virtual
async def test_who_has_no_budget_left_has_nothing_foreseen_until_there_is_more(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        foreseeing(h)
        await h.put(TEXT, options=WANTED)
        await ask(h, "How does it work?")
        (scope, *_) = scopes_of(T, "")
        await h.state.budgets.set_limit(scope, Period.DAY, 600)
        async with h.working():
            await settled(h)
            assert (await stored(h), len(h.log.calls)) == (0, 0)
            await h.state.budgets.set_limit(scope, Period.DAY, None)
            await prepared(h, 1)


def test_a_target_is_read_back_as_it_was_written() -> None:
    text = "default/" + "ab" * 32 + "/chat/" + "cd" * 32 + "/repo"
    assert str(Target.parse(text)) == text
    with pytest.raises(ValueError, match="unpack"):
        Target.parse("nonsense")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ForeseeSettings(), {"temperature": b"0", "max_tokens": b"512"}),
        (ForeseeSettings(temperature=0.0, max_tokens=0), {"temperature": b"0.0"}),
        (ForeseeSettings(temperature=None, max_tokens=9), {"max_tokens": b"9"}),
    ],
)
@virtual
async def test_a_request_says_what_is_configured_and_nothing_else(
    tmp_path: Path, settings: ForeseeSettings, said: dict[str, bytes]
) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        content = await h.state.book.content(T, context.current)
        fill = Fill(
            key=target_of(context, SIGNATURE).key,
            state=FillState.READY,
            tokens=(1, 2, 3),
            stored_tokens=2,
            filled_at_s=7.0,
            fill_seconds=1.0,
        )
        assert content is not None
        call = Requests(Questions(max_temperature=0.3), settings).call(context, content, fill, "Why is it so?", "m")
    members = {name: bytes(raw) for name, raw in call.body.items()}
    messages = msgspec.json.decode(members.pop("messages"))
    assert members.pop("model") == b'"m"'
    assert members == said
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[1]["content"] == "Why is it so?"
