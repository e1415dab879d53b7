"""Whether both arms of an experiment say the same: the same prompts, answered greedily, token by token."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.engines.engine import Sampled
from nightfill.errors import BadSetting, NightfillError
from nightfill.gateway.experiment import Drift
from nightfill.sleep.fidelity import difference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from nightfill.cli.running_server import RunningServer

_LIKELY: Final = 10
"""Tokens whose log-probabilities are asked for at each place."""
_WAIT_S: Final = 600.0
_MAX_PROMPTS: Final = 10_000
_MAX_LINE: Final = 16 << 20

Body = dict[str, Any]


def read_prompts(path: Path) -> list[Body]:
    """The requests in a file of JSON lines, each with `messages` or `prompt`. Raises BadSetting with the bad line."""
    prompts = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                body = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise BadSetting(f"{path}:{number}: no JSON object: {exc}", param="--file") from exc
            if ("messages" in body) == ("prompt" in body) or len(line) > _MAX_LINE:
                raise BadSetting(f"{path}:{number}: must have messages, or a prompt", param="--file")
            prompts.append(body)
            if len(prompts) > _MAX_PROMPTS:
                raise BadSetting(f"{path}: has more than {_MAX_PROMPTS} prompts", param="--file")
    if not prompts:
        raise BadSetting(f"{path}: has no prompts", param="--file")
    return prompts


def checked(server: RunningServer, name: str, prompts: Sequence[Body], *, max_tokens: int) -> Drift:
    """Ask both arms, arm a twice. Raises NightfillError when one of them does not answer."""
    drifts, noises, same = [], [], 0
    for prompt in prompts:
        first, again, other = (said(_answer(server, f"{name}={arm}", prompt, max_tokens=max_tokens)) for arm in "aab")
        drifts.append(apart(other, first))
        noises.append(apart(again, first))
        same += other.text == first.text
    return Drift(prompts=len(prompts), same=same, drift=statistics.median(drifts), noise=statistics.median(noises))


def view_of(drift: Drift) -> Body:
    """As JSON; infinite is null."""
    return {"prompts": drift.prompts, "same": drift.same} | {
        name: value if math.isfinite(value) else None
        for name, value in (("drift", drift.drift), ("noise", drift.noise))
    }


def _answer(server: RunningServer, choice: str, prompt: Body, *, max_tokens: int) -> Body:
    chat = "messages" in prompt
    likely = {"logprobs": True, "top_logprobs": _LIKELY} if chat else {"logprobs": _LIKELY}
    # Past stored answers, which are of one arm or the other.
    extension = {**(prompt.get("nightfill") or {}), "skip": ["answer"]}
    body = {"max_tokens": max_tokens, **prompt, "temperature": 0, "stream": False, **likely, "nightfill": extension}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    return server.ask("POST", path, body, headers={"x-nightfill-experiment": choice}, wait_s=_WAIT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A greedy answer."""

    text: str
    rows: tuple[tuple[str, Mapping[str, float]], ...]
    """Each token, and the log-probabilities of the likeliest at its place."""
    whole: bool
    """They go to the end of the text."""


def said(answer: Body) -> Said:
    """What an answer says, up to the first token whose log-probabilities are missing: llama.cpp gives none of tokens
    that it had guessed. Raises NightfillError when there are none at all.
    """
    try:
        choice = answer["choices"][0]
        text = choice["text"] if "text" in choice else choice["message"]["content"] or ""
        found = choice["logprobs"]
        if "content" in found:
            rows = [
                (one["token"], {top["token"]: float(top["logprob"]) for top in one["top_logprobs"]}, _bytes_of(one))
                for one in found["content"]
            ]
        else:
            pairs = zip(found["tokens"], found["top_logprobs"], strict=True)
            rows = [(token, dict(tops), token.encode()) for token, tops in pairs]
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        raise NightfillError("an answer has no log-probabilities in a shape that is known") from exc
    written, reached, count = text.encode(), 0, 0
    for _, _, piece in rows:
        if not written.startswith(piece, reached):
            break
        reached, count = reached + len(piece), count + 1
    # An engine may leave something out of the text, such as what it thought.
    known = rows[:count] if count else rows
    return Said(text=text, rows=tuple((token, tops) for token, tops, _ in known), whole=reached == len(written))


def apart(one: Said, other: Said) -> float:
    """Largest difference of a log-probability, up to the first differing token, over what is known of both."""
    ids: dict[str, int] = {}
    length = max(len(one.rows), len(other.rows))
    if not (one.whole and other.whole):
        length = min(len(one.rows), len(other.rows))
    return difference(_sampled(one, length, ids), _sampled(other, length, ids))


def _sampled(said: Said, length: int, ids: dict[str, int]) -> Sampled:
    def number(token: str) -> int:
        return ids.setdefault(token, len(ids))

    rows = said.rows[:length]
    return Sampled(
        tokens=tuple(number(token) for token, _ in rows),
        tops=tuple({number(token): value for token, value in tops.items()} for _, tops in rows),
        reused=0,
    )


def _bytes_of(one: Body) -> bytes:
    written = one.get("bytes")
    return bytes(written) if written is not None else str(one["token"]).encode()
