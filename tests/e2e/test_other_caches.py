"""Models whose cache cannot be cut into blocks: filled, killed, restored and proven as whole snapshots."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

import other_models
from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Answer, Serve

pytestmark = pytest.mark.e2e

SLICES = {
    "sleep": {"max_slice_tokens": 256, "max_slice_s": 0.05, "check_sources_every_s": 3600},
    "kv": {"tiers": [{"kind": "disk", "max_bytes": "1GiB", "direct": False}]},
}


@pytest.fixture(scope="module", params=["sliding_window", "hybrid"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: str = request.param
    path = tmp_path_factory.mktemp("models") / f"{kind}.gguf"
    make: Callable[[Path], Path] = getattr(other_models, kind)
    return make(path)


def first_logprob(answer: Answer) -> float:
    return float(answer.json()["choices"][0]["logprobs"]["content"][0]["logprob"])


def snapshots(serve: Serve) -> list[int]:
    """Sizes of the stored files that may hold a snapshot."""
    return sorted(path.stat().st_size for path in (serve.data_dir / "kv").rglob("*") if path.is_file())


def test_a_snapshot_is_used_by_each_query_also_after_the_engine_was_killed(
    new_serve: Callable[..., Serve], model: Path
) -> None:
    serve = new_serve(model=str(model)).start()
    serve.put("code", source_text(1, functions=60))
    serve.wait_ready("code")
    tokens = serve.fills("code")[0]["tokens"]
    for _ in range(2):
        for question in ("What is it for?", "How does it end?", "What is it for?"):
            filled = serve.ask(question, context="code", logprobs=True)
            assert filled.layer == "fill"
            assert filled.reused >= 0.95 * tokens
            cold = serve.ask(question, context="code", skip=("fill",), logprobs=True)
            assert (cold.layer, cold.reused) == ("cold", 0)
            assert filled.text == cold.text
            assert first_logprob(filled) == pytest.approx(first_logprob(cold), abs=0.05)
        pid = serve.live_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: serve.request("GET", "/readyz").status == 503, within_s=10, what="the engine's end")
        eventually(lambda: serve.request("GET", "/readyz").status == 200, within_s=30, what="the next engine")
    assert serve.metric("nightfill_broken_promises_total") == 0


def test_a_fill_that_was_killed_goes_on_from_its_last_snapshot_and_keeps_no_old_ones(
    new_serve: Callable[..., Serve], model: Path
) -> None:
    serve = new_serve(model=str(model), settings=SLICES).start()
    serve.put("code", source_text(2, functions=300))
    eventually(
        lambda: any(fill["stored_tokens"] >= 1024 for fill in serve.fills("code")), within_s=60, what="some slices"
    )
    kept = serve.fills("code")[0]["stored_tokens"]
    worker = serve.worker_pid
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    assert serve.states("code") == ["filling"]
    # Part of a context is of use already.
    part = serve.ask(context="code")
    assert (part.layer, part.status) == ("fill", 200)
    assert part.reused >= kept - 8
    serve.wait_ready("code")
    tokens = serve.fills("code")[0]["tokens"]
    computed = sum(int(n.replace(",", "")) for n in serve.logged(r"ready, \d+ tokens, (\d+) computed now"))
    assert computed <= tokens - kept + 512
    assert serve.ask(context="code").reused >= 0.95 * tokens
    whole = [size for size in snapshots(serve) if size > 100_000]
    assert len(whole) <= 2, whole


def test_a_new_version_is_filled_anew_and_the_old_one_never_used(new_serve: Callable[..., Serve], model: Path) -> None:
    serve = new_serve(model=str(model)).start()
    text = source_text(3, functions=60)
    serve.put("code", text)
    serve.wait_ready("code")
    serve.put("code", text.replace("return", "yield", 3) + source_text(4, functions=5))
    between = serve.ask(context="code")
    assert between.status == 200
    serve.wait_ready("code")
    tokens = serve.fills("code")[0]["tokens"]
    after = serve.ask(context="code")
    assert (after.layer, after.reused >= 0.95 * tokens) == ("fill", True)
    cold = serve.ask(context="code", skip=("fill",))
    assert after.text == cold.text
    assert serve.metric("nightfill_broken_promises_total") == 0
