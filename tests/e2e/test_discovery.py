"""Live discovery: what many requests begin with becomes a context by itself, and is filled."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving import Serve

pytestmark = pytest.mark.e2e


def test_a_long_prompt_that_comes_again_and_again_becomes_a_context_is_filled_and_used(
    new_serve: Callable[..., Serve],
) -> None:
    settings = {"discovery": {"enabled": True, "min_tokens": 256, "register": True}}
    serve = new_serve("serve", settings=settings).start()
    manual = source_text(7, functions=60)

    def ask(question: str) -> str:
        messages = [{"role": "system", "content": manual}, {"role": "user", "content": question}]
        answer = serve.request(
            "POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 4, "temperature": 0}
        )
        assert answer.status == 200, answer.body
        return answer.layer

    def found() -> list[str]:
        answer = serve.request("GET", "/v1/nightfill/contexts")
        return [context["name"] for context in answer.json()["data"]]

    assert ask("What is it for?") == "cold"
    assert ask("Who wrote it?") in ("cold", "prefix")
    assert found() == []
    ask("What comes first?")
    eventually(lambda: len(found()) == 1, within_s=20, what="a context that was found")
    (name,) = found()
    assert name.startswith("found-")
    serve.wait_ready(name)
    assert ask("And what comes last?") == "fill"
    shown = json.loads(serve.cli("discovered", "--url", serve.url, "--json").stdout)
    assert (shown["registered"], shown["kept"]) == ([name], [])
    assert shown["data"][0]["requests"] >= 3
    assert manual[:40] not in json.dumps(shown)
    assert serve.metric("nightfill_discovery_registered_total") == 1
    assert manual[:40] not in serve.log_text()

    serve.request("DELETE", f"/v1/nightfill/contexts/{name}")
    for question in ("One?", "Two?", "Three?", "Four?"):
        ask(question)
    eventually(
        lambda: serve.metric("nightfill_discovery_requests_total") >= 8, within_s=20, what="all requests looked at"
    )
    assert found() == [], "what somebody deleted does not come back by itself"
