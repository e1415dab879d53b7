"""The worker over a real state file and a made-up engine, in virtual time."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.background import SETTINGS, WALL_S, FakeUpkeep, House, T, house, key_of
from fakes.fill_engine import FakeFillEngine
from fakes.virtual_time import now_s, until, virtual
from nightfill.config import Duration
from nightfill.contexts.context import ContextName, Fill, FillKey, FillState, FolderSource, Signature, Text
from nightfill.engines.engine import Reuse
from nightfill.errors import SentToSleep
from nightfill.kv.key import salt_of
from nightfill.sleep.description import description_of
from nightfill.sleep.plan import Verdict
from nightfill.sleep.planner import Planner, plan_lines
from nightfill.state.jobs import JobKind, JobState, WorkerId
from nightfill.state.process import this_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TEXT = "x" * 3000


async def fill_in(house: House, key: FillKey, state: FillState = FillState.READY) -> Fill:
    """The fill, once it is so."""
    deadline_s = now_s() + 3600
    while True:
        fill = await house.state.book.fill(key)
        if fill is not None and fill.state is state:
            return fill
        assert now_s() < deadline_s, f"{fill and fill.state} and not {state}"
        await asyncio.sleep(0.05)


async def job_in(house: House, state: JobState) -> None:
    deadline_s = now_s() + 3600
    while [job.state for job in await house.state.jobs.jobs()] != [state]:
        assert now_s() < deadline_s
        await asyncio.sleep(0.05)


def engines(*, first: Callable[[FakeFillEngine], None]) -> Callable[[House], FakeFillEngine]:
    """Engines of which the first is not as it should be."""

    def make(house: House) -> FakeFillEngine:
        engine = FakeFillEngine(store=house.store, log=house.log)
        if len(house.engines) == 0:
            first(engine)
        return engine

    return make


@virtual
async def test_a_new_context_is_filled_and_proven(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        async with h.working():
            fill = await fill_in(h, key_of(context))
            await job_in(h, JobState.DONE)
        assert (fill.stored_tokens, len(fill.tokens)) == (3001, 3001)
        assert fill.fill_seconds == pytest.approx(3.0, rel=0.1)
        job = await h.one_job()
        assert (job.done_tokens, job.total_tokens, job.label) == (3001, 3001, "repo")
        assert h.log.fills == 1
        assert h.engines[0].closed
        note = await h.state.engines.get("local")
        assert note is not None
        assert description_of(note.body) == await FakeFillEngine().describe()


@virtual
async def test_no_engine_runs_while_there_is_nothing_to_fill(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        async with h.working():
            await asyncio.sleep(600)
        assert h.engines == []


@virtual
async def test_the_engine_ends_when_it_was_idle_and_comes_back_with_work(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.put(TEXT)
        async with h.working():
            await until(lambda: bool(h.engines) and h.engines[0].closed)
            context = await h.put(TEXT + "more")
            await fill_in(h, key_of(context))
            assert len(h.engines) == 2


@virtual
async def test_nothing_is_computed_while_a_live_request_is_in_flight(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        async with h.working():
            for _ in range(10):
                await asyncio.sleep(0.37)
                h.board.enter()
                await asyncio.sleep(0.25)
                h.board.leave()
            await fill_in(h, key_of(context))
        assert h.engines[0].frozen_times >= 3
        late = [
            batch
            for batch in h.log.batches
            for begin, end in h.board.busy
            if batch[1] > begin + 0.0045 and batch[0] < end
        ]
        assert late == []
        assert h.log.computed <= 3001 + 1, "freezing loses nothing"


@virtual
async def test_an_engine_that_cannot_freeze_has_its_slice_ended_and_keeps_what_it_did(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, freezes=False)
        h.board.ttft_s = 3.0
        context = await h.put(TEXT)
        async with h.working():
            for _ in range(10):
                await asyncio.sleep(0.4)
                h.board.enter()
                await asyncio.sleep(0.1)
                h.board.leave()
            await fill_in(h, key_of(context))
        late = [b for b in h.log.batches for begin, end in h.board.busy if b[1] > begin + 0.0045 and b[0] < end]
        assert late == []
        assert h.log.computed <= 3002


@virtual
async def test_a_frozen_fill_keeps_its_lease(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.computed > 600)
            h.board.enter()
            await asyncio.sleep(20 * SETTINGS.lease_s)
            assert h.engines[0].frozen
            assert await h.state.jobs.lease(WorkerId("thief"), kinds=[JobKind.FILL], lease_s=30) is None
            h.board.leave()
            await fill_in(h, key_of(context))
        assert (await h.one_job()).attempts == 1


@virtual
async def test_asked_to_stop_it_stores_what_it_has_and_gives_the_lease_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.computed >= 1500)
            asked_at_s = now_s()
        assert now_s() - asked_at_s < 1
        job = await h.one_job()
        assert (job.state, job.failures, job.lost, job.worker) == (JobState.QUEUED, 0, 0, None)
        fill = await h.state.book.fill(key_of(context))
        assert fill is not None
        assert (fill.state, fill.stored_tokens) == (FillState.FILLING, h.log.computed)
        async with h.working("w2"):
            await fill_in(h, key_of(context))
        assert h.log.computed <= 3002, "the second worker went on where the first had stopped"


@virtual
async def test_asked_to_stop_while_frozen_it_stores_and_leaves_too(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.computed >= 1700)
            h.board.enter()
            await asyncio.sleep(100)
            assert h.engines[0].frozen
            asked_at_s = now_s()
        assert now_s() - asked_at_s < 1
        assert not h.engines[0].frozen
        assert list(h.store.stored.values()) == [h.log.computed]


@virtual
async def test_a_store_too_slow_to_stop_for_is_not_waited_for(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, save_s=1000.0)
        await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.computed >= 100)
            asked_at_s = now_s()
        assert now_s() - asked_at_s < 10
        assert (await h.one_job()).state is JobState.QUEUED


@virtual
async def test_a_worker_cancelled_anywhere_gives_its_lease_back(tmp_path: Path) -> None:
    for n, after_s in enumerate([0.3, 0.8, 1.0, 2.0, 3.0, 4.02, 4.5]):
        (tmp_path / str(n)).mkdir()
        async with house(tmp_path / str(n)) as h:
            context = await h.put(TEXT)
            task = asyncio.create_task(h.worker().run(asyncio.Event()))
            await asyncio.sleep(after_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await h.state.jobs.holders() == [], after_s
            assert h.log.open_fills == 0
            async with h.working("w2"):
                await fill_in(h, key_of(context))


@virtual
async def test_a_dead_engine_is_replaced_and_the_fill_goes_on(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = engines(first=lambda engine: setattr(engine, "dies_after", 2000))
        context = await h.put(TEXT)
        async with h.working():
            await fill_in(h, key_of(context))
            await job_in(h, JobState.DONE)
        assert len(h.engines) == 2
        assert h.log.computed < 3001 + 600, "what was stored before was not computed again"
        assert (await h.one_job()).error == ""


@virtual
async def test_a_fill_whose_model_was_put_to_sleep_goes_back_and_nothing_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nightfill.sleep")
    async with house(tmp_path) as h:

        def put_to_sleep_midway(engine: FakeFillEngine) -> None:
            compute = engine.compute

            async def compute_once(tokens: int) -> None:
                engine.compute = compute  # type: ignore[method-assign]
                raise SentToSleep("was sent to sleep by hand", engine="local")

            engine.compute = compute_once  # type: ignore[method-assign]

        h.make_engine = engines(first=put_to_sleep_midway)
        context = await h.put(TEXT)
        async with h.working():
            await fill_in(h, key_of(context))
        job = await h.one_job()
        assert (job.failures, job.error, job.attempts) == (0, "", 2)
    assert "handed back at" in caplog.text
    assert "again in" not in caplog.text, "as after a failure"


@virtual
async def test_an_engine_that_always_dies_ends_in_a_dead_job_that_says_why(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, dies_after=10)
        await h.put(TEXT)
        async with h.working():
            await job_in(h, JobState.DEAD)
        job = await h.one_job()
        assert (job.failures, job.error) == (SETTINGS.max_failures, "engine local: the process is gone")


@virtual
async def test_a_full_disk_is_a_visible_failure_and_the_fill_goes_on_when_there_is_room(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.store.full = True
        context = await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.fills == 2)
            assert "no space left" in (await h.one_job()).error
            h.store.full = False
            await fill_in(h, key_of(context))


@virtual
async def test_a_fill_without_room_waits_for_as_long_as_it_takes(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.store.full = True
        context = await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.fills > 2 * SETTINGS.max_failures)
            await asyncio.sleep(60)
            (line,) = await plan_lines(
                h.state, [await FakeFillEngine().describe()], now_s=WALL_S + now_s(), default_ttl_s=1e9
            )
            assert line.verdict is Verdict.FILL
            assert line.why.startswith("waits, tried again in ")
            assert line.why.endswith("no room in the store: disk: no space left")
            h.store.full = False
            await fill_in(h, key_of(context))


@virtual
async def test_a_change_of_keys_goes_on_between_live_requests(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.upkeep = upkeep = FakeUpkeep(lambda _: {})
        upkeep.steps_left = 5
        await h.put(TEXT)
        h.board.enter()
        async with h.working():
            await asyncio.sleep(30)
            assert upkeep.renewed == []
            h.board.leave()
            await until(lambda: not upkeep.steps_left)
        assert {salts for _, salts in upkeep.renewed} == {frozenset({salt_of(T)})}


@virtual
async def test_a_save_that_hangs_does_not_keep_a_worker_and_its_job_goes_back(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, save_s=1e5)
        await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.computed > 0)
            await asyncio.sleep(10)
            told_s = now_s()
        assert now_s() - told_s < SETTINGS.grace_s
        job = await h.one_job()
        assert (job.state, job.failures, job.worker) == (JobState.QUEUED, 0, None)


@virtual
async def test_a_restore_that_is_not_used_is_never_called_ready(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, proves=False)
        context = await h.put("short")
        async with h.working():
            await job_in(h, JobState.DEAD)
        fill = await h.state.book.fill(key_of(context))
        assert fill is not None
        assert (fill.state, fill.reason) == (FillState.STALE, "restore not used: the engine reused 0 of 6 tokens")


@virtual
async def test_a_context_longer_than_the_models_is_given_up_at_once_with_words(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.put("x" * 12_000)
        async with h.working():
            await job_in(h, JobState.DEAD)
        job = await h.one_job()
        assert (job.attempts, job.error) == (1, "longer than the model's context (12,001 > 10,000 tokens)")
        assert h.log.computed == 0


@virtual
async def test_a_model_that_cannot_reuse_is_not_filled(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, reuse=Reuse.NONE)
        await h.put(TEXT)
        async with h.working():
            await asyncio.sleep(60)
        assert await h.state.jobs.jobs() == []


@virtual
async def test_a_version_replaced_midway_stops_its_fill_and_begins_the_new_one(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.computed > 700)
            context = await h.put("y" * 1000)
            await fill_in(h, key_of(context))
        assert {job.state for job in await h.state.jobs.jobs()} == {JobState.CANCELLED, JobState.DONE}
        assert [fill.key for fill in await h.state.book.fills()] == [key_of(context)]
        assert h.log.computed < 3000 + 1000


@virtual
async def test_a_deleted_context_is_not_filled_on(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.computed > 700)
            await h.state.book.delete(T, ContextName("repo"))
            await asyncio.sleep(60)
        assert h.log.computed < 2500
        assert await h.state.book.fills() == []
        assert (await h.one_job()).state is JobState.CANCELLED


@virtual
async def test_a_fill_finds_out_by_itself_that_its_version_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as h:
        await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.computed > 700)

            async def no_more_plans(*_: object) -> list[object]:
                return []

            monkeypatch.setattr(Planner, "tick", no_more_plans)
            await h.state.book.delete(T, ContextName("repo"))
            await job_in(h, JobState.CANCELLED)
        assert h.log.computed < 2500


@virtual
async def test_a_lost_lease_ends_the_work_at_once(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log, speed_tps=10.0)
        h.settings = msgspec.structs.replace(SETTINGS, plan_every_s=Duration(1e6))
        await h.put(TEXT)
        async with h.working():
            await until(lambda: h.log.computed > 60)
            job = await h.one_job()
            assert await h.state.jobs.cancel(job.id)
            await asyncio.sleep(SETTINGS.lease_s)
            computed = h.log.computed
            assert h.log.open_fills == 0
            await asyncio.sleep(5)
            assert h.log.computed == computed


@virtual
async def test_a_changed_source_makes_a_new_version_that_is_filled(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        await h.put("old", source=FolderSource(path="/srv/code"))
        h.sources[ContextName("repo")] = Text("old")
        async with h.working():
            await asyncio.sleep(15)
            h.sources[ContextName("repo")] = Text("new and longer")
            await asyncio.sleep(15)
            context = await h.state.book.get(T, ContextName("repo"))
            assert context is not None
            assert await h.state.book.content(T, context.current) == Text("new and longer")
            await fill_in(h, key_of(context))
            assert context.checked_at_s > WALL_S + 1000


@virtual
async def test_bytes_that_left_the_store_are_noticed_and_filled_again_at_the_next_use(tmp_path: Path) -> None:
    async with house(tmp_path) as h:

        def count(fills: Sequence[Fill]) -> dict[FillKey, int]:
            return {
                f.key: h.store.stored.get((f.tokens, salt), 0)
                for f in fills
                for _, salt in h.store.stored or [((), b"")]
            }

        h.upkeep = FakeUpkeep(count)
        context = await h.put(TEXT)
        async with h.working():
            await fill_in(h, key_of(context))
            h.store.stored.clear()
            evicted = await fill_in(h, key_of(context), FillState.EVICTED)
            assert (evicted.stored_tokens, evicted.reason) == (0, "its bytes left the store")
            await asyncio.sleep(300)
            assert h.log.fills == 1, "nobody asks for it"


@virtual
async def test_jobs_of_a_killed_worker_of_this_host_are_free_at_once(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        key = key_of(context)
        await h.state.jobs.enqueue(kind=JobKind.FILL, target=str(key), tenant=T, label="repo", priority=1.0)
        gone = WorkerId(this_worker().rsplit(":", 1)[0] + ":1")  # our pid, but of a process that began earlier
        assert await h.state.jobs.lease(gone, kinds=[JobKind.FILL], lease_s=1e6)
        async with h.working():
            await fill_in(h, key)
            await job_in(h, JobState.DONE)
        assert (await h.one_job()).attempts == 2


@virtual
async def test_a_job_whose_worker_was_killed_after_its_last_step_is_done(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        key = key_of(context)
        await h.state.jobs.enqueue(kind=JobKind.FILL, target=str(key), tenant=T, label="repo", priority=1.0)
        gone = WorkerId(this_worker().rsplit(":", 1)[0] + ":1")
        assert await h.state.jobs.lease(gone, kinds=[JobKind.FILL], lease_s=1e6)
        await h.state.book.put_fill(
            Fill(key=key, state=FillState.READY, tokens=(1,), stored_tokens=1, filled_at_s=0.0, fill_seconds=0.0)
        )
        async with h.working():
            await job_in(h, JobState.DONE)
        assert h.log.fills == 0


@virtual
async def test_a_job_for_another_model_is_dropped(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        key = key_of(context)
        other = FillKey(tenant=key.tenant, fingerprint=key.fingerprint, form=key.form, signature=Signature("0" * 64))
        job = await h.state.jobs.enqueue(kind=JobKind.FILL, target=str(other), tenant=T, label="repo", priority=1.0)
        async with h.working():
            await fill_in(h, key)
        after = await h.state.jobs.get(job.id)
        assert after is not None
        assert after.state is JobState.CANCELLED


@virtual
async def test_two_workers_fill_many_contexts_and_none_twice(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        contexts = [await h.put(f"{n}" * 1500, name=f"c{n}") for n in range(6)]
        other = House(state=h.state, board=h.board, store=h.store)
        async with h.working("w1"), other.working("w2"):
            for context in contexts:
                await fill_in(h, key_of(context))
        assert h.log.fills + other.log.fills == 6
        assert min(h.log.fills, other.log.fills) >= 1


@pytest.mark.parametrize("seed", range(12))
@virtual
async def test_whatever_dies_and_whenever_every_context_is_ready_at_last(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers are killed (nothing of theirs is cleaned up), engines die, live requests come, contents change."""
    chance = random.Random(seed)

    async def dead_workers_settle_nothing(*_: object) -> None:
        """As after kill -9: the lease stays until it expires."""

    async with house(tmp_path) as h:
        h.make_engine = lambda h: FakeFillEngine(
            store=h.store,
            log=h.log,
            freezes=chance.random() < 0.7,
            dies_after=chance.choice([None, 100, 700, 2500]),
            save_s=chance.choice([0.001, 0.1]),
        )
        names = ["a", "b", "c"]
        for name in names:
            await h.put(name * chance.randint(1, 4000), name=name)
        for kill in range(8):
            task = asyncio.create_task(h.worker(f"w{kill}").run(asyncio.Event()))
            for _ in range(chance.randint(0, 4)):
                await asyncio.sleep(chance.random())
                h.board.enter()
                await asyncio.sleep(chance.random() / 4)
                h.board.leave()
            if chance.random() < 0.4:
                name = chance.choice(names)
                await h.put(name * chance.randint(1, 4000), name=name)
            await asyncio.sleep(chance.random())
            with monkeypatch.context() as patch:
                patch.setattr("nightfill.sleep.worker.settle", dead_workers_settle_nothing)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        h.make_engine = lambda h: FakeFillEngine(store=h.store, log=h.log)
        async with h.working("last"):
            for context in await h.state.book.contexts():
                fill = await fill_in(h, key_of(context))
                assert fill.stored_tokens == len(fill.tokens)
                assert h.store.stored[fill.tokens, salt_of(T)] == len(fill.tokens)
        assert len(await h.state.book.fills()) == 3
        assert await h.state.jobs.holders() == []


@virtual
async def test_live_requests_do_not_stop_work_on_an_engine_that_serves_nobody(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.unshared = frozenset({"local"})
        context = await h.put(TEXT)
        h.board.enter()
        async with h.working():
            await fill_in(h, key_of(context))
        assert h.engines[0].frozen_times == 0


@virtual
async def test_a_fill_that_failed_on_one_engine_goes_to_the_next_one_that_computes_the_same(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        h.names = ("one", "two")
        h.make_engine = engines(first=lambda engine: setattr(engine, "dies_after", 500))
        context = await h.put(TEXT)
        async with h.working():
            await fill_in(h, key_of(context))
        assert len(h.engines) == 2, "the one that died is not started again for it"
        assert h.engines[0].dead


@virtual
async def test_an_engine_that_became_another_one_is_filled_for_as_that(tmp_path: Path) -> None:
    async with house(tmp_path) as h:
        context = await h.put(TEXT)
        other = Signature("cd" * 32)
        async with h.working():
            await fill_in(h, key_of(context))
            h.engines[0]._description = replace(h.engines[0]._description, signature=other)
            newer = await h.put(TEXT + "more")
            await fill_in(h, replace(key_of(newer), signature=other))
