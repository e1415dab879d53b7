"""Stored answers of a real server: equal questions, questions that mean the same, and what ends them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import pytest

from serving import Answer, eventually, marked, source_text

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


def test_near_answers_come_back_when_the_process_that_reads_questions_is_killed(
    new_serve: Callable[..., Serve],
) -> None:
    serve = new_serve("serve", settings=SETTINGS).start()
    serve.put("code", source_text(1, functions=5))
    stored(serve, lambda: near(serve, ASKED))

    def hits() -> bool:
        answer = near(serve, ALIKE, cache={"no-store": True})
        assert answer.status == 200
        return answer.headers["x-nightfill-cache"] == "SEMANTIC-HIT"

    def readers() -> list[int]:
        return [one.pid for one in marked(serve.mark) if ".reader_child" in one.command]

    eventually(hits, within_s=30, what="the index has it")
    (first,) = readers()
    os.kill(first, signal.SIGKILL)
    assert near(serve, ALIKE, cache={"no-store": True}).headers["x-nightfill-cache"] == "MISS"
    eventually(hits, within_s=60, what="a new one reads")
    (second,) = readers()
    assert second != first
    assert serve.metrics()['nightfill_answer_lookups_total{layer="near",result="busy"}'] >= 1
    assert "near answers are back" in serve.log_text()
    serve.stop()
    assert readers() == []


def leave_midway(serve: Serve, body: dict[str, Any]) -> bytes:
    """Ask, read the beginning of the reply, and hang up. Its buffers are small, or the reply would be through."""
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(data)}\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        client.settimeout(20)
        client.connect(serve.address)
        client.sendall(head.encode() + data)
        read = client.recv(4096)
        while b"\r\n\r\n" not in read:
            read += client.recv(4096)
    return read


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_in_the_middle_of_a_stored_answer_is_counted_and_nothing_of_it_stays(
    new_serve: Callable[..., Serve], stream: bool
) -> None:
    settings = {**SETTINGS, "answers": {"mode": "exact", "max_answer_bytes": "8MB"}}
    serve = new_serve("serve", settings=settings).start()
    # Log-probabilities make it long.
    asked: dict[str, Any] = {"max_tokens": 300, "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
    first = stored(serve, lambda: serve.ask(**asked))
    assert len(first.body) > 200_000
    messages = [{"role": "user", "content": "What is it for?"}]
    body = {"messages": messages, "temperature": 0, **asked, "stream": stream}
    read = leave_midway(serve, body)
    assert b"x-nightfill-layer: answer" in read

    eventually(lambda: serve.metric("nightfill_clients_left_total") == 1, within_s=20, what="it is seen that it left")
    eventually(lambda: serve.metric("nightfill_in_flight_requests") == 0, within_s=20, what="nothing is in flight")
    again = serve.ask(**asked)
    assert (again.layer, again.text) == ("answer", first.text)
    with closing(sqlite3.connect(serve.data_dir / "state.db")) as db:
        rows = "SELECT layer, status FROM accesses ORDER BY id"
        eventually(
            lambda: db.execute(rows).fetchall() == [("cold", 200), ("answer", 499), ("answer", 200)],
            within_s=20,
            what="the access log tells it",
        )
