from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.llama import LAYOUT, FakeLlama
from nightfill.engines.engine import Reuse
from nightfill.engines.llama.probe import PROBE_TOKENS, judge, probe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("first", "second", "trims", "verdict"),
    [
        (48, 48, True, Reuse.TRIM),
        (48, 47, True, Reuse.EXACT),
        (48, 48, False, Reuse.EXACT),
        (43, 44, False, Reuse.EXACT),  # back to a sliding window's last checkpoint
        (39, 48, True, Reuse.NONE),
        (0, 0, True, Reuse.NONE),
    ],
)
def test_the_verdict_is_by_what_was_reused(first: int, second: int, trims: bool, verdict: Reuse) -> None:
    assert judge(prompt=48, first=first, second=second, trims=trims) is verdict


@pytest.mark.parametrize(
    ("plain", "windowed", "verdict"),
    [(True, False, Reuse.TRIM), (True, True, Reuse.EXACT), (False, False, Reuse.EXACT)],
)
async def test_what_a_model_s_cache_is_good_for(tmp_path: Path, plain: bool, windowed: bool, verdict: Reuse) -> None:
    llama = FakeLlama(tmp_path, plain=plain)
    found = await probe(llama.api, tmp_path, name="p", slot=0, windowed=windowed)
    assert (found.reuse, found.plain) == (verdict, plain)
    assert found.kv_bytes_per_token >= LAYOUT.bytes_per_token
    assert llama.slots[0] == ()
    assert not llama.files()
    assert all(length >= PROBE_TOKENS for _, _, length in llama.prefills)


@pytest.mark.parametrize("how", ["refused", "ignored"])
async def test_a_restore_that_is_of_no_use_is_found_out(tmp_path: Path, how: str) -> None:
    llama = FakeLlama(tmp_path)
    llama.refuses_restores, llama.ignores_restores = how == "refused", how == "ignored"
    found = await probe(llama.api, tmp_path, name="p", slot=0, windowed=False)
    assert found.reuse is Reuse.NONE
    assert not llama.files()


async def test_files_of_several_streams_are_plain_too(tmp_path: Path) -> None:
    found = await probe(FakeLlama(tmp_path, streams=4).api, tmp_path, name="p", slot=0, windowed=False)
    assert found.plain
