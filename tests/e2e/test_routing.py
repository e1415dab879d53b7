"""Two real llama.cpp engines behind one gateway: sessions stay where they are, and one engine's death costs nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from fakes.state import FakeAccessLog, FakeBoard, FakeBook, FakeQueue
from nightfill.config import ContextSettings, EngineSettings, GatewaySettings, KvSettings
from nightfill.engines.llama.engine import LlamaEngine
from nightfill.engines.llama.model import load
from nightfill.engines.llama.process import LlamaProcess
from nightfill.gateway import FrontDoor
from nightfill.kv import open_store
from nightfill.observe.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

CLIENTS = 6
NAMES = ("one", "two")


@contextlib.asynccontextmanager
async def two_engines(
    folder: Path, cache: Path
) -> AsyncIterator[tuple[aiohttp.ClientSession, dict[str, LlamaProcess]]]:
    """A client of a gateway, and the processes of its engines by name."""
    store = open_store(KvSettings(), data_dir=folder)
    processes: dict[str, LlamaProcess] = {}
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(store.close)
        engines = []
        for name in NAMES:
            settings = EngineSettings(name=name, model="demo:tiny", threads=1, context_length=4096)
            model = load(settings, filling=False, cache_dir=cache, scratch_dir="", data_dir=folder / name)
            processes[name] = LlamaProcess(model.child(), name=name)
            engine = LlamaEngine(model, process=processes[name], store=store, block_tokens=256)
            stack.push_async_callback(engine.aclose)
            engines.append(engine)
        for engine in engines:
            await engine.describe()
        server = await stack.enter_async_context(
            FrontDoor(
                settings=GatewaySettings(port=0),
                contexts=ContextSettings(),
                engines=engines,
                book=FakeBook(),
                queue=FakeQueue(),
                access=FakeAccessLog(),
                board=FakeBoard(),
                metrics=Metrics(),
            ).open()
        )
        yield await stack.enter_async_context(aiohttp.ClientSession(server.url)), processes


async def ask(client: aiohttp.ClientSession, session: str, *, words: int = 5, max_tokens: int = 4) -> str:
    """The engine that answered. Whatever happens to engines, a request is answered."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": f"{session} " + "word " * words}],
        "max_tokens": max_tokens,
    }
    async with client.post("/v1/chat/completions", json=body, headers={"x-session-id": session}) as reply:
        assert reply.status == 200, await reply.text()
        assert reply.headers["x-nightfill-route"] == "session"
        await reply.read()
        return reply.headers["x-nightfill-engine"]


async def standing(client: aiohttp.ClientSession, name: str) -> dict[str, Any]:
    async with client.get("/v1/nightfill/engines") as reply:
        return next(one for one in (await reply.json())["data"] if one["name"] == name)


async def until(client: aiohttp.ClientSession, name: str, member: str, value: object) -> None:
    async with asyncio.timeout(30):
        while (await standing(client, name))[member] != value:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.02)


async def test_sessions_stay_and_no_request_fails_when_an_engine_dies(tmp_path: Path, serve_home: Path) -> None:
    async with two_engines(tmp_path, serve_home / ".cache") as (client, processes):
        async with asyncio.timeout(30):
            # Until both have answered: one that was slow to begin with is ejected for a moment.
            homes: dict[str, str] = {}
            while set(homes.values()) != set(NAMES):
                homes = {f"s{n}": await ask(client, f"s{n}") for n in range(12)}
        assert {session: await ask(client, session) for session in homes} == homes

        mine, theirs = (next(s for s, engine in homes.items() if engine == name) for name in NAMES)
        long = asyncio.create_task(ask(client, mine, words=2500))
        await until(client, "one", "in_flight", 1)
        assert (await standing(client, "one"))["in_flight_tokens"] > 2000
        pid = processes["one"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(client, "one", "healthy", False)
        others = [asyncio.create_task(ask(client, f"x{n}")) for n in range(CLIENTS)]
        assert await long == "two", "what had not begun to be answered is asked of the other"
        for answered in others:
            await answered
        assert await ask(client, theirs) == "two"
        await until(client, "one", "healthy", True)
        assert processes["one"].pid != pid
        assert {session: await ask(client, session) for session in homes} == homes, "sessions return"
