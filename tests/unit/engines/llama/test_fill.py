from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.engines.engine import Prefix
from nightfill.engines.llama.fill import SMALLEST_BATCH, LlamaFill, slice_end, steps

if TYPE_CHECKING:
    from collections.abc import Callable

    from fakes.llama import FakeLlama
    from nightfill.engines.llama.transfer import Transfer

    Make = Callable[..., tuple[FakeLlama, Transfer]]

BATCH = 512
LONG = Prefix(tokens=tuple(range(300)), salt=b"s")


def fill_of(llama: FakeLlama, transfer: Transfer, prefix: Prefix, batch_tokens: int = BATCH) -> LlamaFill:
    return LlamaFill(prefix, api=llama.api, transfer=transfer, batch_tokens=batch_tokens)


def batches(reached: int, upto: int, batch_tokens: int) -> list[int]:
    sizes = []
    for stop in steps(reached, upto, batch_tokens=batch_tokens):
        sizes += [min(batch_tokens, stop - start) for start in range(reached, stop, batch_tokens)]
        reached = stop
    return sizes


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(128, 2048))
def test_no_batch_is_small_unless_all_that_is_left_is(reached: int, more: int, batch_tokens: int) -> None:
    sizes = batches(reached, reached + more, batch_tokens)
    assert sum(sizes) == more
    assert max(sizes) <= batch_tokens
    if more >= SMALLEST_BATCH:
        assert min(sizes) >= SMALLEST_BATCH


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([32, 256, 4096]))
def test_slices_end_at_whole_blocks_and_leave_no_small_batch_for_the_end(
    upto: int, total: int, block_tokens: int
) -> None:
    upto = min(upto, total)
    end = slice_end(upto, total=total, block_tokens=block_tokens)
    assert upto <= end <= total
    assert end == total or (end % block_tokens == 0 and total - end >= SMALLEST_BATCH)


async def test_a_fill_is_computed_stored_and_proven(make_transfer: Make) -> None:
    llama, transfer = make_transfer()
    fill = fill_of(llama, transfer, LONG)
    assert await fill.resume() == 0
    first = await fill.extend(100)
    assert (first.reached, first.computed) == (128, 128)
    assert await fill.keep() == 128
    last = await fill.extend(300)
    assert (last.reached, last.computed) == (300, 172)
    assert await fill.keep() == 300
    assert await fill.prove() >= 299
    assert llama.restores == 1


async def test_a_fill_goes_on_where_the_store_ends(make_transfer: Make) -> None:
    llama, transfer = make_transfer()
    fill = fill_of(llama, transfer, LONG)
    await fill.extend(128)
    await fill.keep()
    llama.slots = [(), ()]
    again = fill_of(llama, transfer, LONG)
    assert await again.resume() == 128
    assert (await again.extend(300)).computed == 172


async def test_one_block_is_computed_again_rather_than_a_small_batch_at_the_end(make_transfer: Make) -> None:
    """The shorter version of a context is stored; the longer one has a few tokens more."""
    llama, transfer = make_transfer()
    shorter = Prefix(tokens=LONG.tokens[:256], salt=LONG.salt)
    await fill_of(llama, transfer, shorter).extend(256)
    await transfer.save(0, shorter, reached=256)
    again = fill_of(llama, transfer, Prefix(tokens=LONG.tokens[:290], salt=LONG.salt))
    assert await again.resume() == 224
    assert (await again.extend(290)).computed == 66


async def test_nothing_is_left_to_compute_of_what_is_stored_whole(make_transfer: Make) -> None:
    llama, transfer = make_transfer()
    await fill_of(llama, transfer, LONG).extend(300)
    await transfer.save(0, LONG, reached=300)
    assert await fill_of(llama, transfer, LONG).resume() == 300


async def test_a_slice_that_is_cancelled_keeps_what_was_computed(make_transfer: Make) -> None:
    llama, transfer = make_transfer()
    fill = fill_of(llama, transfer, LONG)
    llama.stops_at = 192
    task = asyncio.create_task(fill.extend(300))
    await llama.stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await fill.keep() == 192


async def test_nothing_computed_is_nothing_stored(make_transfer: Make) -> None:
    llama, transfer = make_transfer()
    assert await fill_of(llama, transfer, LONG).keep() == 0
    assert not list(llama.folder.iterdir())


@pytest.mark.parametrize("how", ["refused", "ignored"])
async def test_an_engine_that_does_not_use_the_restore_proves_nothing(make_transfer: Make, how: str) -> None:
    llama, transfer = make_transfer()
    fill = fill_of(llama, transfer, LONG)
    await fill.extend(300)
    await fill.keep()
    llama.refuses_restores, llama.ignores_restores = how == "refused", how == "ignored"
    assert await fill.prove() == 0
