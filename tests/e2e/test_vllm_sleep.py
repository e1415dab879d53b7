"""`nightfill serve` with a vLLM server that it starts itself and puts to sleep: one server for all tests here.

A processor has no memory to give back: what is shown is that each call is made and answered, and what a request finds.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.engines.vllm.tree import descendants
from serving import Serve, distance, eventually, marked, source_text
from vllm_server import PYTHON, ROOT, TINY, UP_WITHIN_S

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 20, "max_tokens": 1}
BLOCK = 256


def settings(folder: Path) -> dict[str, Any]:
    engine = {
        "name": "v1",
        "kind": "vllm",
        "model": str(TINY),
        "context_length": 8192,
        "device": "ram",
        "launch": {
            "command": [str(PYTHON.with_name("vllm"))],
            "args": ["--enforce-eager"],
            "env": {
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": str(ROOT / "src"),
                "PYTHONWARNINGS": "default",  # those of vLLM and torch are not ours to repair
            },
            "cpu": True,
            "kv_cache_bytes": 128 << 20,
            "host_bytes": 128 << 20,
        },
    }
    return {
        "engines": [engine],
        "kv": {"tiers": [{"kind": "disk", "path": str(folder / "kv"), "max_bytes": 4 << 30}], "restore": "always"},
        "lifecycle": {
            "devices": [{"name": "ram", "max_bytes": 16 << 30}],
            "level_1_after_s": 0,
            "level_2_after_s": 0,
            "forecast": False,
        },
    }


@pytest.fixture(scope="module")
def serve(serve_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    folder = tmp_path_factory.mktemp("launched")
    serve = Serve(folder, home=serve_home, model=str(TINY), settings=settings(folder))
    try:
        yield serve.start(within_s=UP_WITHIN_S)
    finally:
        serve.close()


class Behind:
    """The vLLM server itself, past the gateway: where it listens and its key, as its process shows them to our user."""

    def __init__(self, serve: Serve) -> None:
        server = next(
            one for one in marked(serve.mark) if "/vllm serve " in one.command and ".guard " not in one.command
        )
        self.pid, self.guard = server.pid, server.parent
        words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        self.port = int(words[words.index(b"--port") + 1])
        variables = dict(
            one.split(b"=", 1) for one in Path(f"/proc/{self.pid}/environ").read_bytes().split(b"\0") if b"=" in one
        )
        self.key = variables[b"VLLM_API_KEY"].decode()
        self.words = b" ".join(words).decode()

    def ask(
        self, method: str, path: str, body: object = None, *, key: str | None = None, within_s: float = 30
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=within_s)
        try:
            headers = {"content-type": "application/json", "authorization": f"Bearer {key or self.key}"}
            connection.request(method, path, json.dumps(body or {}) if method == "POST" else None, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(data) if data[:1] in b"{[" and data else None

    def sleeps(self) -> bool:
        status, body = self.ask("GET", "/is_sleeping")
        assert status == 200
        return bool(body["is_sleeping"])


def lifecycle(serve: Serve) -> dict[str, Any]:
    answer = serve.request("GET", "/v1/nightfill/engines")
    assert answer.status == 200, answer.body
    return dict(answer.json()["data"][0]["lifecycle"])


def put_to_sleep(serve: Serve, level: int) -> None:
    answer = serve.request("POST", "/v1/nightfill/engines/v1/sleep", {"level": level})
    assert answer.status == 200, answer.body
    assert lifecycle(serve)["state"] == f"asleep_{level}"


def said(serve: Serve) -> str:
    """What the vLLM server has said so far."""
    return (serve.data_dir / "engines" / "v1.log").read_text(encoding="utf-8", errors="replace")


def test_a_context_filled_before_either_sleep_serves_after_it(serve: Serve) -> None:
    behind = Behind(serve)
    serve.put("code", source_text(1, functions=60))
    serve.wait_ready("code")
    (fill,) = serve.fills("code")
    assert fill["tokens"] == fill["stored_tokens"] >= 4 * BLOCK
    hot = serve.ask(context="code", **LOGPROBS)
    assert (hot.layer, hot.reused >= fill["tokens"]) == ("fill", True)
    awake_s = {}
    for level in (1, 2):
        wakes = lifecycle(serve)["wakes"]
        put_to_sleep(serve, level)
        assert behind.sleeps()
        first, second = (serve.ask(context="code", **LOGPROBS) for _ in range(2))
        assert (first.layer, first.reused) == ("fill", fill["tokens"]), (
            "loaded from the store: vLLM's own cache is gone"
        )
        assert distance(first, hot) < 0.1
        assert distance(second, hot) == 0, "all of it is in vLLM's own cache again"
        state = lifecycle(serve)
        assert (state["state"], state["wakes"]) == ("awake", wakes + 1)
        awake_s[level] = state["last_wake"]["seconds"]
        assert not behind.sleeps()
    assert list(awake_s[1]) == ["load", "warm"]
    assert list(awake_s[2]) == ["load", "reset", "warm"]
    assert serve.metric("nightfill_broken_promises_total") == 0
    log = said(serve)
    for line in ("to fall asleep", "wake up the engine with tags: None", "sleep mode is not supported on CPU"):
        assert line in log
    second_level = log[log.index("wake up the engine with tags: ['weights']") :]
    assert second_level.index("Reloading") < second_level.index("tags: ['kv_cache']") < second_level.index("Resetting")
    assert "def f_" not in log, "no text of a prompt"


def test_what_is_being_stored_while_a_server_falls_asleep_gets_to_the_store(serve: Serve) -> None:
    behind = Behind(serve)
    prompt = random.Random(2).choices(range(300, 2000), k=6 * BLOCK + 1)
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, "cache_salt": "ab" * 32}

    def computed(**wish: bool) -> dict[str, Any]:
        status, answer = behind.ask("POST", "/v1/completions", {**body, "kv_transfer_params": {"nightfill": wish}})
        assert status == 200, answer
        return dict(answer)

    computed(store=True)
    put_to_sleep(serve, 1)
    assert serve.request("POST", "/v1/nightfill/engines/v1/wake").status == 200
    report = computed(store=False, report=True, load=True)["kv_transfer_params"]["nightfill"]
    assert (report["cached"], report["found"], report["loaded"]) == (0, 6 * BLOCK, 6 * BLOCK)


def test_a_sleeping_server_answers_all_but_requests_and_nobody_without_its_key(serve: Serve) -> None:
    behind = Behind(serve)
    assert behind.key not in behind.words
    for path in ("/sleep?level=1", "/wake_up", "/collective_rpc", "/reset_prefix_cache", "/v1/completions"):
        assert behind.ask("POST", path, key="somebody")[0] == 401
    for path in ("/is_sleeping", "/metrics", "/v1/models"):
        assert behind.ask("GET", path, key="somebody")[0] == 401
    assert not behind.sleeps()
    put_to_sleep(serve, 2)
    for path in ("/health", "/version", "/v1/models"):
        assert behind.ask("GET", path)[0] == 200
    body = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 1}
    with pytest.raises(TimeoutError):
        behind.ask("POST", "/v1/completions", body, within_s=1.5)
    assert behind.sleeps(), "and asking did not wake it"
    assert serve.request("GET", "/healthz").status == 200
    assert serve.request("GET", "/v1/models").status == 200
    assert behind.sleeps(), "neither does looking at the gateway"
    assert serve.ask("Awake?").status == 200


def test_a_fill_under_way_does_not_wake_what_was_put_to_sleep_by_hand(serve: Serve) -> None:
    assert serve.ask("Awake?").status == 200
    serve.put("more", source_text(3, functions=200))
    eventually(lambda: any(one["stored_tokens"] > 0 for one in serve.fills("more")), within_s=60, what="a part of it")
    put_to_sleep(serve, 1)
    (fill,) = serve.fills("more")
    assert fill["state"] == "filling"
    time.sleep(3)
    assert lifecycle(serve)["state"] == "asleep_1"
    assert serve.ask("Awake?").status == 200
    serve.wait_ready("more")


def test_a_server_that_dies_in_its_sleep_is_noticed_and_leaves_nothing(serve: Serve) -> None:
    behind = Behind(serve)
    put_to_sleep(serve, 1)
    processes = {behind.guard, *descendants(behind.guard)}
    assert len(processes) >= 4, "guard, HTTP, engine, worker"
    os.kill(behind.pid, signal.SIGKILL)
    eventually(lambda: not lifecycle(serve)["state"].startswith("asleep"), within_s=30, what="its end noticed")
    eventually(lambda: processes.isdisjoint(one.pid for one in marked(serve.mark)), within_s=30, what="all of it gone")
    assert "status 137" in lifecycle(serve)["error"]
