"""Stored answers of a real server: equal questions, questions that mean the same, and what ends them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from serving import Answer, eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving import Serve

pytestmark = pytest.mark.e2e

SETTINGS: Final[dict[str, Any]] = {
    "engines": [{"model": "demo:tiny", "slots": 1}],
    "kv": {"tiers": [{"kind": "disk", "max_bytes": "1GB", "min_free_bytes": 0}]},
    "sleep": {"enabled": False},
    "answers": {"mode": "near", "near_timeout_s": 30},
}
ASKED: Final = "How do I cancel my order?"
ALIKE: Final = "How can I cancel my order?"
OTHER: Final = "How can I not cancel my order?"
STOP: Final = [" "]
"""The demo model's noise comes by it soon: only a reply that did not end at a bound may serve a near question."""


def kept(serve: Serve, outcome: str = "stored") -> float:
    return serve.metrics().get(f'nightfill_answers_kept_total{{outcome="{outcome}"}}', 0.0)


def stored(serve: Serve, ask: Callable[[], Answer]) -> Answer:
    """Ask, and wait until the reply is stored."""
    before = kept(serve)
    answer = ask()
    eventually(lambda: kept(serve) == before + 1, within_s=20, what="the reply is stored")
    return answer


def near(serve: Serve, question: str, **members: Any) -> Answer:
    return serve.ask(question, context="code", max_tokens=64, stop=STOP, **members)


def test_answers_of_a_real_engine_are_given_again_until_their_context_changes(
    new_serve: Callable[..., Serve],
) -> None:
    serve = new_serve("serve", settings=SETTINGS).start()
    serve.put("code", source_text(1, functions=5))
    first = stored(serve, lambda: serve.ask(context="code"))
    assert first.headers["x-nightfill-cache"] == "MISS"
    again = serve.ask(context="code")
    assert (again.layer, again.headers["x-nightfill-cache"]) == ("answer", "HIT")
    assert (again.text, again.usage) == (first.text, first.usage)
    assert int(again.headers["age"]) < 60
    streamed = serve.ask(context="code", stream=True)
    assert (streamed.layer, streamed.text, streamed.finished) == ("answer", first.text, True)
    assert streamed.usage == first.usage
    fresh = serve.request(
        "POST",
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hm?"}], "max_tokens": 4},
        headers={"cache-control": "only-if-cached"},
    )
    assert (fresh.status, fresh.error["code"]) == (504, "not_stored")

    serve.put("code", source_text(2, functions=5))
    assert serve.ask(context="code").headers["x-nightfill-cache"] == "MISS"
    serve.request("DELETE", "/v1/nightfill/contexts/code")
    report = serve.cli("answers", "report", "--json")
    assert report.returncode == 0, report.stderr
    eventually(
        lambda: json.loads(serve.cli("answers", "report", "--json").stdout)["served"]["exact"] == 2,
        within_s=20,
        what="both are in the access log",
    )


def test_a_question_that_means_the_same_is_answered_also_after_a_restart(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve("serve", settings=SETTINGS).start()
    serve.put("code", source_text(1, functions=5))
    first = stored(serve, lambda: near(serve, ASKED))
    assert first.json()["choices"][0]["finish_reason"] == "stop", first.body

    def hits() -> bool:
        return near(serve, ALIKE, cache={"no-store": True}).headers["x-nightfill-cache"] == "SEMANTIC-HIT"

    eventually(hits, within_s=30, what="the index has it")
    found = near(serve, ALIKE)
    assert (found.layer, found.text) == ("answer", first.text)
    assert float(found.headers["x-nightfill-cache-similarity"]) > 0.8
    assert near(serve, OTHER).headers["x-nightfill-cache"] == "MISS"
    serve.stop()
    serve.start()
    assert near(serve, ASKED).headers["x-nightfill-cache"] == "HIT"
    eventually(hits, within_s=30, what="the index is brought back")
