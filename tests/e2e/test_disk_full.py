"""A file system runs full in the middle of a fill, or while the index of near answers is saved: serving goes on, the
error shows, work resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from fakes.embedder import WordEmbedder, WordReader
from fakes.house import CHAT, House
from nightfill.answers.index import NearIndex
from nightfill.answers.neighbours import NearSearch, Parts
from nightfill.answers.question import Questions
from nightfill.config import AnswerSettings
from nightfill.gateway.stored import AnswerRoom
from nightfill.state.sqlite import open_state
from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    import aiohttp

    from nightfill.state.state import State
    from serving import Serve

pytestmark = pytest.mark.e2e

DISK_BYTES = 24 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for what is to come if something else is on it."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs the right to mount a file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a file system: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def fill_up(folder: Path, *, leave_bytes: int) -> Path:
    """Let somebody else take the room."""
    other = folder / "somebody-elses"
    free = os.statvfs(folder)
    with other.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave_bytes)
    return other


def job_of(serve: Serve, context: str) -> dict[str, Any]:
    (job,) = [job for job in serve.jobs() if job["context"] == context]
    return job


@pytest.mark.timeout(200)
def test_a_full_disk_stops_fills_with_a_clear_error_and_nothing_else(
    new_serve: Callable[..., Serve], small_disk: Path
) -> None:
    settings = {
        "kv": {"tiers": [{"kind": "disk", "max_bytes": "1GB", "min_free_bytes": 0, "path": str(small_disk / "kv")}]},
        "sleep": {"max_slice_s": 0.2, "retry_base_s": 0.5, "retry_cap_s": 2, "max_failures": 100, "plan_every_s": 0.3},
    }
    serve = new_serve(settings=settings).start()
    serve.put("early", source_text(1, functions=30))
    serve.wait_ready("early")
    other = fill_up(small_disk, leave_bytes=4 << 20)
    serve.put("late", source_text(2, functions=300))
    eventually(lambda: any(job["failures"] for job in serve.jobs()), within_s=90, what="a fill that found no room")

    job = job_of(serve, "late")
    assert job["state"] in ("queued", "leased")
    assert "bytes short under a cap of 1000000000 and a floor of 0, and nothing that may be evicted" in job["error"]
    # Serving goes on: without a context, with one that is ready, with the one that is not.
    for context in (None, "early", "late"):
        answer = serve.ask(context=context, max_tokens=1)
        assert (answer.status, answer.usage["completion_tokens"]) == (200, 1)
    assert serve.request("GET", "/readyz").status == 200
    # Whoever looks is told.
    metrics = serve.metrics()
    assert metrics["nightfill_jobs_failing"] >= 1
    assert metrics['nightfill_kv_free_bytes{tier="disk"}'] < 1 << 20
    ran = serve.cli("doctor", "--json")
    findings = {one["check"]: one for one in json.loads(ran.stdout)["findings"]}
    assert findings["jobs"]["status"] == "WARN"
    assert "(late): no room in the store: disk: " in findings["jobs"]["detail"]
    assert findings["disk"]["status"] == "WARN"
    assert str(small_disk) in findings["disk"]["detail"]

    other.unlink()
    serve.wait_ready("late", within_s=100)
    answer = serve.ask(context="late")
    assert (answer.layer, answer.reused) == ("fill", serve.fills("late")[0]["tokens"])
    eventually(lambda: serve.metrics()["nightfill_jobs_failing"] == 0, within_s=30, what="nothing fails any more")


WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":5,"model":"demo","choices":[{"index":0,"finish_reason":'
    b'"stop","message":{"role":"assistant","content":"Behind the customs house."}}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14}}'
)
MANY = 60
"""Questions whose rows take more than the pages that are left."""


class Gateway:
    """One over a real state and a real index, which is saved whenever something has come."""

    def __init__(self, search: NearSearch, index: list[NearIndex], client: aiohttp.ClientSession) -> None:
        self._search, self._index, self._client = search, index, client

    async def ask(self, question: str) -> str:
        """Whether it was served from store, and how."""
        said = {**CHAT, "temperature": 0, "messages": [{"role": "user", "content": question}]}
        async with self._client.post("/v1/chat/completions", json=said) as reply:
            assert reply.status == 200, await reply.text()
            assert (await reply.json())["choices"][0]["message"]["content"] == "Behind the customs house."
            return reply.headers["x-nightfill-cache"]

    async def known(self, rows: int) -> None:
        async with asyncio.timeout(20):
            while len(self._index[0]) < rows:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def gateway(state: State, folder: Path) -> AsyncIterator[Gateway]:
    index: list[NearIndex] = []

    def load() -> Parts:
        index.append(NearIndex(folder, identity=WordEmbedder.identity, capacity=1000))
        return Parts(WordReader(careless=True), index[0])

    house = House()
    house.engine.whole = WHOLE
    search = NearSearch(state.answers, load, floor=0.5, deadline_s=5, needed=True, every_s=0.01)
    async with search:
        await search.ready()
        house.answers = AnswerRoom(
            settings=AnswerSettings(mode="near"),
            answers=state.answers,
            questions=state.questions,
            keys=Questions(max_temperature=0.3),
            neighbours=search,
        )
        async with house.client() as client:
            yield Gateway(search, index, client)


async def told(caplog: pytest.LogCaptureFixture, what: str) -> None:
    async with asyncio.timeout(20):
        while what not in caplog.text:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_a_full_disk_leaves_the_saved_index_of_near_answers_whole_and_the_next_start_catches_up(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nightfill.answers.neighbours._SAVE_EVERY_S", 0.0)
    caplog.set_level(logging.WARNING)
    file = small_disk / "near" / "0" / "rows.near"
    async with open_state(tmp_path / "data" / "state.db") as state:
        async with gateway(state, small_disk / "near") as place:
            assert await place.ask("Where is the harbour?") == "MISS"
            await place.known(1)
            async with asyncio.timeout(20):
                while not file.exists():  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            assert await place.ask("So where is the harbour?") == "SEMANTIC-HIT"
        saved = file.read_bytes()
        async with gateway(state, small_disk / "near") as place:
            other = fill_up(small_disk, leave_bytes=8 << 10)
            for number in range(MANY):
                assert await place.ask(f"w{number} x{number} y{number} z{number}") == "MISS"
            await place.known(1 + MANY)
            await told(caplog, "No space left on device")
            # What was there is found, and what could not be saved.
            assert await place.ask("And where is the harbour?") == "SEMANTIC-HIT"
            assert await place.ask("w7 x7 y7 z7 please") == "SEMANTIC-HIT"
        assert "was not saved" in caplog.text
        assert await asyncio.to_thread(lambda: sorted(one.name for one in file.parent.iterdir())) == ["lock", file.name]
        caplog.clear()
        with contextlib.closing(NearIndex(small_disk / "near", identity="words", capacity=1000)) as left:
            assert 1 <= len(left) < 1 + MANY
        other.unlink()
        async with gateway(state, small_disk / "near") as place:
            await place.known(1 + MANY)
            assert await place.ask("w7 x7 y7 z7 again") == "SEMANTIC-HIT"
            assert await place.ask("Well, where is the harbour?") == "SEMANTIC-HIT"
        assert caplog.text == ""
        assert file.stat().st_size > len(saved)
