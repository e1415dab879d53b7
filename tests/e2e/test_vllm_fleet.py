"""A fleet in small: one vLLM server fills, another one serves, disk and Redis between them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from fakes.redis_server import RedisServer
from nightfill.config import ByteSize, TierSettings
from serving import eventually, source_text
from vllm_store import BLOCK, block_files, disk, flags_for, kv_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from serving import Serve
    from vllm_server import VllmServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

SLICE = 2 * BLOCK


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.close()


def computed(server: VllmServer) -> float:
    return server.metric("vllm:prompt_tokens_by_source_total", source="local_compute")


def keys_in(redis: RedisServer) -> set[bytes]:
    (found,) = redis.call([b"KEYS", b"*"])
    assert isinstance(found, list)
    return {bytes(key) for key in found if isinstance(key, bytes | bytearray)}


def wait_stored(serve: Serve, tokens: int) -> None:
    eventually(
        lambda: any(fill["stored_tokens"] >= tokens for fill in serve.fills("code")),
        within_s=120,
        what=f"{tokens} tokens stored",
    )


def kill_worker(serve: Serve, dead: set[int]) -> int:
    """Wait for a worker other than those, and kill it."""
    eventually(lambda: serve.worker_pid not in {None, *dead}, within_s=20, what="a worker")
    pid = serve.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_fill_whose_worker_is_killed_goes_on_and_deletion_leaves_nothing(
    new_vllm: Callable[..., VllmServer], new_serve: Callable[..., Serve], tmp_path: Path, redis: RedisServer
) -> None:
    tier = TierSettings(kind="redis", url=redis.url, max_bytes=ByteSize(1 << 30))
    flags = flags_for(kv_of(disk(tmp_path / "kv"), tier), data_dir=tmp_path)
    filler = new_vllm(flags=flags, environment={"VLLM_SERVER_DEV_MODE": "1"}).launch()
    server = new_vllm(flags=flags).launch()
    for one in (filler, server):
        one.ready()
    settings: dict[str, Any] = {
        "engines": [
            {"name": "s", "kind": "vllm", "url": server.url, "roles": ["serve"]},
            {"name": "f", "kind": "vllm", "url": filler.url, "roles": ["fill"]},
        ],
        "kv": {
            "tiers": [
                {"kind": "disk", "path": str(tmp_path / "kv"), "max_bytes": 4 << 30},
                {"kind": "redis", "url": redis.url, "max_bytes": 1 << 30},
            ],
            "restore": "always",
        },
        "sleep": {"min_slice_tokens": SLICE, "max_slice_tokens": SLICE, "lease_s": 2},
    }
    serve = new_serve("gateway", model="tiny", settings=settings).start()
    serve.put("kept", source_text(1, functions=20))
    serve.wait_ready("kept")
    kept_files, kept_keys = set(block_files(tmp_path)), keys_in(redis)

    before = computed(filler)
    serve.put("code", source_text(2, functions=130))
    gone: set[int] = set()
    for wanted in (BLOCK, 3 * SLICE):
        wait_stored(serve, wanted)
        if serve.states("code") == ["ready"]:
            break
        # The next worker begins a moment after the last one was killed.
        gone.add(kill_worker(serve, gone))
        # What the engine itself remembers must not help: only what is stored does.
        assert filler.request("POST", "/reset_prefix_cache?reset_external=true").status == 200
    serve.wait_ready("code")
    assert gone
    (fill,) = serve.fills("code")
    tokens = fill["tokens"]
    # A slice in flight at each kill, the token after each slice, and the few of probes and proofs.
    assert computed(filler) - before <= tokens + len(gone) * SLICE + 2 * BLOCK

    assert computed(server) < BLOCK, "the other server has computed nothing of it"
    answer = serve.ask(context="code")
    assert (answer.status, answer.layer, answer.headers["x-nightfill-engine"]) == (200, "fill", "s")
    assert answer.reused == tokens
    assert computed(server) < 2 * BLOCK

    assert set(block_files(tmp_path)) > kept_files
    assert len(keys_in(redis)) > len(kept_keys)
    assert serve.request("DELETE", "/v1/nightfill/contexts/code").status in (200, 204)
    eventually(
        lambda: set(block_files(tmp_path)) == kept_files and keys_in(redis) == kept_keys,
        within_s=60,
        what="only the other context's blocks left on all tiers",
    )
    assert serve.ask(context="kept").layer == "fill"
