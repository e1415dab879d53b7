"""Real vLLM servers with one store: what one of them computed, all of them load, to the last bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from nightfill.engines.vllm.wire import Wish
from nightfill.kv import open_store
from vllm_store import BLOCK, ask, block_files, disk, fill, flags_for, keys, kv_of, poison, prompt

if TYPE_CHECKING:
    from collections.abc import Callable

    from nightfill.config import KvSettings
    from vllm_server import VllmServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WHOLE = 4 * BLOCK
"""Tokens of the prompts here that are stored."""
TAIL = 20
"""Tokens after them: fewer than vLLM's own block, so that its prefix cache has exactly what is stored."""

_NO_FP8: Final = "needs a processor with AVX-512, which vLLM wants for FP8 KV, and TEST_FP8=1: it was never run on one"
_FP8: Final = os.environ.get("TEST_FP8") == "1" and "avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8")

ARMS: Final = [
    pytest.param({}, id="bf16"),
    pytest.param({"tensor_parallel_size": 2}, id="bf16-tp2"),
    pytest.param({"kv_cache_dtype": "fp8_e4m3"}, id="fp8", marks=pytest.mark.skipif(not _FP8, reason=_NO_FP8)),
]


@pytest.mark.parametrize("arm", ARMS)
def test_what_one_server_computed_another_loads_and_answers_alike_to_the_last_bit(
    arm: dict[str, Any], new_vllm: Callable[..., VllmServer], tmp_path: Path
) -> None:
    kv = kv_of(disk(tmp_path / "kv"))
    # Small steps: prefill comes in chunks that are no whole number of stored blocks.
    flags = [*flags_for(kv, data_dir=tmp_path, **arm), "--max-num-batched-tokens", "320"]
    developing = {"VLLM_SERVER_DEV_MODE": "1"}
    first = new_vllm(flags=flags).start()
    ids = prompt(1, WHOLE + TAIL)
    fill(first, kv, ids)
    own, report = ask(first, ids, max_tokens=16)
    assert (own.cached_tokens, report.cached, report.loaded) == (WHOLE, WHOLE, 0), "vLLM's own prefix cache"
    first.kill()

    second = new_vllm(flags=flags, environment=developing).start()
    loaded, report = ask(second, ids, max_tokens=16)
    assert (loaded.cached_tokens, report.cached, report.loaded) == (WHOLE, 0, WHOLE)
    assert report.decision == "restore"
    assert (loaded.tokens, loaded.logprobs) == (own.tokens, own.logprobs)
    # What was loaded is now in the second's own prefix cache; passing over it loads again.
    fresh, report = ask(second, ids, Wish(fresh=True, store=False), max_tokens=16)
    assert (report.cached, report.loaded) == (0, WHOLE)
    assert (fresh.tokens, fresh.logprobs) == (own.tokens, own.logprobs)

    # The model would show it if a block were wrong.
    wrong = prompt(2, WHOLE + TAIL)
    report = fill(second, kv, wrong)
    right, _ = ask(second, wrong, max_tokens=16)
    poison(kv, keys(wrong, report)[1], report, place=1)
    assert second.request("POST", "/reset_prefix_cache?reset_external=true").status == 200
    poisoned, report = ask(second, wrong, max_tokens=16)
    assert report.loaded == WHOLE
    assert poisoned.logprobs[0] != right.logprobs[0]
    second.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def kv(folder: Path) -> KvSettings:
    """Encrypted, for a change."""
    key_file = folder / "kv.key"
    key_file.write_text("0f" * 32, encoding="utf-8")
    key_file.chmod(0o600)
    return kv_of(disk(folder / "kv"), key_file=str(key_file))


@pytest.fixture(scope="module")
def server(shared_vllm: Callable[..., VllmServer], folder: Path, kv: KvSettings) -> VllmServer:
    return shared_vllm(*flags_for(kv, data_dir=folder), environment={"VLLM_SERVER_DEV_MODE": "1"})


def test_without_a_wish_prompts_are_not_stored(server: VllmServer, folder: Path) -> None:
    before = block_files(folder)
    server.complete(prompt(10, WHOLE))
    ask(server, prompt(11, WHOLE), Wish(store=False))
    server.complete(prompt(12, WHOLE))
    assert block_files(folder) == before


