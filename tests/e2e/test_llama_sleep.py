"""A real llama.cpp that is put to sleep and woken: what it gives back, and what it must not have forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import pytest

from nightfill.config import ByteSize, EngineSettings, KvSettings, TierSettings
from nightfill.engines.engine import Call, Prefix
from nightfill.engines.llama import demo_model
from nightfill.engines.llama.engine import LlamaEngine
from nightfill.engines.llama.model import load
from nightfill.engines.llama.process import LlamaProcess
from nightfill.engines.llama.sleeper import LlamaSleeper, resident_bytes
from nightfill.engines.supervised import State
from nightfill.errors import EngineError, EngineUnavailable, WokeWrong
from nightfill.kv import open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from nightfill.engines.lifecycle.sleeper import Level
    from nightfill.kv import Store

pytestmark = pytest.mark.e2e

BLOCK: Final = 64
SALT: Final = bytes(32)
CELLS: Final = 32_768
CONTEXT: Final = tuple(33 + n * n % 90 for n in range(1000))
QUESTION: Final = tuple(range(200, 300))


@dataclass
class House:
    engine: LlamaEngine
    process: LlamaProcess
    sleeper: LlamaSleeper
    file: Path

    async def up(self) -> None:
        """As the lifecycle wakes it."""
        await self.sleeper.wake()
        await self.sleeper.warm()

    async def ask(self, *, stored: tuple[int, ...] = CONTEXT) -> tuple[int, int]:
        """Tokens that were promised and reused, by a request about the context, of which `stored` is promised."""
        body = {"prompt": CONTEXT + QUESTION, "max_tokens": 1, "temperature": 0}
        call = Call(
            path="/v1/completions",
            body={name: msgspec.Raw(msgspec.json.encode(value)) for name, value in body.items()},
            stream=False,
            salt=SALT,
            prefix=Prefix(tokens=stored, salt=SALT),
        )
        async with self.engine.open(call) as reply:
            whole = b"".join([chunk async for chunk in reply.chunks()])
            assert reply.status == 200, whole
            return reply.loaded_tokens, reply.tokens.reused or 0

    async def fill(self) -> None:
        async with self.engine.fill(PREFIX) as fill:
            await fill.extend(len(CONTEXT))
            assert await fill.keep() == len(CONTEXT)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid


PREFIX: Final = Prefix(tokens=CONTEXT, salt=SALT)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two of the same shape."""
    folder = tmp_path_factory.mktemp("models")
    return [demo_model.ensure(name, folder) for name in ("tiny", "tiny:1")]


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    """Its parameter: bytes that must stay free on the disk."""
    free = ByteSize(getattr(request, "param", 0))
    tier = TierSettings(kind="disk", path=str(tmp_path / "kv"), max_bytes=ByteSize(1 << 30), min_free_bytes=free)
    store = open_store(KvSettings(tiers=(tier,), block_tokens=BLOCK), data_dir=tmp_path)
    yield store
    store.close()


@pytest.fixture
async def house(models: list[Path], store: Store, tmp_path: Path) -> AsyncIterator[House]:
    file = tmp_path / "model.gguf"
    shutil.copyfile(models[0], file)
    settings = EngineSettings(model=str(file), slots=1, context_length=CELLS)
    model = load(settings, filling=False, cache_dir=tmp_path, scratch_dir=str(tmp_path), data_dir=tmp_path)
    process = LlamaProcess(model.child(), name="e1", start_timeout_s=30, again=False)
    engine = LlamaEngine(model, process=process, store=store, block_tokens=BLOCK, restore="always")
    house = House(engine, process, LlamaSleeper(engine, process), file)
    async with asyncio.timeout(60):
        await house.up()
        yield house
    await house.sleeper.stop()
    await engine.aclose()


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


async def test_at_level_1_weights_and_kv_are_given_back_and_the_process_stays(house: House) -> None:
    pid, awake = house.pid, await house.sleeper.footprint()
    assert str(house.file) in maps(pid)
    await house.sleeper.sleep(1)
    asleep = await house.sleeper.footprint()
    assert house.process.pid == pid
    assert str(house.file) not in maps(pid)
    kv_bytes = CELLS * demo_model.SIZES["tiny"].kv_bytes_per_token
    assert awake.device_bytes - asleep.device_bytes > kv_bytes + 0.9 * house.file.stat().st_size
    assert asleep.host_bytes == 0
    woken = await house.sleeper.wake()
    assert house.process.pid == pid
    assert set(woken.seconds) == {"load"}
    assert abs((await house.sleeper.footprint()).device_bytes - awake.device_bytes) < kv_bytes


async def test_at_level_2_there_is_no_process(house: House) -> None:
    pid = house.pid
    await house.sleeper.sleep(1)
    await house.sleeper.sleep(2)
    assert resident_bytes(pid) == 0
    assert (house.process.pid, (await house.sleeper.footprint()).device_bytes) == (None, 0)
    woken = await house.sleeper.wake()
    assert list(woken.seconds) == ["process", "load"]
    assert house.pid != pid


