"""Questions foreseen by a real server: asked of one version of a context, answered for the next before anybody asks."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pytest

from nightfill.config import EngineSettings, KvSettings
from nightfill.contexts import Form, Front, Text
from nightfill.engines.engine import Call, Prefix
from nightfill.engines.llama.engine import LlamaEngine
from nightfill.engines.llama.model import load
from nightfill.engines.llama.process import LlamaProcess
from nightfill.kv import open_store
from nightfill.sleep.answer_request import tell
from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Serve

pytestmark = pytest.mark.e2e

SETTINGS: Final[dict[str, Any]] = {
    "engines": [{"model": "demo:tiny", "slots": 1}],
    "kv": {"tiers": [{"kind": "disk", "max_bytes": "1GB", "min_free_bytes": 0}]},
    "sleep": {"plan_every_s": 0.3, "audit_share": 0.0},
    "foresee": {"every_s": 0.5, "max_tokens": 8, "per_context": 6, "model_questions": 2},
}
OPTIONS: Final = {"answers": "exact", "foresee": True}
ASKED: Final = ("Where does it begin?", "Which one is the last?")


def foreseen(serve: Serve, name: str) -> dict[str, Any]:
    done = serve.cli("foresee", name, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def counts(view: dict[str, Any]) -> dict[str, dict[str, int]]:
    return {one["origin"]: one for one in view["counts"]}


def test_what_was_asked_of_one_version_is_answered_for_the_next_before_it_is_asked(
    new_serve: Callable[..., Serve],
) -> None:
    serve = new_serve("serve", settings=SETTINGS).start()
    serve.put("c", source_text(1, functions=20), options=OPTIONS)
    for question in ASKED:
        assert serve.ask(question, context="c").layer != "answer"

    text = source_text(2, functions=20)
    serve.put("c", text, options=OPTIONS)
    serve.wait_ready("c")
    eventually(
        lambda: {job["kind"] for job in serve.jobs() if job["state"] == "done"} >= {"predict", "answer"},
        within_s=120,
        what="answers are prepared",
    )
    view = foreseen(serve, "c")
    assert {one["question"] for one in view["questions"] if one["prepared"]} >= set(ASKED)
    before = counts(view)
    assert (before["log"]["prepared"], before["log"]["used"]) == (2, 0)
    assert before["structure"]["prepared"] > 0

    answer = serve.ask(ASKED[0], context="c")
    assert (answer.layer, answer.headers["x-nightfill-cache"]) == ("answer", "HIT")
    assert answer.usage["completion_tokens"] <= 8
    assert answer.usage["prompt_tokens_details"]["cached_tokens"] > 0, "it was made with the filled KV"
    streamed = serve.ask(ASKED[0], context="c", stream=True)
    assert (streamed.layer, streamed.text) == ("answer", answer.text)
    name = text.partition("def ")[2].partition("(")[0]
    assert serve.ask(f"What does {name} do?", context="c").layer == "answer", "the text's own structure told it"
    assert serve.ask("What has nobody foreseen?", context="c").layer == "fill"
    eventually(lambda: counts(foreseen(serve, "c"))["log"]["uses"] == 2, within_s=20, what="uses are counted")
    after = counts(foreseen(serve, "c"))
    assert (after["log"]["used"], after["log"]["never_used"], after["structure"]["used"]) == (1, 1, 1)
    metrics = serve.metrics()
    assert metrics['nightfill_answers_served_total{origin="log"}'] == 2
    assert metrics['nightfill_answers_prepared_total{origin="log"}'] == 2

    # A new version ends it all, until it is foreseen anew.
    serve.put("c", source_text(3, functions=20), options=OPTIONS)
    assert serve.ask(ASKED[1], context="c").layer != "answer"


def test_nothing_is_prepared_for_a_context_that_did_not_ask_for_it(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve("serve", settings=SETTINGS).start()
    serve.put("c", source_text(1, functions=5), options={"answers": "exact"})
    serve.ask(ASKED[0], context="c")
    serve.wait_ready("c")
    assert foreseen(serve, "c")["why_not"].startswith("off for this context")
    refused = serve.cli("foresee", "c", "--now")
    assert refused.returncode == 2
    assert "nothing can be foreseen" in refused.stderr
    assert {job["kind"] for job in serve.jobs()} == {"fill"}


async def test_an_engine_that_fills_between_two_answers_loads_what_it_answers_with_again(
    tmp_path: Path, serve_home: Path
) -> None:
    """Both use the one slot of a filling engine; what the slot table believed before a fill is not true after it."""
    settings = EngineSettings(model="demo:tiny", context_length=2048)
    with contextlib.closing(open_store(KvSettings(), data_dir=tmp_path)) as store:
        model = load(settings, filling=True, cache_dir=serve_home / ".cache", scratch_dir="", data_dir=tmp_path)
        process = LlamaProcess(model.child(), name="fill")
        async with contextlib.aclosing(LlamaEngine(model, process=process, store=store, block_tokens=256)) as engine:
            contents = [Text(source_text(seed, functions=20)) for seed in (1, 2)]
            prefixes = [
                Prefix(tokens=await engine.prefix_tokens(content, Form.CHAT), salt=bytes(32), stamp=1.0)
                for content in contents
            ]
            reused = []
            for prefix in (*prefixes, *prefixes):
                async with engine.fill(prefix) as fill:
                    await fill.resume()
                    await fill.extend(len(prefix.tokens))
                    await fill.keep()
                placed = Front(contents[0]).chat([msgspec.Raw(b'{"role":"user","content":"Where is it?"}')])
                body = {"messages": b"[" + b",".join(map(bytes, placed)) + b"]", "max_tokens": b"4"}
                call = Call(
                    path="/v1/chat/completions",
                    body={name: msgspec.Raw(raw) for name, raw in body.items()},
                    stream=False,
                    prefix=prefixes[0],
                    salt=prefixes[0].salt,
                )
                told = await tell(engine, call, max_bytes=1 << 20)
                reused.append((told.tokens.reused or 0) / len(prefixes[0].tokens))
    assert min(reused) > 0.95, reused
