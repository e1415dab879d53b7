"""A context is distilled in idle time, its distilled version filled and used, and dropped when the context changes."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from serving import Answer, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving import Serve

pytestmark = pytest.mark.e2e


def manual(seed: int, *, sentences: int = 30) -> str:
    """Prose of a made-up manual; each sentence has a number of its own."""
    rng = random.Random(seed)
    parts = ["pump", "valve", "gauge", "filter", "hose"]
    return " ".join(
        f"The {rng.choice(parts)} of type {rng.randrange(10**5)} was found to hold {rng.randrange(90)} bar."
        for _ in range(sentences)
    )


def ask(serve: Serve, mode: str) -> Answer:
    body = {
        "messages": [{"role": "user", "content": "How much?"}],
        "max_tokens": 4,
        "temperature": 0,
        "nightfill": {"context": "manual", "mode": mode},
    }
    answer = serve.request("POST", "/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    return answer


def prompt_tokens(answer: Answer) -> int:
    return int(answer.json()["usage"]["prompt_tokens"])


def wait_filled(serve: Serve) -> dict[str, Any]:
    """The context, once both of its texts are filled."""

    def ready() -> bool:
        return [(fill["distilled"], fill["state"]) for fill in serve.fills("manual")] == [
            (False, "ready"),
            (True, "ready"),
        ]

    eventually(ready, within_s=120, what="fills of both texts")
    return serve.context("manual")


def test_a_long_context_is_served_distilled_from_its_fill_until_it_changes(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve("serve", settings={"distil": {"min_tokens": 300, "ratio": 4, "method": "extractive"}}).start()
    serve.put("manual", manual(1), options={"distil": True})
    context = wait_filled(serve)
    full, short, either = ask(serve, "full"), ask(serve, "distilled"), ask(serve, "auto")
    assert [one.headers["x-nightfill-mode"] for one in (full, short, either)] == ["full", "distilled", "full"]
    assert (full.layer, short.layer) == ("fill", "fill")
    assert short.headers["x-nightfill-context"] == f"manual@{context['distilled'][:12]}"
    assert prompt_tokens(short) < prompt_tokens(full) / 3
    shown = serve.cli("context", "show", "manual").stdout
    assert "distilled chat ready" in shown
    assert json.loads(serve.cli("context", "show", "manual", "--json").stdout)["distilled"] == context["distilled"]

    serve.put("manual", manual(2), options={"distil": True})
    changed = serve.context("manual")
    assert changed["fingerprint"] != context["fingerprint"]
    answer = ask(serve, "distilled")
    assert not answer.headers["x-nightfill-context"].endswith(context["distilled"][:12])
    again = wait_filled(serve)
    assert again["distilled"] not in (None, context["distilled"])
    assert ask(serve, "distilled").headers["x-nightfill-context"] == f"manual@{again['distilled'][:12]}"
    assert serve.metric("nightfill_broken_promises_total") == 0


def test_an_engine_is_asked_to_write_and_what_it_says_is_not_taken_when_it_is_noise(
    new_serve: Callable[..., Serve],
) -> None:
    serve = new_serve("serve", settings={"distil": {"min_tokens": 300, "ratio": 4, "method": "model"}}).start()
    text = manual(3)
    serve.put("manual", text, options={"distil": True})
    eventually(lambda: serve.context("manual")["distilled"] is not None, within_s=120, what="a distilled version")
    job = next(one for one in json.loads(serve.cli("jobs", "ls", "--all", "--json").stdout) if one["kind"] == "distil")
    assert (job["state"], job["note"].split(";")[0]) == ("done", "by sentences of its own")
    answer = ask(serve, "distilled")
    assert answer.headers["x-nightfill-mode"] == "distilled"
    assert prompt_tokens(answer) < len(text) / 4
