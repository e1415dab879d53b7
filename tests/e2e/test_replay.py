"""Contexts kept warm in the live engine's own slots, as for a model whose restored KV is not used."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving import Serve

pytestmark = pytest.mark.e2e


def settings(slots: int) -> dict[str, Any]:
    engine = {"model": "demo:tiny", "reuse": "replay", "slots": slots, "batch_tokens": 256}
    return {"engines": [engine], "sleep": {"max_slice_s": 0.2, "max_slice_tokens": 1024}}


@pytest.fixture
def serve(new_serve: Callable[..., Serve]) -> Serve:
    return new_serve("replay", settings=settings(2)).start()


def lines(serve: Serve) -> dict[str, str]:
    """`nightfill plan`: why, by context."""
    answer = serve.request("GET", "/v1/nightfill/plan")
    assert answer.status == 200, answer.body
    return {line["context"]: line["why"] for line in answer.json()}


def test_a_context_is_computed_in_a_slot_when_idle_and_used_from_there(serve: Serve) -> None:
    serve.put("code", source_text(1, functions=60))
    serve.wait_ready("code")
    tokens = serve.fills("code")[0]["tokens"]
    assert lines(serve)["code"] == f"kept warm by replay: {tokens:,} tokens in a slot"
    for question in ("What is it for?", "How does it end?"):
        filled = serve.ask(question, context="code")
        assert filled.layer == "fill"
        assert filled.reused >= tokens - 8
    assert serve.metric("nightfill_restore_seconds_sum") == 0
    cold = serve.ask(context="code", skip=("fill",))
    assert (cold.layer, cold.reused) == ("cold", 0)
    assert serve.metric("nightfill_broken_promises_total") == 0


def test_other_requests_leave_the_warm_slot_alone(serve: Serve) -> None:
    serve.put("code", source_text(1, functions=60))
    serve.wait_ready("code")
    tokens = serve.fills("code")[0]["tokens"]
    for n in range(4):
        assert serve.ask(f"Something else {n}. " + source_text(n, functions=10)).status == 200
    answer = serve.ask(context="code")
    assert (answer.layer, answer.reused >= tokens - 8) == ("fill", True)


def test_after_the_engine_was_killed_it_is_computed_again(serve: Serve) -> None:
    serve.put("code", source_text(1, functions=60))
    serve.wait_ready("code")
    tokens = serve.fills("code")[0]["tokens"]
    pid = serve.live_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: serve.states("code") == ["filling"], within_s=20, what="that it is lost is noticed")
    serve.wait_ready("code")
    answer = serve.ask(context="code")
    assert (answer.layer, answer.reused >= tokens - 8) == ("fill", True)


@pytest.mark.parametrize("slots", [1, 2])
def test_a_live_request_stops_the_replay_within_a_batch_and_it_goes_on_afterwards(
    new_serve: Callable[..., Serve], slots: int
) -> None:
    serve = new_serve(settings=settings(slots)).start()
    alone = min(timed(serve) for _ in range(3))
    serve.put("code", source_text(1, functions=600))
    eventually(lambda: bool(serve.logged(r"(tokens begins to be warmed)")), within_s=30, what="the replay")
    during = [timed(serve) for _ in range(3)]
    assert serve.states("code") != ["ready"]
    # The whole takes many times as long.
    assert min(during) < alone + 1.0
    serve.wait_ready("code")
    assert serve.ask(context="code").layer == "fill"


def timed(serve: Serve) -> float:
    began_s = time.monotonic()
    assert serve.ask("Hello", max_tokens=1).status == 200
    return time.monotonic() - began_s


def test_only_as_many_are_kept_as_leave_a_slot_for_others(serve: Serve) -> None:
    serve.put("one", source_text(1, functions=30))
    serve.wait_ready("one")
    serve.put("two", source_text(2, functions=30))
    for _ in range(3):
        serve.ask(context="two")
    eventually(
        lambda: (
            lines(serve)["two"].startswith("kept warm by replay: ")
            and lines(serve)["one"].startswith("not kept warm by replay")
        ),
        within_s=30,
        what="the more valuable one in its place",
    )
    eventually(lambda: serve.states("two") == ["ready"], within_s=30, what="it is warm")
    answer = serve.ask(context="one")
    assert answer.status == 200
    eventually(lambda: serve.ask(context="two").layer == "fill", within_s=30, what="it stays or comes back")
