from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from fakes.vllm import SIGNATURE
from nightfill.engines.engine import Prefix
from nightfill.engines.vllm.api import VllmApi
from nightfill.engines.vllm.fill import VllmFill, slice_end
from nightfill.errors import EngineUnavailable, KvError
from nightfill.kv.key import spans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fakes.vllm import FakeVllm
    from nightfill.kv.store import Store

BLOCK = 32
SALT = b"\x01" * 32
TOKENS = tuple((7 * n) % 251 for n in range(8 * BLOCK))
SPANS = spans(TOKENS, signature=SIGNATURE, salt=SALT, block_tokens=BLOCK)


class Waits:
    """A clock that runs while somebody waits, and what happens meanwhile."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.meanwhile: list[Callable[[], None]] = []

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if self.meanwhile:
            self.meanwhile.pop(0)()


@pytest.fixture
async def api(server: FakeVllm) -> AsyncIterator[VllmApi]:
    api = VllmApi(server.url, engine="v1")
    yield api
    await api.aclose()


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def fill(api: VllmApi, store: Store, waits: Waits) -> VllmFill:
    prefix = Prefix(tokens=TOKENS, salt=SALT)
    return VllmFill(prefix, api=api, store=store, spans=SPANS, clock=waits.clock, sleep=waits.sleep)


@pytest.mark.parametrize(("upto", "end"), [(1, 32), (32, 32), (33, 64), (255, 256), (256, 256)])
def test_a_slice_ends_at_a_whole_unit(upto: int, end: int) -> None:
    assert slice_end(upto, total=256, unit=32) == end


async def test_a_prefix_is_computed_slice_by_slice_and_proven_from_the_store(fill: VllmFill, server: FakeVllm) -> None:
    assert await fill.resume() == 0
    slices = [await fill.extend(upto) for upto in (40, 128, 256)]
    assert [(done.reached, done.computed) for done in slices] == [(64, 64), (128, 64), (256, 128)]
    assert await fill.keep() == 256
    assert await fill.prove() == 256
    last = server.requests[-1][1]
    wish = {"report": True, "fresh": True, "store": False, "await_tokens": 256, "await_s": 5.0}
    assert last["kv_transfer_params"]["nightfill"] == wish
    assert len(last["prompt"]) == 257


async def test_slices_may_be_shorter_than_a_stored_block(api: VllmApi, store: Store, server: FakeVllm) -> None:
    fill = VllmFill(Prefix(tokens=TOKENS, salt=SALT), api=api, store=store, spans=SPANS, slice_unit=BLOCK // 2)
    reached = []
    for upto in (10, 20, 40):
        done = await fill.extend(upto)
        assert done.computed == BLOCK // 2
        reached += [(done.reached, await fill.keep())]
    assert reached == [(16, 0), (32, 32), (48, 32)]
    assert await fill.resume() == 32


async def test_a_fill_goes_on_where_the_store_ends(fill: VllmFill, server: FakeVllm) -> None:
    server.put(SPANS[:3], TOKENS, SALT.hex())
    server.put(SPANS[5:6], TOKENS, SALT.hex())
    assert await fill.resume() == 96
    done = await fill.extend(128)
    assert (done.reached, done.computed) == (128, 32)
    assert await fill.keep() == 128


async def test_keeping_waits_for_blocks_that_are_still_being_written(
    fill: VllmFill, server: FakeVllm, waits: Waits
) -> None:
    server.stores = False
    await fill.extend(256)
    for place in range(8):
        waits.meanwhile += [lambda: None, partial(server.put, SPANS[place : place + 1], TOKENS, SALT.hex())]
    assert await fill.keep() == 256
    assert not waits.meanwhile


async def test_blocks_that_never_arrive_are_an_error_that_names_the_time(
    fill: VllmFill, server: FakeVllm, waits: Waits
) -> None:
    server.stores = False
    await fill.extend(64)
    with pytest.raises(KvError, match="64 tokens were computed, but vLLM did not store them within 30 s"):
        await fill.keep()
    assert 30 < waits.now_s < 31


async def test_a_block_that_does_not_verify_ends_the_proof_before_it(
    fill: VllmFill, server: FakeVllm, store: Store
) -> None:
    await fill.extend(256)
    assert await fill.keep() == 256
    store.drop([SPANS[4].key])
    asked = len(server.requests)
    assert await fill.prove() == 4 * BLOCK
    assert len(server.requests) == asked


async def test_an_engine_that_does_not_load_what_is_stored_proves_nothing(fill: VllmFill, server: FakeVllm) -> None:
    await fill.extend(256)
    server.loads = False
    assert await fill.prove() == 0


async def test_another_tenants_blocks_are_not_found(fill: VllmFill, server: FakeVllm) -> None:
    server.put(server.spans_of(TOKENS, "02" * 32), TOKENS, "02" * 32)
    assert await fill.resume() == 0


async def test_a_cancelled_slice_is_aborted_and_the_next_goes_on(fill: VllmFill, server: FakeVllm) -> None:
    await fill.extend(64)
    server.hold = asyncio.Event()
    task = asyncio.create_task(fill.extend(256))
    await server.waiting.wait()
    task.cancel()
    async with asyncio.timeout(5):
        await server.aborted.wait()
    server.hold = None
    assert await fill.keep() == 64
    assert (await fill.extend(256)).computed == 192


async def test_a_server_that_is_gone_is_unavailable(store: Store) -> None:
    api = VllmApi("http://127.0.0.1:9", engine="v1")
    fill = VllmFill(Prefix(tokens=TOKENS, salt=SALT), api=api, store=store, spans=SPANS)
    with pytest.raises(EngineUnavailable):
        await fill.extend(32)
    await api.aclose()


async def test_what_is_discarded_is_gone_from_the_store_and_computed_from_the_first_token(
    api: VllmApi, store: Store, server: FakeVllm, caplog: pytest.LogCaptureFixture
) -> None:
    fill = VllmFill(Prefix(tokens=TOKENS, salt=SALT), api=api, store=store, spans=SPANS)
    await fill.extend(len(TOKENS))
    assert await fill.keep() == len(TOKENS)
    await fill.discard()
    assert "start it again" in caplog.text, "it offers no way to make it forget"
    assert await fill.resume() == 0
    server.forget()
    assert (await fill.extend(len(TOKENS))).computed == len(TOKENS)
