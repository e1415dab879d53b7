"""A chat of 20 turns with a real llama.cpp: each turn computes its newest message and hardly anything else.

Between the turns the chat is filled, as it would be while a person reads and writes.
"""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING, Any, Final

import pytest

from serving import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving import Serve

pytestmark = pytest.mark.e2e

SLICE_TOKENS: Final = 64
"""`sleep.min_slice_tokens`: what closes a message in the chat template, and the end of a reply that the tokenizer cuts
in another way than it was generated, fit into it.
"""
WORDS: Final = ("river", "table", "engine", "cloud", "window", "prefix", "token", "mountain", "chair", "cache", "paper")
KILLED_BEFORE: Final = (8, 15)


def chats(serve: Serve) -> list[dict[str, Any]]:
    answer = serve.request("GET", "/v1/nightfill/contexts?chats=1")
    assert answer.status == 200
    return [one for one in answer.json()["data"] if one["name"].startswith("chat-")]


def wait_filled(serve: Serve, messages: list[dict[str, str]], *, kept_before: float) -> None:
    """Wait until what was said so far, and no less, is filled; or left for the next turn, being so little."""

    def turns(outcome: str) -> float:
        return serve.metrics().get(f'nightfill_history_turns_total{{outcome="{outcome}"}}', 0)

    eventually(lambda: turns("kept") + turns("short") == len(messages) // 2, within_s=20, what="the turn was taken in")
    if turns("kept") == kept_before:
        return
    said = sum(len(one["content"].encode()) for one in messages)

    def filled() -> bool:
        return any(
            one["bytes"] == said and any(fill["state"] == "ready" for fill in one["fills"]) for one in chats(serve)
        )

    eventually(filled, within_s=20, what="the chat is filled")


def kill_engine(serve: Serve) -> None:
    """What was in the engine's own cache is gone then."""
    before = serve.live_pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    eventually(lambda: serve.live_pid not in (None, before), within_s=20, what="the engine is back")


def test_turns_compute_their_newest_message_and_at_most_one_slice_more(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve(settings={"history": {"enabled": True}, "kv": {"restore": "measured"}}).start()
    rng = random.Random(5)
    serve.put("notes", " ".join(rng.choices(WORDS, k=500)))
    serve.wait_ready("notes")
    messages: list[dict[str, str]] = []
    for turn in range(1, 21):
        if turn in KILLED_BEFORE:
            kill_engine(serve)
        kept = serve.metrics().get('nightfill_history_turns_total{outcome="kept"}', 0)
        said = " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))
        messages.append({"role": "user", "content": said})
        body = {"messages": messages, "nightfill": {"context": "notes"}, "max_tokens": rng.choice((20, 40, 120))}
        answer = serve.request("POST", "/v1/chat/completions", {"temperature": 0, **body})
        assert answer.status == 200
        usage = answer.json()["usage"]
        computed = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        newest = len(serve.request("POST", "/tokenize", {"content": said}).json()["tokens"])
        assert answer.layer == "fill"
        assert computed <= newest + SLICE_TOKENS, f"turn {turn}: {computed} computed for a message of {newest}"
        messages.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
        wait_filled(serve, messages, kept_before=kept)
    assert serve.metric("nightfill_broken_promises_total") == 0
    eventually(lambda: len(chats(serve)) <= 4, within_s=20, what="earlier turns are forgotten")
    assert [one["name"] for one in serve.request("GET", "/v1/nightfill/contexts").json()["data"]] == ["notes"]
    line = next(one for one in serve.request("GET", "/v1/nightfill/ledger").json()["data"] if one["context"] == "notes")
    assert line["background_tokens"] > len(messages), "the fills are charged to the context"
    assert serve.request("DELETE", "/v1/nightfill/contexts/notes").status == 200
    assert chats(serve) == [], "the chat went with its context"
