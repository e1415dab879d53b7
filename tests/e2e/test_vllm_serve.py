"""`nightfill serve` before real vLLM servers: contexts filled when idle, used after a restart, and across servers."""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING, Any

import pytest

from serving import distance, eventually, source_text
from vllm_store import BLOCK, disk, flags_for, kv_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Serve
    from vllm_server import VllmServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 20, "max_tokens": 1}
KEYS = {"one": "key-of-one", "two": "key-of-two"}


def settings(folder: Path, *servers: VllmServer, roles: tuple[tuple[str, ...], ...] = ((),)) -> dict[str, Any]:
    return {
        "engines": [
            {"name": f"v{number}", "kind": "vllm", "url": server.url, "roles": role}
            for number, (server, role) in enumerate(zip(servers, roles, strict=True))
        ],
        "kv": {"tiers": [{"kind": "disk", "path": str(folder / "kv"), "max_bytes": 4 << 30}], "restore": "always"},
        "split": {"min_tokens": 300},
    }


def flags(folder: Path) -> list[str]:
    return flags_for(kv_of(disk(folder / "kv")), data_dir=folder)


def test_a_context_is_filled_when_idle_and_loaded_after_the_server_was_restarted(
    new_vllm: Callable[..., VllmServer], new_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    server = new_vllm(flags=flags(tmp_path)).start()
    serve = new_serve("gateway", model="tiny", settings=settings(tmp_path, server)).start()
    serve.put("code", source_text(1, functions=60), forms=("chat", "completion"))
    serve.wait_ready("code")
    for fill in serve.fills("code"):
        assert fill["tokens"] == fill["stored_tokens"] >= 4 * BLOCK
        assert fill["tokens"] % BLOCK == 0
    tokens = serve.fills("code")[0]["tokens"]
    hot = serve.ask(context="code", **LOGPROBS)
    assert (hot.layer, hot.headers["x-nightfill-engine"]) == ("fill", "v0")

    server.restart()
    loaded = serve.ask(context="code", **LOGPROBS)
    assert (loaded.status, loaded.layer) == (200, "fill")
    assert loaded.reused == tokens
    assert distance(loaded, hot) < 0.1
    streamed = serve.ask("And how?", context="code", stream=True)
    assert (streamed.layer, streamed.finished) == ("fill", True)
    assert streamed.reused >= tokens
    assert serve.ask(context="code", path="/v1/completions").layer == "fill"
    cold = serve.ask(context="code", skip=("fill",), **LOGPROBS)
    assert (cold.layer, cold.reused) == ("cold", 0)
    assert distance(cold, hot) < 0.1
    assert serve.metric("nightfill_broken_promises_total") == 0

    server.stop()
    assert serve.ask(context="code").status == 503
    server.start()
    assert serve.ask(context="code").layer == "fill"


def test_tenants_share_nothing_and_fills_give_way_to_live_requests(
    shared_vllm: Callable[..., VllmServer], new_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    server = shared_vllm(*flags(tmp_path))
    wanted = {**settings(tmp_path, server), "gateway": {"api_keys": KEYS}}
    serve = new_serve("gateway", model="tiny", settings=wanted).start()
    one, two = ({"authorization": f"Bearer {key}"} for key in KEYS.values())
    question = {"messages": [{"role": "user", "content": source_text(2, functions=40)}], "max_tokens": 1}

    def reused(headers: dict[str, str], **more: Any) -> int:
        answer = serve.request("POST", "/v1/chat/completions", {**question, **more}, headers=headers)
        assert answer.status == 200, answer.body
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [reused(one), reused(two), reused(two, cache_salt="mine")] == [0, 0, 0]
    assert min(reused(one), reused(two), reused(two, cache_salt="mine")) > 1000

    put = {"text": source_text(3, functions=220), "forms": ["chat"]}
    assert serve.request("PUT", "/v1/nightfill/contexts/long", put, headers=one).status == 201
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        alive = pool.submit(lambda: [reused(two) for _ in range(20)])
        assert min(alive.result(120)) > 1000

    def states() -> list[str]:
        context = serve.request("GET", "/v1/nightfill/contexts/long", headers=one).json()
        return [fill["state"] for fill in context["fills"]]

    eventually(lambda: states() == ["ready"], within_s=120, what="the long context filled")


def test_one_server_computes_the_prompt_and_another_one_answers(
    new_vllm: Callable[..., VllmServer], new_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    first, second = (new_vllm(name, flags=flags(tmp_path)).launch() for name in ("prefill", "decode"))
    first.ready()
    second.ready()
    roles = (("prefill",), ("decode", "fill"))
    serve = new_serve("gateway", model="tiny", settings=settings(tmp_path, first, second, roles=roles)).start()
    text = source_text(4, functions=60)
    split = serve.ask(text, stream=True)
    assert (split.status, split.headers["x-nightfill-engine"]) == (200, "v1")
    prompt = int(split.usage["prompt_tokens"])
    assert prompt - split.reused < BLOCK, "at most the tail is computed where the answer is"
    assert serve.ask("Short?").status == 200

    first.kill()
    alone = serve.ask(source_text(5, functions=60))
    assert (alone.status, alone.reused) == (200, 0)
