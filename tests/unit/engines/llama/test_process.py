"""With a stand-in for the child that keeps its side of the protocol, or breaks it as told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from nightfill.engines.backoff import BackoffPolicy
from nightfill.engines.llama.child_config import ChildConfig
from nightfill.engines.llama.process import LlamaProcess
from nightfill.engines.supervised import State
from nightfill.errors import EngineStart, EngineTimeout, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Make = Callable[..., Awaitable[LlamaProcess]]

QUICK = BackoffPolicy(base_s=0.01, cap_s=0.02, max_start_failures=3)

CHILD = """
import json, os, signal, sys, time
config = json.loads(sys.stdin.readline())
mood = config["model"]
def say(**line):
    print(json.dumps(line), flush=True)
with open(config["slot_save_path"] + "/starts", "a") as file:
    file.write(json.dumps([os.getpid(), config["api_key"], config["parent_pid"] == os.getppid()]) + "\\n")
with open(config["slot_save_path"] + "/starts") as file:
    starts = len(file.readlines())
if mood == "fails" or (mood == "fails twice" and starts <= 2):
    print("no such model", file=sys.stderr, flush=True)
    sys.exit(3)
if mood == "babbles":
    print("hello", flush=True)
say(type="armed", scheduling="normal")
if mood == "slow":
    time.sleep(0.2)
if mood == "hangs":
    time.sleep(60)
if mood == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
say(type="listening", port=40000 + starts)
if mood == "stubborn":
    time.sleep(60)
if mood == "falls once" and starts == 1:
    print("0.0 E llama_decode: out of memory", file=sys.stderr, flush=True)
    sys.exit(7)
for line in sys.stdin:
    order = json.loads(line)["type"]
    if mood == "deaf":
        time.sleep(60)
    if mood == "dies of " + order:
        print("no room for it", file=sys.stderr, flush=True)
        sys.exit(3)
    say(**{"type": "released"} if order == "release" else {"type": "listening", "port": 50000})
