"""Slot files of a real llama.cpp, cut into blocks, rebuilt and restored: log-probabilities equal to the last digit.

Equal is meant exactly. A restored prefix is compared with one that was computed in place in batches of the same sizes
and lies in the same cells of the cache, as the engine's rounding depends on both: below 64 tokens a batch takes another
kernel, and sums over cells run in their order. So the other slot is erased before a comparison.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from nightfill.engines.llama import demo_model, slotfile
from nightfill.engines.llama.api import LlamaApi
from nightfill.engines.llama.child_config import ChildConfig
from nightfill.engines.llama.process import LlamaProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.e2e

BLOCK = 256
BATCH = 512
TEXT = tuple(256 + n * n * 7 % 5800 for n in range(2300))
"""8 blocks of 256 and a tail of 252."""
Outcome = tuple[list[int], list[dict[int, float]]]


class Server:
    """A llama.cpp child with two slots and a unified cache."""

    def __init__(self, api: LlamaApi, folder: Path) -> None:
        self.api = api
        self.folder = folder

    async def answer(self, prompt: Sequence[int], *, slot: int) -> tuple[int, Outcome]:
        """Tokens reused, and 12 greedy tokens with the log-probabilities of the best 5 at each."""
        body = {
            "prompt": prompt,
            "id_slot": slot,
            "n_predict": 12,
            "temperature": 0,
            "n_probs": 5,
            "return_tokens": True,
            "stream": False,
        }
        async with self.api.stream("/completion", msgspec.json.encode(body)) as stream:
            raw = b"".join([chunk async for chunk in stream.chunks()])
            assert stream.status == 200, raw
        reply: dict[str, Any] = msgspec.json.decode(raw)
        best = [
            {top["id"]: top["logprob"] for top in step["top_logprobs"]} for step in reply["completion_probabilities"]
        ]
        assert len(best) == 12
        return reply["timings"]["cache_n"], (reply["tokens"], best)

    async def saved(self, slot: int) -> slotfile.SlotFile:
        await self.api.slot_save(slot, "saved")
        return slotfile.parse(memoryview((self.folder / "saved").read_bytes()))

    async def put(self, raw: bytes, *, slot: int) -> int:
        (self.folder / "built").write_bytes(raw)
        return await self.api.slot_restore(slot, "built")


@contextlib.asynccontextmanager
async def serving(model: Path, folder: Path) -> AsyncIterator[Server]:
    config = ChildConfig(model=str(model), slot_save_path=str(folder), n_ctx=8192, n_parallel=2, n_batch=BATCH)
    process = LlamaProcess(config, name="test")
    process.start()
    try:
        await process.ready(60)
        async with contextlib.aclosing(LlamaApi.of(process)) as api:
            yield Server(api, folder)
    finally:
        await process.aclose()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_model.ensure("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture
async def server(model: Path, tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(model, tmp_path) as server:
        yield server


def blocks_of(file: slotfile.SlotFile, start: int = 0) -> list[tuple[int, int, memoryview]]:
    n_tokens = len(file.tokens)
    return [
        (at, min(at + BLOCK, n_tokens), memoryview(b"".join(file.cut(at, min(at + BLOCK, n_tokens)))))
        for at in range(start, n_tokens, BLOCK)
    ]


def prefix(file: slotfile.SlotFile, length: int) -> bytes:
    """The slot file of the first `length` tokens, from whole blocks and, if need be, part of one."""
    whole = [block for block in blocks_of(file) if block[1] <= length]
    done = whole[-1][1] if whole else 0
    rest = [(done, length, memoryview(b"".join(file.cut(done, length))))] if done < length else []
    out = bytearray(slotfile.assembled_bytes(file.layout, length))
    slotfile.assemble(memoryview(out), file.layout, file.tokens[:length], whole + rest)
    return bytes(out)


async def test_a_saved_file_has_the_tokens_and_the_size_that_its_layout_says(server: Server, model: Path) -> None:
    await server.api.prefill(TEXT, slot=1)
    file = await server.saved(1)
    assert file.tokens == TEXT
    assert file.layout.bytes_per_token == demo_model.SIZES["tiny"].kv_bytes_per_token
    assert (server.folder / "saved").stat().st_size == slotfile.assembled_bytes(file.layout, len(TEXT))


@pytest.mark.parametrize("length", [256, 1000, 1792, 2300])
async def test_a_rebuilt_prefix_answers_as_the_same_prefix_computed_in_place(server: Server, length: int) -> None:
    question = TEXT[:length] + tuple(range(300, 400))
    await server.api.prefill(TEXT, slot=0)
    file = await server.saved(0)
    await server.api.slot_erase(0)
    await server.api.prefill(TEXT[:length], slot=0)
    computed = await server.answer(question, slot=0)
    await server.api.slot_erase(0)
    assert await server.put(prefix(file, length), slot=1) == length
    assert await server.answer(question, slot=1) == computed
    assert computed[0] == length


async def test_a_server_started_anew_goes_on_from_a_rebuilt_file(
    server: Server, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    await server.api.prefill(TEXT, slot=0)
    file = await server.saved(0)
    computed = await server.answer((*TEXT, *range(300, 400)), slot=0)
    async with serving(model, tmp_path_factory.mktemp("slots")) as other:
        with (other.folder / "built").open("w+b") as out:
            slotfile.write(out.fileno(), file.layout, file.tokens, blocks_of(file))
        assert await other.api.slot_restore(1, "built") == len(TEXT)
        assert await other.answer((*TEXT, *range(300, 400)), slot=1) == computed


async def test_blocks_of_several_slices_make_one_prefix(server: Server) -> None:
    await server.api.prefill(TEXT[:1024], slot=0)
    blocks = blocks_of(await server.saved(0))
    await server.api.prefill(TEXT, slot=0)
    file = await server.saved(0)
    computed = await server.answer((*TEXT, 300), slot=0)
    await server.api.slot_erase(0)
    blocks += blocks_of(file, start=1024)
    with (server.folder / "built").open("w+b") as out:
        slotfile.write(out.fileno(), file.layout, TEXT, blocks)
    await server.api.slot_restore(1, "built")
    assert await server.answer((*TEXT, 300), slot=1) == computed


async def test_a_slot_whose_cells_lie_scattered_in_the_cache_is_cut_in_the_texts_order(server: Server) -> None:
    # The cells that slot 1 leaves in the middle are taken by slot 0's next tokens, in front of its earlier ones.
    await server.api.prefill(TEXT[:1000], slot=1)
    await server.api.prefill(TEXT[:512], slot=0)
    await server.api.prefill(TEXT[1500:1600], slot=1)
    await server.api.prefill(TEXT, slot=0)
    file = await server.saved(0)
    assert len(file._runs) > 1, "cells are in order: the test tests nothing"
    computed = await server.answer((*TEXT, 300), slot=0)
    assert await server.put(prefix(file, len(TEXT)), slot=1) == len(TEXT)
    reused, (tokens, best) = await server.answer((*TEXT, 300), slot=1)
    assert reused == computed[0] == len(TEXT)
    # The order in which the cells are added up differs, and with it the last digits.
    assert tokens == computed[1][0]
    for ours, theirs in zip(best, computed[1][1], strict=True):
        assert ours == pytest.approx(theirs, abs=0.05)


async def test_wrong_kv_is_noticed_by_this_model(server: Server) -> None:
    # The guard of the tests above: with a model that does not look at its KV they could not fail.
    await server.api.prefill(TEXT, slot=0)
    file = await server.saved(0)
    _, right = await server.answer((*TEXT, 300), slot=0)
    raw = bytearray(prefix(file, len(TEXT)))
    row_bytes = file.layout.layers[0].k_row_bytes
    at = len(raw) - 2 * len(TEXT) * row_bytes  # within the last layers' values
    raw[at : at + 400 * row_bytes] = bytes(400 * row_bytes)
    await server.api.slot_erase(0)
    await server.put(bytes(raw), slot=1)
    assert (await server.answer((*TEXT, 300), slot=1))[1] != right
