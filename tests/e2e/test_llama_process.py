"""Real llama.cpp children: started, killed, frozen, stopped."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from nightfill.engines.backoff import BackoffPolicy
from nightfill.engines.llama import demo_model
from nightfill.engines.llama.api import LlamaApi
from nightfill.engines.llama.child_config import ChildConfig
from nightfill.engines.llama.process import LlamaProcess
from nightfill.engines.supervised import State
from nightfill.errors import EngineRefused, EngineStart, EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.e2e

CELLS = 16384
LONG = tuple(33 + n * n % 90 for n in range(12_000))
"""A prompt that takes a while."""
QUICK = BackoffPolicy(base_s=0.01, cap_s=0.05)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_model.ensure("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture
def config(model: Path, tmp_path: Path) -> ChildConfig:
    return ChildConfig(
        model=str(model), alias="demo", slot_save_path=str(tmp_path), n_ctx=2 * CELLS, n_parallel=2, n_batch=128
    )


@pytest.fixture
async def process(config: ChildConfig) -> AsyncIterator[LlamaProcess]:
    process = LlamaProcess(config, name="test", policy=QUICK)
    process.start()
    await process.ready(60)
    try:
        yield process
    finally:
        await process.aclose()


@pytest.fixture
async def api(process: LlamaProcess) -> AsyncIterator[LlamaApi]:
    api = LlamaApi.of(process)
    yield api
    await api.aclose()


def stat_of(pid: int) -> tuple[str, int]:
    """State letter and processor time in clock ticks, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[11]) + int(fields[12])


def stopped(pid: int) -> bool:
    """Whether every thread has taken note of SIGSTOP: each does so when it is next to run."""
    tasks = Path(f"/proc/{pid}/task")
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks.iterdir())


def gone(pid: int) -> bool:
    try:
        return stat_of(pid)[0] == "Z"  # dead, and waiting for its (adoptive) parent
    except FileNotFoundError:
        return True


def mapped_kib(pid: int | None, path: str) -> tuple[int, int]:
    """Resident and proportional size of a process's mappings of a file: shared pages count in part in the second."""
    rss = pss = 0
    mine = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mine = line.endswith(path)
        elif mine and line.startswith("Rss:"):
            rss += int(line.split()[1])
        elif mine and line.startswith("Pss:"):
            pss += int(line.split()[1])
    return rss, pss


