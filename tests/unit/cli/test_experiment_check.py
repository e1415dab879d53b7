from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.cli.experiment_check import apart, checked, read_prompts, said, view_of
from nightfill.errors import BadSetting, NightfillError
from nightfill.gateway.experiment import Drift

if TYPE_CHECKING:
    from pathlib import Path

Row = tuple[str, dict[str, float]]
ONE: list[Row] = [("a", {"a": -0.1, "b": -3.0}), ("b", {"b": -0.2, "a": -2.0})]


def chat(*rows: Row, text: str | None = None) -> dict[str, Any]:
    content = [
        {
            "token": token,
            "bytes": list(token.encode()),
            "top_logprobs": [{"token": other, "logprob": value} for other, value in tops.items()],
        }
        for token, tops in rows
    ]
    whole = "".join(token for token, _ in rows) if text is None else text
    return {"choices": [{"message": {"content": whole}, "logprobs": {"content": content}}]}


def completion(*rows: Row) -> dict[str, Any]:
    logprobs = {"tokens": [token for token, _ in rows], "top_logprobs": [tops for _, tops in rows]}
    return {"choices": [{"text": "".join(token for token, _ in rows), "logprobs": logprobs}]}


def moved(rows: list[Row], by: float) -> list[Row]:
    return [(token, {other: value + by for other, value in tops.items()}) for token, tops in rows]


@pytest.mark.parametrize("shape", [chat, completion])
def test_answers_are_as_far_apart_as_their_log_probabilities(shape: Any) -> None:
    one = said(shape(*ONE))
    assert apart(one, one) == 0.0
    assert apart(said(shape(*moved(ONE, 0.25))), one) == pytest.approx(0.25)


def test_another_token_that_was_not_likely_is_infinitely_far() -> None:
    assert apart(said(chat(("c", {"c": -0.1}), ONE[1])), said(chat(*ONE))) == math.inf


def test_another_token_that_was_nearly_as_likely_is_near() -> None:
    one, other = ("a", {"a": -0.70, "b": -0.71}), ("b", {"a": -0.72, "b": -0.69})
    assert apart(said(chat(one, ("x", {"x": 0.0}))), said(chat(other, ("y", {"y": 0.0})))) == pytest.approx(0.02)


def test_an_answer_that_ends_earlier_is_another_one() -> None:
    assert apart(said(chat(ONE[0])), said(chat(*ONE))) == math.inf


def test_tokens_that_an_engine_guessed_have_no_log_probabilities_and_are_not_compared() -> None:
    rows: list[Row] = [(token, {token: -0.5}) for token in "abcdef"]
    whole = said(chat(*rows))
    gap = said(chat(*rows[:2], *rows[4:], text="abcdef"))
    assert (len(gap.rows), gap.whole, gap.text) == (2, False, whole.text)
    assert apart(gap, whole) == 0.0
    assert apart(said(chat(*moved(rows[:2], 0.25), *rows[4:], text="abcdef")), whole) == pytest.approx(0.25)
    other = said(chat(("z", {"z": 0.0}), *rows[4:], text="zbcdef"))
    assert apart(other, whole) == math.inf


def test_text_that_is_not_that_of_the_tokens_is_no_gap() -> None:
    thinking = said(chat(*ONE, text="so it is"))
    assert len(thinking.rows) == 2


def test_an_answer_without_log_probabilities_is_said_to_have_none() -> None:
    with pytest.raises(NightfillError, match="no log-probabilities"):
        said({"choices": [{"message": {"content": "a"}, "logprobs": None}]})


class Server:
    """Arm b answers otherwise to every second prompt; arm a is off from itself by 0.01."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def ask(self, method: str, path: str, body: dict[str, Any], *, headers: dict[str, str], wait_s: float) -> Any:
        choice = headers["x-nightfill-experiment"]
        self.asked.append((choice, body))
        shape = chat if path == "/v1/chat/completions" else completion
        count = len(self.asked)
        if choice == "x=b":
            return shape(*moved(ONE, 0.5)) if count % 2 else shape(("z", {"z": 0.0}))
        return shape(*moved(ONE, 0.01 * (count % 3)))


def test_both_arms_are_asked_the_same_and_arm_a_twice() -> None:
    server = Server()
    prompts: list[dict[str, Any]] = [{"messages": []}, {"prompt": "p", "max_tokens": 3}, {"prompt": "q"}]
    found = checked(server, "x", prompts, max_tokens=7)  # type: ignore[arg-type]
    assert [choice for choice, _ in server.asked] == ["x=a", "x=a", "x=b"] * 3
    assert [body["max_tokens"] for _, body in server.asked[::3]] == [7, 3, 7]
    assert all(body["temperature"] == 0 and body["nightfill"] == {"skip": ["answer"]} for _, body in server.asked)
    assert (found.prompts, found.same) == (3, 2)
    assert found.drift == pytest.approx(0.49)
    assert found.noise == pytest.approx(0.01)


def test_an_infinite_drift_is_null_in_json() -> None:
    found = Drift(prompts=3, same=0, drift=math.inf, noise=0.1)
    assert json.loads(json.dumps(view_of(found))) == {"prompts": 3, "same": 0, "drift": None, "noise": 0.1}


def test_prompts_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"messages": [{"role": "user", "content": "b"}]}\n', encoding="utf-8")
    assert [sorted(body) for body in read_prompts(path)] == [["prompt"], ["messages"]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no prompts"),
        ('{"prompt": "a"}\n[]\n', ":2: no JSON object"),
        ("{}\n", ":1: must have messages, or a prompt"),
        ('{"prompt": "a", "messages": []}\n', ":1: must have"),
    ],
)
def test_a_file_that_has_no_prompts_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadSetting, match=says):
        read_prompts(path)
