from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nightfill.engines.engine import Prefix, Sampled, Way
from nightfill.engines.llama.sampler import LlamaSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fakes.llama import FakeLlama
    from nightfill.engines.llama.transfer import Transfer

TAIL = (1, 2, 3)


class Continues:
    """`LlamaApi.sample` on a fake: what it found in the slot is what it reuses."""

    def __init__(self, llama: FakeLlama) -> None:
        self.found: list[tuple[int, ...]] = []
        self._llama = llama
        llama.sample = self.sample  # type: ignore[attr-defined]

    async def sample(self, tokens: Sequence[int], *, slot: int, max_tokens: int) -> Sampled:
        self.found.append(self._llama.slots[slot])
        done = await self._llama.prefill(tokens, slot=slot)
        self._llama.slots[slot] += (7,) * max_tokens
        return Sampled(tokens=(7,) * max_tokens, tops=({7: -0.1},) * max_tokens, reused=done.cached)


@pytest.fixture
async def made(
    make_transfer: Callable[..., tuple[FakeLlama, Transfer]], prefix: Prefix
) -> tuple[FakeLlama, Transfer, Continues]:
    llama, transfer = make_transfer()
    await llama.prefill(prefix.tokens, slot=0)
    await transfer.save(0, prefix, reached=len(prefix.tokens))
    llama.prefills.clear()
    return llama, transfer, Continues(llama)


def sampler(llama: FakeLlama, transfer: Transfer, prefix: Prefix, *, trims: bool = True) -> LlamaSampler:
    return LlamaSampler(prefix, api=llama.api, transfer=transfer, batch_tokens=512, trims=trims)


async def test_stored_kv_is_loaded_for_each_question(
    made: tuple[FakeLlama, Transfer, Continues], prefix: Prefix
) -> None:
    llama, transfer, continues = made
    ours = sampler(llama, transfer, prefix)
    for _ in range(2):
        sampled = await ours.sample(TAIL, Way.STORED, max_tokens=2)
        assert sampled.reused == len(prefix.tokens)
    assert (llama.restores, continues.found) == (2, [tuple(prefix.tokens)] * 2)
    await transfer.drop(prefix)
    assert (await ours.sample(TAIL, Way.STORED, max_tokens=2)).reused == 0


@pytest.mark.parametrize(("trims", "computed"), [(True, 1), (False, 2)])
async def test_the_engines_own_kv_is_computed_once_where_a_slot_can_be_cut_back(
    made: tuple[FakeLlama, Transfer, Continues], prefix: Prefix, trims: bool, computed: int
) -> None:
    llama, transfer, _ = made
    ours, total = sampler(llama, transfer, prefix, trims=trims), len(prefix.tokens)
    for tail in (TAIL, (4, 5)):
        assert (await ours.sample(tail, Way.OWN, max_tokens=2)).reused == total
    assert llama.prefills.count((0, 0, total)) == computed
    assert llama.restores == 0


async def test_no_way_finds_what_another_one_left(made: tuple[FakeLlama, Transfer, Continues], prefix: Prefix) -> None:
    llama, transfer, continues = made
    ours, total = sampler(llama, transfer, prefix), len(prefix.tokens)
    reused = [(await ours.sample(TAIL, way, max_tokens=1)).reused for way in (Way.OWN, Way.COLD, Way.AGAIN, Way.OWN)]
    assert reused == [total, 0, total, total]
    assert continues.found[1] == ()
    assert [(cached, length) for _, cached, length in llama.prefills] == [
        (0, total), (total, total + 3),
        (0, total + 3),
        (0, total // 2), (total // 2, total), (total, total + 3),
        (0, total), (total, total + 3),
    ]  # fmt: skip


async def test_what_was_computed_for_each_way_is_told(
    made: tuple[FakeLlama, Transfer, Continues], prefix: Prefix
) -> None:
    llama, transfer, _ = made
    ours, total, asked = sampler(llama, transfer, prefix), len(prefix.tokens), len(TAIL) + 1
    computed = [
        (await ours.sample((n, *TAIL[1:]), way, max_tokens=1)).computed
        for n, way in enumerate((Way.OWN, Way.OWN, Way.COLD, Way.AGAIN, Way.STORED))
    ]
    assert computed == [total + asked, asked, total + asked, total + asked, asked]
