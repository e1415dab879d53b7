from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from nightfill.engines.llama.api import LlamaApi, without_quotes
from nightfill.engines.upstream import Response
from nightfill.errors import EngineError, EngineRefused, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nightfill.engines.upstream import Upstream


@dataclass
class FakeStream:
    status: int
    pieces: list[bytes]

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


@dataclass
class FakeUpstream:
    """Answers every request alike, and notes it."""

    status: int = 200
    body: bytes = b"{}"
    pieces: list[bytes] = field(default_factory=list)
    error: EngineError | None = None
    engine: str = "e1"
    seen: list[tuple[str, str, Any]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    left: bool = False

    async def request(self, method: str, path: str, *, body: bytes | None = None, **_: object) -> Response:
        self.seen.append((method, path, msgspec.json.decode(body) if body else None))
        if self.error is not None:
            raise self.error
        return Response(self.status, {}, self.body)

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, path: str, *, body: bytes, headers: dict[str, str], **_: object
    ) -> AsyncIterator[FakeStream]:
        self.seen.append((method, path, msgspec.json.decode(body)))
        self.headers = headers
        try:
            yield FakeStream(self.status, self.pieces)
        finally:
            self.left = True


def api_of(upstream: FakeUpstream, slots: int = 2) -> LlamaApi:
    ticks = iter(range(100))
    return LlamaApi(cast("Upstream", upstream), slots=slots, clock=lambda: float(next(ticks)))


def event(**body: object) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


PROGRESS = [
    event(prompt_progress={"total": 30, "cache": 10, "processed": 10, "time_ms": 0}),
    event(prompt_progress={"total": 30, "cache": 10, "processed": 30, "time_ms": 9}),
]
FINAL = event(stop=True, timings={"cache_n": 10, "prompt_n": 20, "prompt_ms": 1.5})


@pytest.mark.parametrize("cut", [1, 7, 10_000])
async def test_a_prefill_reads_progress_and_result_however_the_stream_is_cut(cut: int) -> None:
    text = b": ping\n\n" + b"".join(PROGRESS) + FINAL
    upstream = FakeUpstream(pieces=[text[i : i + cut] for i in range(0, len(text), cut)])
    seen: list[tuple[int, int]] = []
    done = await api_of(upstream).prefill((1, 2, 3), slot=1, on_progress=lambda n, total: seen.append((n, total)))
    assert seen == [(10, 30), (30, 30)]
    assert (done.cached, done.computed, done.seconds) == (10, 20, 1.0)
    method, path, body = upstream.seen[0]
    assert (method, path) == ("POST", "/completion")
    expected = {"prompt": [1, 2, 3], "id_slot": 1, "n_predict": 0, "cache_prompt": True, "stream": True}
    assert {key: body[key] for key in expected} == expected
    assert body["return_progress"] is True
    assert upstream.headers["Connection"] == "close"


async def test_a_prefill_that_ends_without_a_result_is_an_engine_that_went_away() -> None:
    with pytest.raises(EngineUnavailable, match="before it was done"):
        await api_of(FakeUpstream(pieces=PROGRESS)).prefill((1,), slot=0)


async def test_a_prefill_is_refused_by_status_or_midway() -> None:
    error = {"code": 400, "message": "request (5184 tokens) exceeds the available context size (2048 tokens)"}
    by_status = FakeUpstream(status=400, pieces=[msgspec.json.encode({"error": error})])
    midway = FakeUpstream(pieces=[PROGRESS[0], event(error=error)])
    for upstream in (by_status, midway):
        with pytest.raises(EngineRefused, match="5184 tokens") as refused:
            await api_of(upstream).prefill((1,), slot=0)
        assert refused.value.status == 400
        assert upstream.left


async def test_an_event_of_unknown_shape_is_refused_as_a_fault_of_the_engine() -> None:
    with pytest.raises(EngineRefused, match="shape that we do not know") as refused:
        await api_of(FakeUpstream(pieces=[b"data: [1]\n\n"])).prefill((1,), slot=0)
    assert refused.value.status == 502


async def test_an_exception_in_the_progress_callback_leaves_the_stream() -> None:
    upstream = FakeUpstream(pieces=[*PROGRESS, FINAL])

    def stop(done: int, total: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        await api_of(upstream).prefill((1,), slot=0, on_progress=stop)
    assert upstream.left


@pytest.mark.parametrize("slot", [-1, 2, 7])
async def test_a_slot_that_llama_cpp_would_take_for_another_one_is_refused_here(slot: int) -> None:
    upstream = FakeUpstream()
    api = api_of(upstream, slots=2)
    calls = (
        api.slot_save(slot, "a"),
        api.slot_restore(slot, "a"),
        api.slot_erase(slot),
        api.prefill((1,), slot=slot),
    )
    for call in calls:
        with pytest.raises(EngineRefused, match=f"slot {slot} is not one of 0 to 1"):
            await call
    assert upstream.seen == []


async def test_slots_are_saved_restored_and_erased_by_their_routes() -> None:
    upstream = FakeUpstream(body=b'{"id_slot":1,"n_saved":7,"n_written":99,"n_restored":7,"n_erased":7}')
    api = api_of(upstream)
    saved = await api.slot_save(1, "a.slot")
    assert (saved.tokens, saved.bytes) == (7, 99)
    assert await api.slot_restore(0, "a.slot") == 7
    await api.slot_erase(0)
    assert upstream.seen == [
        ("POST", "/slots/1?action=save", {"filename": "a.slot"}),
        ("POST", "/slots/0?action=restore", {"filename": "a.slot"}),
        ("POST", "/slots/0?action=erase", {}),
    ]


async def test_text_becomes_tokens_and_messages_a_prompt() -> None:
    upstream = FakeUpstream(body=b'{"tokens":[5,6],"prompt":"<user>a"}')
    api = api_of(upstream)
    assert await api.tokenize("a", add_special=True, parse_special=False) == (5, 6)
    messages = [msgspec.Raw(b'{"role":"user","content":"a"}')]
    assert await api.apply_template(messages, {"tools": []}) == "<user>a"
    assert upstream.seen == [
        ("POST", "/tokenize", {"content": "a", "add_special": True, "parse_special": False}),
        ("POST", "/apply-template", {"tools": [], "messages": [{"role": "user", "content": "a"}]}),
    ]


async def test_a_refusal_carries_status_and_message_and_never_the_prompt() -> None:
    body = {
        "error": {"code": 500, "message": 'Failed to parse tools: Missing tool type: {"my secret":1}; tools = [..]'}
    }
    api = api_of(FakeUpstream(status=500, body=msgspec.json.encode(body)))
    with pytest.raises(EngineRefused) as refused:
        await api.apply_template(msgspec.Raw(b"[]"))
    assert str(refused.value) == "engine e1: Failed to parse tools: Missing tool type"
    assert refused.value.status == 500


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("Invalid API Key", "Invalid API Key"),
        (
            "[json.exception.parse_error.101] parse error; last read: '\"secret'",
            "[json.exception.parse_error.101] parse error",
        ),
        ("first line\nsecret", "first line"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_a_message_is_cut_where_it_could_begin_to_quote(message: str, kept: str) -> None:
    assert without_quotes(message) == kept


async def test_health_is_false_and_never_an_error() -> None:
    assert await api_of(FakeUpstream()).health()
    assert not await api_of(FakeUpstream(status=503)).health()
    assert not await api_of(FakeUpstream(error=EngineUnavailable("gone", engine="e1"))).health()
