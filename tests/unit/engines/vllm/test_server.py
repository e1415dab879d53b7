"""With a stand-in for the `vllm` program; the guard between it and us is the real one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest

from fakes.vllm_servers import MARK, PROGRAM, engine_of, gone, noted, server_of
from nightfill.config import ByteSize, EngineSettings, KvSettings, LaunchSettings, Settings, TierSettings
from nightfill.engines.last_words import LastWords
from nightfill.engines.supervised import State
from nightfill.engines.vllm import server as server_module
from nightfill.engines.vllm.api import VllmApi
from nightfill.engines.vllm.server import VllmServer, _free_port, _Log
from nightfill.engines.vllm.tree import SHARED_MEMORY, descendants
from nightfill.errors import EngineStart, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Make = Callable[..., Awaitable[VllmServer]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[VllmServer] = []

    async def make(mood: str, **given: Any) -> VllmServer:
        server = server_of(mood, tmp_path, **given)
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        await server.aclose()


async def test_a_server_is_reached_at_a_free_port_by_its_key_alone(make: Make, tmp_path: Path) -> None:
    server = await make("works")
    with pytest.raises(EngineUnavailable, match="is starting"):
        _ = server.url
    await server.ready(30)
    (start,) = noted(tmp_path, "starts")
    port = start["argv"][start["argv"].index("--port") + 1]
    assert server.url == f"http://127.0.0.1:{port}"
    assert start["argv"][start["argv"].index("--host") + 1] == "127.0.0.1"
    assert server.settings.api_key == server.api_key == start["env"]["VLLM_API_KEY"]
    assert server.api_key not in " ".join(start["argv"])
    assert start["env"]["VLLM_SERVER_DEV_MODE"] == "1"
    assert server.settings.model == "works"
    api = VllmApi(server.url, engine="v1", api_key=server.api_key)
    assert [model.id for model in await api.models()] == ["works"]
    await api.aclose()


async def test_a_server_sees_nothing_of_our_own_environment(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTFILL_GATEWAY__API_KEYS", '{"me": "secret"}')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    await (await make("works")).ready(30)
    environment = noted(tmp_path, "starts")[0]["env"]
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert not [name for name in environment if name.startswith("NIGHTFILL_")]


async def test_its_log_and_the_password_of_its_store_are_for_our_user_alone(tmp_path: Path) -> None:
    engine = engine_of("works", tmp_path)
    tier = TierSettings(kind="redis", max_bytes=ByteSize(1 << 30), url="redis://me:s3cret@127.0.0.1:1/0")
    server = VllmServer(Settings(engines=(engine,), kv=KvSettings(tiers=(tier,))), engine, data_dir=tmp_path)
    server.start()
    await server.ready(30)
    await server.aclose()
    folder = tmp_path / "engines"
    files = {file.name: file for file in folder.iterdir()}
    assert set(files) == {"v1.log", "v1.store"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files.values()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert "Loading" in files["v1.log"].read_text()
    assert "s3cret" in files["v1.store"].read_text()
    assert "s3cret" not in " ".join(noted(tmp_path, "starts")[0]["argv"])


async def test_a_name_that_is_a_path_stays_in_its_folder(tmp_path: Path) -> None:
    server = VllmServer(Settings(), EngineSettings(name="../../etc/x", kind="vllm", model="m"), data_dir=tmp_path)
    assert server.log == tmp_path / "engines" / ".._.._etc_x.log"


async def test_a_server_that_falls_is_started_again_and_says_why_without_a_request(make: Make, tmp_path: Path) -> None:
    server = await make("falls-once")
    await server.ready(30)
    (tmp_path / "fall").touch()
    await server.until(lambda: server.generation == 2 and server.state is State.READY, 30)
    assert "OutOfMemoryError: CUDA out of memory; ended with status 7" in server.last_words
    assert "secret" not in server.last_words
    assert str(server.log) in server.last_words


async def test_a_server_whose_fall_is_somebody_elses_affair_stays_down(make: Make, tmp_path: Path) -> None:
    server = await make("falls-once", again=False)
    await server.ready(30)
    (tmp_path / "fall").touch()
    await server.until(lambda: server.state is State.FAILED, 30)
    assert (server.generation, server.pid) == (1, None)


async def test_bad_flags_are_given_up_with_what_the_program_said(make: Make, tmp_path: Path) -> None:
    server = await make("fails", args=("--bogus",))
    with pytest.raises(EngineStart, match=r"unrecognized arguments: --bogus; ended with status 2 \(more in .*v1.log\)"):
        await server.ready(30)
    assert (len(noted(tmp_path, "starts")), server.alive) == (2, False)
    with pytest.raises(EngineStart, match="unrecognized arguments"):  # whoever asks need not wait
        _ = server.url


async def test_a_start_that_fails_once_is_tried_again(make: Make) -> None:
    server = await make("fails-once")
    await server.ready(30)
    assert server.generation == 2


async def test_a_server_that_does_not_answer_in_time_is_ended(make: Make, tmp_path: Path) -> None:
    server = await make("hangs", start_timeout_s=0.2, again=False)
    with pytest.raises(EngineStart, match=r"not up after 0\.2 s"):
        await server.ready(30)
    assert await gone([start["pid"] for start in noted(tmp_path, "starts")])


async def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    engine = EngineSettings(kind="vllm", model="m", launch=LaunchSettings(command=("/nowhere/vllm",)))
    server = VllmServer(Settings(), engine, data_dir=tmp_path, again=False)
    server.start()
    with pytest.raises(EngineStart, match="/nowhere/vllm: cannot be started: No such file or directory"):
        await server.ready(30)
    await server.aclose()


@pytest.mark.parametrize("status", [200, 401])
async def test_somebody_elses_server_at_the_port_is_not_taken_for_ours(
    make: Make, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        code = status if path == b"/v1/models" else 200
        writer.write(b'HTTP/1.1 %d x\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{"data":[]}' % code)
        await writer.drain()
        writer.close()

    stranger = await asyncio.start_server(answer, "127.0.0.1", 0)
    ports = iter([stranger.sockets[0].getsockname()[1], _free_port()])
    monkeypatch.setattr(server_module, "_free_port", lambda: next(ports))
    server = await make("hangs" if status == 200 else "works")
    server.start()
    await server.until(lambda: server.state is State.BACKOFF, 30)
    await server.until(lambda: "answers at port" in server.last_words or server.generation == 2, 30)
    assert "something else than the server that was started answers at port" in server.last_words
    stranger.close()
    await stranger.wait_closed()


async def test_a_server_without_a_key_is_refused(make: Make) -> None:
    server = await make("open", again=False)
    with pytest.raises(EngineStart, match="something else than the server"):
        await server.ready(30)


async def test_a_sleeping_server_has_no_address_for_requests(make: Make) -> None:
    server = await make("works")
    await server.ready(30)
    address = server.url
    server.fall_asleep()
    with pytest.raises(EngineUnavailable, match="is asleep"):
        _ = server.url
    assert server.base == address
    server.wake_up()
    assert server.url == address


FAILED_START = """\
(APIServer pid=1) INFO 11-21 20:58:00 [launcher.py:9] vLLM server version 0.32.0
W1121 20:58:01.894000 31739 torch/_library/triton.py:53] Triton not available
(EngineCore pid=2) ERROR 11-21 20:58:05 [core.py:1510] EngineCore failed to start.
(EngineCore pid=2) ERROR 11-21 20:58:05 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-21 20:58:05 [core.py:1510]   File "/vllm/v1/engine/core.py", line 1482, in run_engine_core
(EngineCore pid=2) ERROR 11-21 20:58:05 [core.py:1510]     engine_core = EngineCoreProc(*args)
(EngineCore pid=2) ERROR 11-21 20:58:05 [core.py:1510]                   ^^^^^^^^^^^^^^^^^^^^^
(EngineCore pid=2) ERROR 11-21 20:58:05 [core.py:1510] ValueError: No common block size for 16
(EngineCore pid=2) ERROR 11-21 20:58:05 [core.py:1510]
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above.
/lib/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: leaked shared_memory objects
  warnings.warn('resource_tracker: There appear to be %d '
"""


def test_of_a_failed_start_the_cause_is_kept_and_not_the_way_to_it() -> None:
    words = LastWords(server_module._TEXTLESS, server_module._DULL)
    words.feed(FAILED_START.encode())
    assert words.tail() == (
        "EngineCore failed to start.; ValueError: No common block size for 16; "
        "RuntimeError: Engine core initialization failed. See root cause above."
    )


# --- the end ---


async def test_a_server_is_told_to_end_in_order(make: Make, tmp_path: Path) -> None:
    server = await make("works")
    await server.ready(30)
    await server.aclose()
    assert noted(tmp_path, "calls") == ["SIGTERM"]
    assert (server.state, server.pid) == (State.STOPPED, None)
    await server.aclose()


async def test_what_ignores_the_order_is_killed_and_what_it_left_in_shared_memory_is_removed(
    make: Make, tmp_path: Path
) -> None:
    ours, shared = (SHARED_MEMORY / f"{name}_{MARK}" for name in ("psm", "nightfill"))
    server = await make("stubborn", stop_s=0.1)
    await server.ready(30)
    assert ours.exists()
    try:
        await server.aclose()
        pids = [noted(tmp_path, "starts")[0]["pid"], *noted(tmp_path, "children")]
        assert len(pids) == 2
        assert await gone(pids, within_s=0)
        assert not ours.exists()
        assert shared.exists(), "others use it"
    finally:
        shared.unlink()


async def test_what_a_fallen_server_leaves_is_killed(make: Make, tmp_path: Path) -> None:
    server = await make("breeds", again=False)
    await server.ready(30)
    (tmp_path / "fall").touch()
    await server.until(lambda: server.state is State.FAILED, 30)
    assert await gone(noted(tmp_path, "children"), within_s=0)


@pytest.mark.parametrize("mood", ["works", "hangs", "fails"])
async def test_closing_at_any_moment_leaves_no_process(make: Make, tmp_path: Path, mood: str) -> None:
    for yields in (0, 3, 9, 30):
        server = await make(mood)
        for _ in range(yields):
            await asyncio.sleep(0)
        pid = server.pid
        below = descendants(pid) if pid is not None else []
        await server.aclose()
        assert (server.state, server.pid) == (State.STOPPED, None)
        assert await gone([*below, *([pid] if pid is not None else [])], within_s=0)


OWNER = """
import asyncio, pathlib, sys
sys.path.insert(0, sys.argv[2])
from fakes.vllm_servers import server_of

async def main():
    server = server_of("works", pathlib.Path(sys.argv[1]))
    server.start()
    await server.ready(30)
    print(server.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["nightfill", "guard"])
async def test_the_server_ends_with_nightfill_and_with_its_guard_whatever_kills_them(
    tmp_path: Path, victim: str
) -> None:
    tests = str(PROGRAM.parents[1])
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(tmp_path), tests, stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    try:
        async with asyncio.timeout(30):
            guard = int(await owner.stdout.readline())
        server = noted(tmp_path, "starts")[0]["pid"]
        os.kill(owner.pid if victim == "nightfill" else guard, signal.SIGKILL)
        assert await gone([guard, server])
        assert "SIGTERM" in noted(tmp_path, "calls"), "in order, all the same"
    finally:
        if owner.returncode is None:
            owner.kill()
        await owner.wait()
        for start in noted(tmp_path, "starts"):
            if not await gone([start["pid"]]):
                os.kill(start["pid"], signal.SIGKILL)


async def test_a_log_that_is_full_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_LOG_BYTES", 10)
    log = _Log(tmp_path / "v1.log")
    for piece in (b"first one\n", b"second\n", b"third one\n"):
        log.write(piece)
    assert (tmp_path / "v1.log").read_bytes() == b"third one\n"
    assert (tmp_path / "v1.log.1").read_bytes() == b"first one\nsecond\n"


async def test_a_log_that_cannot_be_written_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = _Log(tmp_path / "nowhere" / "v1.log")
    log.write(b"x")
    log.write(b"y")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'nowhere' / 'v1.log'}: cannot be written: No such file or directory"
    ]


def test_a_free_port_is_free() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", _free_port()))
