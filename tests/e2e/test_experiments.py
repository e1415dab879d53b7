"""Experiments between real llama.cpp children: speculation that pays, and arms that break."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from serving import processes, source_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Answer, Serve

pytestmark = pytest.mark.e2e

MODEL = {"served_model_name": "loop", "context_length": 4096}
PLAIN = {"name": "plain", "model": "demo:loop", **MODEL}
GUESSING = {"name": "guessing", "model": "demo:loop", "speculation": {"method": "ngram"}, **MODEL}
MIN_REQUESTS = 5
TRIAL = {"name": "guess", "a": "plain", "b": "guessing", "share": 0.5, "min_requests": MIN_REQUESTS}


def by(serve: Serve, arm: str, content: str, **more: Any) -> Answer:
    """A greedy completion by that arm."""
    body = {"prompt": content, "max_tokens": 250, "temperature": 0, **more}
    answer = serve.request("POST", "/v1/completions", body, headers={"x-nightfill-experiment": f"guess={arm}"})
    assert (answer.status, answer.headers["x-nightfill-experiment"]) == (200, f"guess={arm}"), answer.body
    return answer


def text_of(answer: Answer) -> str:
    return str(answer.json()["choices"][0]["text"])


def experiment(serve: Serve, *arguments: str) -> Any:
    """What `nightfill experiment` says of the one there is."""
    done = serve.cli("experiment", arguments[0], "guess", *arguments[1:], "--url", serve.url, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_speculation_says_the_same_sooner_and_the_report_shows_it(
    new_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    serve = new_serve(model="demo:loop", settings={"engines": [PLAIN, GUESSING], "experiments": [TRIAL]}).start()
    # Filled by a child that does not guess, and loaded by one that does.
    serve.put("code", source_text(1, functions=30), forms=("completion",))
    for question in ("What?", "def f("):
        assert len({text_of(by(serve, arm, question)) for arm in "ab"}) == 1
    serve.wait_ready("code")
    a, b = (by(serve, arm, "What?", nightfill={"context": "code"}) for arm in "ab")
    assert text_of(a) == text_of(b)
    assert (a.layer, b.layer) == ("fill", "fill")

    for number in range(8):
        answer = serve.ask(f"question {number}", stream=True, max_tokens=200, user=f"user {number}")
        assert answer.status == 200
    report = experiment(serve, "show")
    arms = report["arms"]
    assert arms["a"]["requests"] + arms["b"]["requests"] == 8
    assert (arms["a"]["failures"], arms["b"]["failures"]) == (0, 0)
    assert arms["a"]["acceptance"] is None
    assert arms["b"]["acceptance"] > 0.9
    assert {"inter_token_s", "tokens_per_s", "compute_s"} <= report["ratios"].keys()
    assert serve.metric("nightfill_accepted_tokens_total") >= arms["b"]["accepted_tokens"]

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": f"def f_{number}("}) + "\n" for number in range(3)), encoding="utf-8"
    )
    found = experiment(serve, "check", "--file", str(prompts), "--max-tokens", "180")
    assert (found["prompts"], found["same"], found["state"]) == (3, 3, "running")
    assert found["drift"] < 0.01


def child_of_engine_b(serve: Serve) -> int | None:
    """The second child that `serve` started; None while it is away."""
    found = sorted(
        one.pid for one in processes() if one.parent == serve.pid and "nightfill.engines.llama.child" in one.command
    )
    return found[1] if len(found) == 2 else None


def test_an_arm_that_hangs_is_stopped_and_no_request_fails(new_serve: Callable[..., Serve]) -> None:
    trial = TRIAL | {"share": 1.0, "patience_s": 0.5}
    settings = {"engines": [PLAIN, GUESSING], "experiments": [trial], "sleep": {"enabled": False}}
    serve = new_serve(model="demo:loop", settings=settings).start()
    assert serve.ask(max_tokens=4).headers["x-nightfill-experiment"] == "guess=b"
    pid = child_of_engine_b(serve)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        # One request of arm b went well: of 5 then, 4 failed.
        answers = [serve.ask(max_tokens=4, stream=True) for _ in range(MIN_REQUESTS + 2)]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert {answer.status for answer in answers} == {200}
    assert {answer.headers["x-nightfill-engine"] for answer in answers} == {"plain"}
    report = experiment(serve, "show")
    assert (report["state"], report["arms"]["b"]["requests"]) == ("stopped", MIN_REQUESTS)
    assert "arm b failed 4 of 5" in report["stopped"]["reason"]
    assert "experiment guess is stopped" in serve.log_text()
    serve.stop()
    serve.start()
    assert experiment(serve, "show")["state"] == "stopped"
    assert experiment(serve, "start")["state"] == "running"
    assert serve.ask(max_tokens=4).headers["x-nightfill-experiment"] == "guess=b"


def test_an_arm_that_refuses_what_the_other_answers_is_stopped_and_no_request_fails(
    new_serve: Callable[..., Serve],
) -> None:
    small = GUESSING | {"context_length": 256}
    settings = {"engines": [PLAIN, small], "experiments": [TRIAL | {"share": 1.0}], "sleep": {"enabled": False}}
    serve = new_serve(model="demo:loop", settings=settings).start()
    question = source_text(1, functions=20)
    answers = [serve.ask(question, max_tokens=4) for _ in range(MIN_REQUESTS + 2)]
    assert {answer.status for answer in answers} == {200}
    arms = [answer.headers.get("x-nightfill-experiment") for answer in answers]
    assert arms == ["guess=a"] * MIN_REQUESTS + [None] * 2
    assert "arm b failed 5 of 5" in experiment(serve, "show")["stopped"]["reason"]
    # What both would refuse is neither's failure.
    assert experiment(serve, "start")["state"] == "running"
    assert serve.ask(source_text(2, functions=300), max_tokens=4).status == 400
    assert experiment(serve, "show")["arms"]["b"]["requests"] == 0