@pytest.mark.parametrize("level", [1, 2])
async def test_a_filled_context_answers_from_the_store_after_each_wake(house: House, level: Level) -> None:
    await house.fill()
    for _ in range(2):
        promised, reused = await house.ask()
        assert promised == len(CONTEXT)
        assert reused >= len(CONTEXT)
        await house.sleeper.keep()
        await house.sleeper.sleep(level)
        assert house.engine.near(PREFIX) > 0, "no slot has it while nothing runs"
        assert not house.engine.held
        await house.up()
        assert house.engine.near(PREFIX) > 0
    promised, reused = await house.ask()
    assert promised == len(CONTEXT)
    assert reused >= len(CONTEXT)


async def test_what_a_request_had_to_compute_of_a_promised_fill_is_stored_before_sleep(house: House) -> None:
    assert await house.ask() == (0, 0), "the store has lost it"
    await house.sleeper.keep()
    await house.sleeper.sleep(1)
    await house.up()
    promised, reused = await house.ask()
    assert promised == len(CONTEXT)
    assert reused >= len(CONTEXT)
    assert await house.engine.keep() == 0, "it is there"


@pytest.mark.parametrize("store", [1 << 59], indirect=True)
async def test_a_full_disk_costs_the_kv_and_neither_sleep_nor_an_answer(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    assert await house.ask() == (0, 0)
    await house.sleeper.keep()
    assert "engine e1: not all of its KV could be kept: " in caplog.text
    await house.sleeper.sleep(1)
    await house.up()
    assert await house.ask() == (0, 0), "computed again"


async def test_what_came_from_the_store_and_was_dropped_there_is_not_stored_again(house: House, store: Store) -> None:
    await house.fill()
    keys = [span.key for span in house.engine._transfer.spans(PREFIX)]
    assert (await house.ask())[0] == len(CONTEXT)
    store.drop(keys)
    assert await house.engine.keep() == 0
    assert not any(store.has_many(keys))


async def test_a_sleeping_child_that_is_killed_is_noticed_and_not_started_again(house: House) -> None:
    await house.sleeper.sleep(1)
    watch = asyncio.create_task(house.sleeper.ended())
    generation = house.process.generation
    os.kill(house.pid, signal.SIGKILL)
    assert "ended with status -9" in await asyncio.wait_for(watch, 10)
    assert (house.process.state, house.process.generation, house.process.pid) == (State.FAILED, generation, None)
    await house.sleeper.stop()
    await house.up()
    assert house.process.generation > generation


async def test_sleep_and_stop_are_no_end_by_itself(house: House) -> None:
    watch = asyncio.create_task(house.sleeper.ended())
    await house.sleeper.sleep(1)
    await house.sleeper.sleep(2)
    await house.up()
    await house.sleeper.stop()
    assert not watch.done()
    watch.cancel()


@pytest.mark.parametrize("level", [1, 2])
async def test_a_model_whose_file_is_gone_does_not_wake_and_says_why(house: House, level: Level) -> None:
    away = house.file.rename(house.file.with_suffix(".away"))
    await house.sleeper.sleep(level)
    with pytest.raises(EngineError, match="failed to load model"):
        await house.sleeper.wake()
    await house.sleeper.stop()
    away.rename(house.file)
    await house.up()


@pytest.mark.parametrize("level", [1, 2])
async def test_other_weights_in_the_same_file_are_noticed(house: House, models: list[Path], level: Level) -> None:
    await house.sleeper.sleep(level)
    house.file.unlink()  # a new file, as a download would bring: the old one may be mapped
    shutil.copyfile(models[1], house.file)
    await house.sleeper.wake()
    with pytest.raises(WokeWrong, match="is not the model that it was"):
        await house.sleeper.warm()
    shutil.copyfile(models[0], house.file.with_suffix(".right"))
    await house.sleeper.stop()
    house.file.with_suffix(".right").replace(house.file)
    await house.up()


async def test_a_child_that_waits_for_a_client_is_ended_instead(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightfill.engines.llama.process._RELEASE_S", 0.3)
    pid = house.pid
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.process.url.rpartition(":")[2]))
    body = msgspec.json.encode({"prompt": [1, 2, 3], "n_predict": 30_000, "ignore_eos": True})
    head = f"POST /completion HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.process.api_key}\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    while not any(slot.is_processing for slot in await house.sleeper._api.slots()):
        pass
    await house.sleeper.sleep(1)
    assert house.process.state is State.STOPPED
    assert resident_bytes(pid) == 0
    writer.close()
    with contextlib.suppress(OSError):
        await reader.read()
        await writer.wait_closed()
    await house.up()


async def test_a_request_that_comes_past_the_lifecycle_is_refused_at_once(house: House) -> None:
    await house.ask()
    await house.sleeper.sleep(1)
    with pytest.raises(EngineUnavailable, match="is asleep"):
        await house.ask()


async def test_being_frozen_does_a_sleeping_child_no_harm(house: House) -> None:
    await house.sleeper.sleep(1)
    house.engine.freeze()
    waking = asyncio.create_task(house.up())
    done, _ = await asyncio.wait({waking}, timeout=0.2)
    assert not done
    house.engine.thaw()
    await waking
    assert (await house.ask(stored=()))[1] == 0


@pytest.mark.parametrize("level", [1, 2])
async def test_a_wake_that_is_given_up_can_be_tried_again(house: House, level: Level) -> None:
    await house.sleeper.sleep(level)
    waking = asyncio.create_task(house.sleeper.wake())
    await house.process.until(lambda: house.process.state is State.STARTING, 10)
    waking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waking
    await house.sleeper.stop()
    assert house.process.pid is None
    await house.up()
