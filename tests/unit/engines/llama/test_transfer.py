from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from nightfill.engines.engine import Prefix
from nightfill.engines.llama.transfer import NOTHING
from nightfill.errors import EngineUnavailable, SlotFileUnknown, TierFull

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fakes.llama import FakeLlama
    from nightfill.engines.llama.transfer import Transfer
    from nightfill.kv.block import Block
    from nightfill.kv.key import BlockKey
    from nightfill.kv.store import Store

    Make = Callable[..., tuple[FakeLlama, Transfer]]


async def saved(llama: FakeLlama, transfer: Transfer, prefix: Prefix, reached: int | None = None) -> int:
    reached = len(prefix.tokens) if reached is None else reached
    llama.slots[0] = tuple(prefix.tokens[:reached])
    return await transfer.save(0, prefix, reached=reached)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("streams", [1, 3])
async def test_what_is_saved_from_one_slot_is_loaded_into_another(
    make_transfer: Make, prefix: Prefix, plain: bool, streams: int
) -> None:
    llama, transfer = make_transfer(plain=plain, streams=streams)
    assert await saved(llama, transfer, prefix) == len(prefix.tokens)
    loaded = await transfer.load(1, prefix)
    assert loaded.tokens == len(prefix.tokens)
    assert loaded.bytes > 0
    assert llama.slots[1] == prefix.tokens