"""


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    made: list[LlamaProcess] = []

    async def make(mood: str, *, start_timeout_s: float = 30, again: bool = True) -> LlamaProcess:
        process = LlamaProcess(
            ChildConfig(model=mood, slot_save_path=str(tmp_path), n_ctx=1),
            name="e1",
            policy=QUICK,
            start_timeout_s=start_timeout_s,
            command=(sys.executable, "-S", str(script)),
            again=again,
        )
        made.append(process)
        process.start()
        return process

    yield make
    for process in made:
        await process.aclose()


def starts(folder: Path) -> list[str]:
    return (folder / "starts").read_text().splitlines()


async def test_a_child_is_told_its_parent_and_its_key_and_tells_its_port(make: Make, tmp_path: Path) -> None:
    process = await make("works")
    assert process.state is State.STARTING
    with pytest.raises(EngineUnavailable, match="is starting"):
        _ = process.url
    await process.ready(30)
    assert process.url == "http://127.0.0.1:40001"
    assert process.generation == 1
    assert starts(tmp_path) == [f'[{process.pid}, "{process.api_key}", true]']


async def test_a_child_inherits_no_socket(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        process = await make("works")
        await process.ready(30)
        folder = f"/proc/{process.pid}/fd"
        targets = {os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)}  # noqa: PTH115, PTH208
        assert f"socket:[{os.fstat(listening.fileno()).st_ino}]" not in targets


async def test_starting_twice_starts_one_child(make: Make, tmp_path: Path) -> None:
    process = await make("works")
    process.start()
    await process.ready(30)
    assert len(starts(tmp_path)) == 1


async def test_a_child_that_ends_is_started_again_on_its_new_port(make: Make) -> None:
    process = await make("falls once")
    await process.until(lambda: process.generation == 2 and process.state is State.READY, 30)
    assert process.url == "http://127.0.0.1:40002"
    assert "out of memory; ended with status 7" in process.last_words


async def test_a_start_that_fails_at_first_is_tried_again(make: Make) -> None:
    process = await make("fails twice")
    await process.ready(30)
    assert process.generation == 3


async def test_a_child_that_never_starts_is_given_up_with_its_last_words(make: Make, tmp_path: Path) -> None:
    process = await make("fails")
    with pytest.raises(EngineStart, match=r"engine e1: could not be started: .*no such model; ended with status 3"):
        await process.ready(30)
    assert (process.state, process.pid, process.alive, len(starts(tmp_path))) == (State.FAILED, None, False, 3)
    process.start()  # somebody has put things right, and says so
    with pytest.raises(EngineStart):
        await process.ready(30)
    assert len(starts(tmp_path)) == 6


async def test_a_child_that_breaks_the_protocol_is_ended(make: Make) -> None:
    process = await make("babbles")
    with pytest.raises(EngineStart, match="said something else than its port"):
        await process.ready(30)


async def test_a_child_that_does_not_come_up_in_time_is_ended(make: Make) -> None:
    process = await make("hangs", start_timeout_s=0.3)
    with pytest.raises(EngineStart, match=r"not up after 0\.3 s"):
        await process.ready(30)
    assert not process.alive


async def test_waiting_for_a_child_has_a_deadline(make: Make) -> None:
    process = await make("hangs")
    with pytest.raises(EngineTimeout, match=r"starting for over 0\.01 s"):
        await process.ready(0.01)


async def test_a_fault_of_our_own_in_the_supervision_surfaces_instead_of_hanging(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightfill.engines.supervised.after_exit", None)
    process = await make("fails")
    with pytest.raises(EngineStart, match="supervision failed: TypeError"):
        await process.ready(30)


async def test_a_program_that_is_not_there_surfaces(tmp_path: Path) -> None:
    config = ChildConfig(model="m", slot_save_path=str(tmp_path), n_ctx=1)
    process = LlamaProcess(config, name="e1", policy=QUICK, command=("/nowhere/python",))
    process.start()
    with pytest.raises(EngineStart, match="cannot start a process: No such file"):
        await process.ready(30)
    await process.aclose()


async def test_a_child_that_ignores_both_its_input_and_sigterm_is_killed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nightfill.engines.llama.process._STOP_S", 0.1)
    process = await make("stubborn")
    await process.ready(30)
    pid = process.pid
    await process.aclose()
    assert not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240, PTH110


@pytest.mark.parametrize("mood", ["works", "hangs", "fails"])
async def test_closing_at_any_moment_leaves_no_child(make: Make, tmp_path: Path, mood: str) -> None:
    for yields in range(0, 40, 3):
        process = await make(mood)
        for _ in range(yields):
            await asyncio.sleep(0)
        pid = process.pid
        await process.aclose()
        assert (process.state, process.pid, process.alive) == (State.STOPPED, None, False)
        assert pid is None or not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240, PTH110


async def test_closing_from_a_task_that_is_cancelled_ends_the_child_all_the_same(make: Make) -> None:
    process = await make("works")
    await process.ready(30)
    pid = process.pid
    closing = asyncio.create_task(process.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await process.aclose()
    assert not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240, PTH110


async def test_a_child_lets_go_of_its_model_and_loads_it_again_elsewhere(make: Make, tmp_path: Path) -> None:
    process = await make("works", again=False)
    await process.ready(30)
    pid, generation = process.pid, process.generation
    await process.release()
    assert (process.state, process.pid) == (State.ASLEEP, pid)
    with pytest.raises(EngineUnavailable, match="is asleep"):
        _ = process.url
    with pytest.raises(EngineUnavailable, match="is asleep"):
        await process.ready(30)
    with pytest.raises(EngineUnavailable, match="is asleep"):
        await process.release()
    await process.load()
    assert (process.state, process.pid, process.url) == (State.READY, pid, "http://127.0.0.1:50000")
    assert process.generation > generation, "what slots held is gone"
    with pytest.raises(EngineUnavailable, match="is ready"):
        await process.load()
    assert len(starts(tmp_path)) == 1


async def test_a_child_that_does_not_let_go_in_time_is_told_of(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightfill.engines.llama.process._RELEASE_S", 0.1)
    process = await make("deaf", again=False)
    await process.ready(30)
    with pytest.raises(EngineTimeout, match=r"did not let go of its model within 0\.1 s"):
        await process.release()


async def test_a_child_that_ends_over_letting_go_is_not_started_again(make: Make, tmp_path: Path) -> None:
    process = await make("dies of release", again=False)
    await process.ready(30)
    with pytest.raises(EngineUnavailable, match="ended when it was to let go of its model: ended with status 3"):
        await process.release()
    assert (process.state, process.pid, len(starts(tmp_path))) == (State.FAILED, None, 1)


async def test_a_child_that_cannot_load_again_says_why(make: Make, tmp_path: Path) -> None:
    process = await make("dies of load", again=False)
    await process.ready(30)
    await process.release()
    with pytest.raises(EngineUnavailable, match=r"ended when it was to load its model: .*no room for it; ended with"):
        await process.load()
    assert (process.state, process.pid, len(starts(tmp_path))) == (State.FAILED, None, 1)


async def test_only_one_that_does_not_start_by_itself_is_put_to_sleep(make: Make) -> None:
    process = await make("works")
    await process.ready(30)
    with pytest.raises(AssertionError, match="by itself"):
        await process.release()


async def test_freezing_without_a_child_does_nothing_but_stop_the_clock(tmp_path: Path) -> None:
    process = LlamaProcess(ChildConfig(model="m", slot_save_path=str(tmp_path), n_ctx=1), name="e1")
    process.freeze()
    process.freeze()
    first = process.clock()
    await asyncio.sleep(0.01)
    assert process.clock() == first
    assert process.frozen
    process.thaw()
    process.thaw()
    assert first <= process.clock() < first + 0.01
    assert not process.frozen
    with pytest.raises(EngineUnavailable, match="is stopped"):
        await process.ready(1)


async def test_a_child_started_while_frozen_waits_and_its_start_is_not_timed_out(make: Make) -> None:
    process = await make("slow", start_timeout_s=0.6)
    process.freeze()
    with pytest.raises(EngineTimeout):
        await process.ready(0.8)
    assert process.alive
    process.thaw()
    await process.ready(30)
    assert process.generation == 1


async def test_a_signal_to_a_child_that_is_gone_harms_nobody(make: Make) -> None:
    process = await make("works")
    await process.ready(30)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # a watcher's thread was quicker
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  # dead now, and the loop does not know
    process.freeze()
    process.thaw()
    await process.until(lambda: process.generation == 2 and process.state is State.READY, 30)