def test_other_salts_share_nothing(server: VllmServer, folder: Path, kv: KvSettings) -> None:
    ids = prompt(20, WHOLE)
    ours = fill(server, kv, ids)
    before = set(block_files(folder))
    _, theirs = ask(server, ids, Wish(store=False), salt="cd" * 32)
    assert (theirs.found, theirs.cached, theirs.loaded) == (0, 0, 0)
    for salt in ("cd" * 32, "a text that is no hex"):
        assert fill(server, kv, ids, salt=salt).salt != ours.salt
    assert server.complete(ids).cached_tokens == 0, "without a salt"
    assert len(set(block_files(folder)) - before) == 2 * (WHOLE // BLOCK)


def test_a_prompt_that_is_a_prefix_of_what_is_stored_is_loaded_too(
    server: VllmServer, folder: Path, kv: KvSettings
) -> None:
    ids = prompt(30, WHOLE)
    fill(server, kv, ids)
    short, report = ask(server, ids[: 2 * BLOCK + 7], Wish(fresh=True, store=False))
    assert (report.found, report.loaded) == (2 * BLOCK, 2 * BLOCK)
    branch, report = ask(server, [*ids[:BLOCK], *prompt(31, 300)], Wish(fresh=True, store=False))
    assert (report.found, report.loaded, branch.cached_tokens) == (BLOCK, BLOCK, BLOCK)
    assert short.tokens


def test_a_fresh_request_loads_what_host_memory_lacks_and_passes_over_the_engines_own_cache(
    server: VllmServer, folder: Path, kv: KvSettings
) -> None:
    ids = prompt(35, WHOLE + TAIL)
    fill(server, kv, ids)
    assert server.request("POST", "/reset_prefix_cache?reset_external=true").status == 200
    first, report = ask(server, ids, Wish(fresh=True, store=False))
    assert (report.cached, report.loaded, first.cached_tokens) == (0, WHOLE, WHOLE)
    # Now the engine's own cache has it, and host memory.
    ask(server, ids)
    again, report = ask(server, ids, Wish(fresh=True, store=False))
    assert (report.cached, report.loaded) == (0, WHOLE)
    assert again.logprobs == first.logprobs


def test_a_cold_request_passes_over_all_caches(server: VllmServer, folder: Path, kv: KvSettings) -> None:
    ids = prompt(40, WHOLE + TAIL)
    fill(server, kv, ids)
    cold, report = ask(server, ids, Wish(cold=True, store=False))
    assert (cold.cached_tokens, report.cached, report.loaded) == (0, 0, 0)


def test_resetting_vllm_leaves_the_shared_store_alone(server: VllmServer, folder: Path, kv: KvSettings) -> None:
    ids = prompt(50, WHOLE + TAIL)
    fill(server, kv, ids)
    for path in ("/reset_prefix_cache?reset_external=true", "/pause", "/resume", "/sleep?level=1", "/wake_up"):
        answer = server.request("POST", path)
        assert answer.status == 200, (path, answer.body)
    done, report = ask(server, ids)
    assert (report.cached, report.loaded, done.cached_tokens) == (0, WHOLE, WHOLE)


def test_looking_up_costs_next_to_nothing(server: VllmServer, folder: Path, kv: KvSettings) -> None:
    ids = prompt(60, 7000)
    fill(server, kv, ids)
    reports = [ask(server, ids, Wish(fresh=True, store=False), max_tokens=1)[1] for _ in range(5)]
    assert all(report.loaded == 27 * BLOCK for report in reports)
    assert min(report.lookup_s for report in reports) < 0.02, "a slip of a power of ten would show"


def test_the_stores_counters_are_among_vllms_metrics(server: VllmServer) -> None:
    ask(server, prompt(61, 300), Wish(store=False))
    assert server.metric("nightfill_kv_hits_total", tier="disk") > 0


def test_what_lies_on_disk_is_encrypted(server: VllmServer, folder: Path, kv: KvSettings) -> None:
    ids = prompt(70, BLOCK)
    report = fill(server, kv, ids)
    (file,) = [file for file in block_files(folder) if file.stem == keys(ids, report)[0].hex()]
    in_the_clear = open_store(kv_of(disk(folder / "kv")), data_dir=folder)
    try:
        assert in_the_clear.get(keys(ids, report)[0], salt=bytes.fromhex(report.salt)) is None
    finally:
        in_the_clear.close()
    sample = file.read_bytes()[8192 : 8192 + 65536]
    assert len(set(sample)) == 256
    assert max(sample.count(byte) for byte in set(sample)) < 2 * len(sample) / 256, "as even as noise"