async def test_a_prefix_of_what_is_stored_is_loaded_from_the_same_blocks(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer()
    await saved(llama, transfer, prefix)
    other = Prefix(tokens=(*prefix.tokens[:70], 7, 8, 9), salt=prefix.salt)
    assert transfer.stored(other) == 64
    assert (await transfer.load(1, other)).tokens == 64
    assert llama.slots[1] == prefix.tokens[:64]


async def test_another_tenant_has_none_of_it(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer()
    await saved(llama, transfer, prefix)
    other = Prefix(tokens=prefix.tokens, salt=b"another")
    assert transfer.stored(other) == 0
    assert await transfer.load(1, other) == NOTHING
    assert llama.restores == 0


async def test_a_half_block_is_not_stored_before_the_end_is_reached(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer()
    assert await saved(llama, transfer, prefix, 50) == 32
    assert transfer.stored(prefix) == 32


async def test_a_slot_with_other_tokens_is_never_stored(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer()
    llama.slots[0] = tuple(range(len(prefix.tokens)))
    with pytest.raises(SlotFileUnknown):
        await transfer.save(0, prefix, reached=len(prefix.tokens))
    assert transfer.stored(prefix) == 0
    assert not list(llama.folder.glob("save-*"))


async def test_a_refused_file_is_a_miss(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer()
    await saved(llama, transfer, prefix)
    llama.refuses_restores = True
    assert await transfer.load(1, prefix) == NOTHING
    assert not list(llama.folder.iterdir())


async def test_a_scratch_folder_that_is_gone_is_made_again(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer()
    await saved(llama, transfer, prefix)
    llama.folder.rmdir()
    assert (await transfer.load(1, prefix)).tokens == len(prefix.tokens)


async def test_a_scratch_folder_that_cannot_be_made_is_a_miss(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer()
    await saved(llama, transfer, prefix)
    llama.folder.rmdir()
    llama.folder.write_text("a file in its place")
    assert await transfer.load(1, prefix) == NOTHING


async def test_a_damaged_block_ends_what_is_loaded(make_transfer: Make, prefix: Prefix, tmp_path: Path) -> None:
    llama, transfer = make_transfer()
    await saved(llama, transfer, prefix)
    second = transfer.spans(prefix)[1].key.hex()
    (path,) = [path for path in (tmp_path / "kv").rglob("*") if second in path.name.replace("/", "")]
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    assert (await transfer.load(1, prefix)).tokens == 32
    assert transfer.stored(prefix) == 32


async def test_an_engine_that_ends_meanwhile_is_an_error(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer()
    await saved(llama, transfer, prefix)

    def end() -> None:
        raise EngineUnavailable("ended", engine="fake")

    llama.on_restore = end
    with pytest.raises(EngineUnavailable):
        await transfer.load(1, prefix)


async def test_a_full_store_is_an_error_of_the_save(
    make_transfer: Make,
    prefix: Prefix,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    llama, transfer = make_transfer()

    def full(*_args: object, **_named: object) -> None:
        raise TierFull("no room")

    monkeypatch.setattr(store, "put", full)
    with pytest.raises(TierFull):
        await saved(llama, transfer, prefix)
    assert not list(llama.folder.glob("save-*"))


async def test_a_load_that_is_given_up_cannot_spoil_the_next_one_of_its_slot(
    make_transfer: Make, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client left while its prefix was being written to the slot file; the thread went on writing into the file of
    the next request, which then restored KV of both.
    """
    llama, transfer = make_transfer()
    one = Prefix(tokens=tuple(range(100, 196)), salt=b"s")
    two = Prefix(tokens=tuple(range(500, 596)), salt=b"s")
    await saved(llama, transfer, one)
    await saved(llama, transfer, two)
    held, go_on = threading.Event(), threading.Event()
    get_many = store.get_many
    first = True

    def slow(keys: Sequence[BlockKey], *, salt: bytes) -> list[Block | None]:
        nonlocal first
        if first:
            first = False
            held.set()
            assert go_on.wait(10)
        return get_many(keys, salt=salt)

    monkeypatch.setattr(store, "get_many", slow)
    left = asyncio.create_task(transfer.load(1, one))
    await asyncio.to_thread(held.wait, 10)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    llama.on_restore = go_on.set
    assert (await transfer.load(1, two)).tokens == 96
    assert llama.slots[1] == two.tokens
    # What the given-up thread writes in the end is cleaned up by it.
    pool = transfer._pool
    await asyncio.to_thread(pool.shutdown)
    assert [path.name for path in llama.folder.iterdir()] == ["load-1-1.slot"]


async def test_snapshots_grow_with_the_fill_and_old_ones_go(make_transfer: Make, prefix: Prefix, store: Store) -> None:
    llama, transfer = make_transfer(plain=False)

    def stored() -> int:
        return sum(tier.blocks for tier in store.report().tiers)

    assert await saved(llama, transfer, prefix, 32) == 32
    assert await saved(llama, transfer, prefix, 64) == 64
    # The book may still name the one before.
    assert stored() == 2
    assert (await transfer.load(1, transfer.part(prefix, 32))).tokens == 32
    assert await saved(llama, transfer, prefix, 96) == 96
    assert stored() == 2
    assert await saved(llama, transfer, prefix) == len(prefix.tokens)
    assert stored() == 2
    assert transfer.stored(prefix) == len(prefix.tokens)
    assert (await transfer.load(1, prefix)).tokens == len(prefix.tokens)


async def test_a_snapshot_is_used_whole_or_not_at_all(make_transfer: Make, prefix: Prefix) -> None:
    llama, transfer = make_transfer(plain=False)
    await saved(llama, transfer, prefix, 64)
    assert transfer.stored(prefix) == 64
    assert await transfer.load(1, prefix) == NOTHING
    assert (await transfer.load(1, transfer.part(prefix, 64))).tokens == 64
    # In between whole blocks nothing is kept, because nobody would look for it there.
    assert await saved(llama, transfer, prefix, 70) == 64


@pytest.mark.parametrize("plain", [True, False])
async def test_what_is_dropped_is_gone_whole_or_in_part(
    make_transfer: Callable[..., tuple[FakeLlama, Transfer]], prefix: Prefix, plain: bool
) -> None:
    llama, transfer = make_transfer(plain=plain)
    await llama.prefill(prefix.tokens, slot=0)
    assert await transfer.save(0, prefix, reached=len(prefix.tokens))
    assert transfer.stored(prefix) == len(prefix.tokens)
    assert await transfer.drop(prefix) > 0
    assert transfer.stored(prefix) == 0
    assert await transfer.drop(prefix) == 0


async def test_after_a_refresh_a_load_reads_what_is_kept_and_no_copy_in_memory(
    make_transfer: Callable[..., tuple[FakeLlama, Transfer]], prefix: Prefix, store: Store
) -> None:
    llama, transfer = make_transfer()
    await llama.prefill(prefix.tokens, slot=0)
    await transfer.save(0, prefix, reached=len(prefix.tokens))
    await transfer.refresh(prefix)
    assert transfer.stored(prefix) == len(prefix.tokens), "only copies go"
    assert (await transfer.load(1, prefix)).tokens == len(prefix.tokens)