async def eventually(holds: Callable[[], bool], *, within_s: float = 10) -> None:
    """For what the kernel alone knows and tells nobody."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_started_child_answers_and_says_what_it_runs(process: LlamaProcess, api: LlamaApi) -> None:
    assert await api.health()
    props = await api.props()
    assert (props.model_alias, props.total_slots, props.slot_tokens) == ("demo", 2, CELLS)
    assert [slot.is_processing for slot in await api.slots()] == [False, False]
    assert "llamacpp:" in await api.metrics_text()


async def test_no_request_is_served_without_the_key(process: LlamaProcess) -> None:
    stranger = LlamaApi.of(process)
    stranger._upstream._headers = {}
    try:
        with pytest.raises(EngineRefused) as refused:
            await stranger.slots()
        assert refused.value.status == 401
    finally:
        await stranger.aclose()


async def test_a_prefill_reports_each_batch_and_what_was_there_already(api: LlamaApi) -> None:
    seen: list[tuple[int, int]] = []
    first = await api.prefill(LONG[:1000], slot=1, on_progress=lambda done, total: seen.append((done, total)))
    assert (first.cached, first.computed) == (0, 1000)
    assert seen == sorted(seen)
    assert seen[-1] == (1000, 1000)
    assert len(seen) >= 1000 // 128
    second = await api.prefill(LONG[:1500], slot=1)
    assert (second.cached, second.computed) == (1000, 500)


async def test_a_cancelled_prefill_stops_soon_and_keeps_what_it_has(process: LlamaProcess, api: LlamaApi) -> None:
    reached = asyncio.Event()
    done = [0]

    def note(processed: int, total: int) -> None:
        done[0] = processed
        if processed >= 1000:
            reached.set()

    task = asyncio.create_task(api.prefill(LONG, slot=0, on_progress=note))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    at_cancel = done[0]
    async with asyncio.timeout(10):
        while any(slot.is_processing for slot in await api.slots()):
            pass
    resumed = await api.prefill(LONG[: at_cancel + 4000], slot=0)
    # What is under way when the connection closes is finished, and one batch more may have begun.
    assert at_cancel <= resumed.cached <= at_cancel + 8 * 128


async def test_a_saved_slot_outlives_kill_9_and_the_child_comes_back_by_itself(
    process: LlamaProcess, api: LlamaApi
) -> None:
    await api.prefill(LONG[:2000], slot=0)
    saved = await api.slot_save(0, "a.slot")
    assert saved.tokens == 2000
    pid, generation, key = process.pid, process.generation, process.api_key
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await process.until(lambda: process.generation > generation and process.state is State.READY, 30)
    assert process.pid != pid
    assert process.api_key == key
    assert gone(pid)
    assert await api.slot_restore(1, "a.slot") == 2000
    again = await api.prefill((*LONG[:2000], 40), slot=1)
    assert (again.cached, again.computed) == (2000, 1)
    await api.slot_erase(1)
    assert (await api.prefill((*LONG[:2000], 41), slot=1)).cached == 0


async def test_a_request_under_way_when_the_child_dies_fails_as_unavailable(
    process: LlamaProcess, api: LlamaApi
) -> None:
    started = asyncio.Event()
    task = asyncio.create_task(api.prefill(LONG, slot=0, on_progress=lambda *_: started.set()))
    await started.wait()
    pid, generation = process.pid, process.generation
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable):
        await task
    await process.until(lambda: process.generation > generation and process.state is State.READY, 30)
    assert (await api.prefill(LONG[:10], slot=0)).computed == 10


async def test_a_frozen_child_uses_no_processor_and_goes_on_when_thawed(
    process: LlamaProcess, api: LlamaApi, record_property: Callable[[str, object], None]
) -> None:
    started = asyncio.Event()
    prompt = LONG[:4000]
    task = asyncio.create_task(api.prefill(prompt, slot=0, on_progress=lambda *_: started.set()))
    await started.wait()
    pid = process.pid
    assert pid is not None
    began = time.perf_counter()
    process.freeze()
    process.freeze()
    while not stopped(pid):
        assert time.perf_counter() - began < 5
    record_property("freeze_latency_s", time.perf_counter() - began)
    ticks, clock_s = stat_of(pid)[1], process.clock()
    await asyncio.sleep(0.3)  # the span over which it is observed
    assert stat_of(pid) == ("T", ticks)
    assert process.clock() == clock_s
    assert not task.done()
    process.thaw()
    process.thaw()
    filled = await task
    assert filled.computed == len(prompt)


async def test_a_deadline_does_not_come_nearer_while_frozen(process: LlamaProcess) -> None:
    api = LlamaApi.of(process, first_byte_timeout_s=0.2, idle_timeout_s=0.2)
    try:
        process.freeze()
        task = asyncio.create_task(api.prefill(LONG[:500], slot=0))
        await asyncio.sleep(0.5)  # longer than the deadlines
        assert not task.done()
        process.thaw()
        filled = await task
        assert filled.computed == 500
        assert filled.seconds < 0.4
    finally:
        await api.aclose()


async def test_a_child_that_hangs_without_being_frozen_times_out(process: LlamaProcess) -> None:
    api = LlamaApi.of(process, first_byte_timeout_s=0.2)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(EngineTimeout):
            await api.prefill(LONG[:500], slot=0)
    finally:
        os.kill(pid, signal.SIGCONT)
        await api.aclose()


async def test_the_wish_to_be_frozen_outlives_a_restart(process: LlamaProcess) -> None:
    process.freeze()
    generation, pid = process.generation, process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await process.until(lambda: process.generation > generation and process.alive, 10)
    reborn = process.pid
    assert reborn is not None
    await eventually(lambda: stat_of(reborn)[0] == "T")
    process.thaw()
    await process.ready(30)
    assert stat_of(reborn)[0] != "T"


async def test_a_background_child_runs_at_idle_priority(config: ChildConfig, tmp_path: Path) -> None:
    process = LlamaProcess(msgspec.structs.replace(config, background=True), name="fill")
    process.start()
    try:
        await process.ready(60)
        pid = process.pid
        assert pid is not None
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_IDLE}
    finally:
        await process.aclose()


async def test_two_children_of_one_model_share_its_weights(process: LlamaProcess, config: ChildConfig) -> None:
    second = LlamaProcess(config, name="fill")
    second.start()
    try:
        await second.ready(60)
        for pid in (process.pid, second.pid):
            rss, pss = mapped_kib(pid, config.model)
            assert rss > 1000
            assert pss < 0.75 * rss
    finally:
        await second.aclose()


async def test_a_prompt_beyond_the_context_is_refused_with_the_figures(api: LlamaApi) -> None:
    with pytest.raises(EngineRefused, match=f"{CELLS + 1} tokens.*exceeds the available context size") as refused:
        await api.prefill((40,) * (CELLS + 1), slot=0)
    assert refused.value.status == 400
    assert (await api.prefill((40, 41), slot=0)).computed == 2


async def test_a_bad_model_surfaces_with_the_reason(config: ChildConfig) -> None:
    process = LlamaProcess(msgspec.structs.replace(config, model="/nowhere/m.gguf"), name="test", policy=QUICK)
    process.start()
    try:
        with pytest.raises(EngineStart, match=r"failed to load model '/nowhere/m.gguf'"):
            await process.ready(30)
        assert process.state is State.FAILED
        assert not process.alive
    finally:
        await process.aclose()


@pytest.mark.parametrize("frozen", [False, True])
async def test_closing_leaves_no_process_even_with_a_client_connected(config: ChildConfig, *, frozen: bool) -> None:
    process = LlamaProcess(config, name="test")
    process.start()
    await process.ready(60)
    api = LlamaApi.of(process)
    started = asyncio.Event()
    task = asyncio.create_task(api.prefill(LONG, slot=0, on_progress=lambda *_: started.set()))
    await started.wait()
    pid = process.pid
    assert pid is not None
    if frozen:
        process.freeze()
    await process.aclose()
    await process.aclose()
    assert not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240, PTH110
    assert (process.state, process.pid, process.alive) == (State.STOPPED, None, False)
    with pytest.raises(EngineUnavailable):
        await task
    with pytest.raises(EngineUnavailable):
        await process.ready(1)
    await api.aclose()


PARENT = """
import asyncio, sys, msgspec
from nightfill.engines.llama.child_config import ChildConfig
from nightfill.engines.llama.process import LlamaProcess
async def main():
    process = LlamaProcess(msgspec.json.decode(sys.argv[1], type=ChildConfig), name="orphan")
    process.start()
    await process.ready(60)
    if sys.argv[2] == "frozen":
        process.freeze()
    print(process.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("mood", ["running", "frozen"])
async def test_a_child_does_not_outlive_a_parent_that_is_killed(config: ChildConfig, mood: str) -> None:
    text = msgspec.json.encode(config).decode()
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, text, mood, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert parent.stdout is not None
        pid = int(await asyncio.wait_for(parent.stdout.readline(), 60))
        assert not gone(pid)
    finally:
        parent.kill()
        await parent.wait()
    await eventually(lambda: gone(pid))


async def test_what_a_request_says_does_not_get_into_the_last_words(process: LlamaProcess, api: LlamaApi) -> None:
    secret = "xyzzy-secret"
    bodies = [
        f'{{"prompt": "{secret} \\x"}}',
        f'{{"prompt": "a", "grammar": "root ::= {secret} ("}}',
        f'{{"messages": [{{"role": "user", "content": "a"}}], "tools": [{{"{secret}": 1}}]}}',
    ]
    for body in bodies:
        path = "/v1/chat/completions" if "messages" in body else "/completion"
        async with api.stream(path, body.encode()) as stream:
            assert stream.status >= 400
            assert [chunk async for chunk in stream.chunks()]
    with pytest.raises(EngineRefused):
        await api.slot_restore(0, "missing.slot")
    await eventually(lambda: "missing.slot" in process.last_words)
    assert secret not in " ".join(process._words._lines)
