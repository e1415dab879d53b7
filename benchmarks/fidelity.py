"""Whether a reply with a filled context is the reply without: greedy text and log-probabilities, beside the noise.

The same questions are asked of the same context in five ways, each alone on the machine's engine:

    cold          all computed, in one piece
    same split    cold again: the noise of doing it twice
    other split   cold on a server that computes other numbers of tokens at once
    own cache     the context is in the slot, computed there by the query before: llama.cpp's own prefix cache
    filled        computed in sleep time by another process, stored as blocks, restored; also once the engine was killed

Filled differs from cold in one thing, as own cache does: the question is a batch of its own, and a small batch rounds
otherwise. So filled must equal own cache to the last bit, and be as near to cold as that. (Unless the context's last
batch, `context_tokens` modulo `batch_tokens`, is a small one: a fill avoids small batches, a short question does not.)

    python benchmarks/fidelity.py [--model demo:small] [--functions 205] [--questions 10]

The last line is one JSON object. `…_equal` are shares of the questions (0 to 1) whose whole text is that of `cold`,
or of the arm named; `max_abs_dlogprob_…` is the largest difference of a log-probability up to the first token that
differs, from cold or from the arm named.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.bench import commit, this_machine
from nightfill.cli.server_process import server_process
from nightfill.contexts import Front, Text
from nightfill.engines.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

NAME: Final = "fidelity"
JSON: Final = {"Content-Type": "application/json"}
QUESTIONS: Final = (
    "What does the first function return?",
    "How are errors handled here?",
    "Name every function that adds a number.",
    "Is there a test for the last function?",
    "Explain the code to a new colleague, in short words, with one example that one can run at once.",
    "Which value is the largest?",
    "Summarise.",
    "Rewrite the third function so that it takes two values, and say what has to change where it is called.",
    "Does anything here depend on the order of the calls? If so, name it; if not, say how you know.",
    "List the arguments.",
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What one greedy reply was."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    reused: int


def equal(ones: Sequence[Reply], others: Sequence[Reply]) -> float:
    """Share of replies with the same tokens."""
    return sum(one.tokens == other.tokens for one, other in zip(ones, others, strict=True)) / len(ones)


def difference(ones: Sequence[Reply], others: Sequence[Reply]) -> float:
    """Largest difference of a log-probability while the tokens before it are the same."""
    worst = 0.0
    for one, other in zip(ones, others, strict=True):
        for a, b, p, q in zip(one.tokens, other.tokens, one.logprobs, other.logprobs, strict=False):
            if a != b:
                break
            worst = max(worst, abs(p - q))
    return worst


class Asker:
    """Asks one server."""

    def __init__(self, url: str, *, output_tokens: int) -> None:
        self._upstream = Upstream(url, engine=NAME)
        self._output_tokens = output_tokens

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def call(self, method: str, path: str, body: object = None) -> Any:
        raw = msgspec.json.encode(body) if body is not None else b""
        response = await self._upstream.request(method, path, body=raw, headers=JSON, timeout_s=600)
        assert response.status in (200, 201), (response.status, response.body[:500])
        return msgspec.json.decode(response.body)

    async def ask(self, question: str, *, cold: bool) -> Reply:
        answer = await self.call(
            "POST",
            "/v1/completions",
            {
                "prompt": question,
                "max_tokens": self._output_tokens,
                "temperature": 0,
                "logprobs": 1,
                "nightfill": {"context": NAME, "skip": ["fill"] if cold else []},
            },
        )
        content = answer["choices"][0]["logprobs"]["content"]
        return Reply(
            tokens=tuple(one["token"] for one in content),
            logprobs=tuple(one["logprob"] for one in content),
            reused=answer["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0),
        )

    async def all(self, questions: Sequence[str], *, cold: bool, before: Sequence[int] = ()) -> list[Reply]:
        """Ask all, each in a slot that holds nothing of the context, or exactly the tokens `before`."""
        replies = []
        for question in questions:
            await self.call("POST", "/v1/completions", {"prompt": "Something else.", "max_tokens": 1})
            if before:
                await self.call("POST", "/v1/completions", {"prompt": before, "max_tokens": 1})
            replies.append(await self.ask(question, cold=cold))
        return replies

    async def tokens_of(self, prompt: str) -> list[int]:
        body = {"content": prompt, "add_special": True, "parse_special": True}
        return list((await self.call("POST", "/tokenize", body))["tokens"])

    async def filled_tokens(self, *, within_s: float) -> int:
        async with asyncio.timeout(within_s):
            while True:
                fills = (await self.call("GET", f"/v1/nightfill/contexts/{NAME}"))["fills"]
                if fills and all(fill["state"] == "ready" for fill in fills):
                    return int(fills[0]["tokens"])
                await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def serving(
    arguments: argparse.Namespace, data_dir: Path, *, fills: bool, batch_tokens: int
) -> AsyncIterator[tuple[Asker, Any]]:
    options = ["--model", arguments.model, *([] if fills else ["--no-sleep"])]
    environ = {"NIGHTFILL_ENGINES__0__BATCH_TOKENS": str(batch_tokens), "NIGHTFILL_ENGINES__0__SLOTS": "1"}
    async with server_process(options, data_dir=data_dir, environ=environ) as server:
        asker = Asker(server.url, output_tokens=arguments.output_tokens)
        try:
            yield asker, server
        finally:
            await asker.aclose()


def source(functions: int) -> str:
    rng = random.Random(7)
    return "".join(
        f"def f_{rng.randrange(10**9)}(value: int) -> int:\n    return value + {rng.randrange(10**6)}\n\n"
        for _ in range(functions)
    )


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    questions = [QUESTIONS[n % len(QUESTIONS)] + "?" * (n // len(QUESTIONS)) for n in range(arguments.questions)]
    text = source(arguments.functions)
    whole = msgspec.json.decode(Front(Text(text)).completion(msgspec.Raw(b'""')), type=str)
    say("filled")
    async with serving(arguments, folder, fills=True, batch_tokens=arguments.batch_tokens) as (asker, server):
        await asker.call("PUT", f"/v1/nightfill/contexts/{NAME}", {"text": text, "forms": ["completion"]})
        tokens = await asker.filled_tokens(within_s=900)
        filled = await asker.all(questions, cold=False)
        await server.kill_engine()
        restarted = await asker.all(questions, cold=False)
        say("cold, twice")
        cold = await asker.all(questions, cold=True)
        again = await asker.all(questions, cold=True)
        front = (await asker.tokens_of(whole))[:tokens]
    say("own cache")
    async with serving(arguments, folder / "other", fills=False, batch_tokens=arguments.batch_tokens) as (asker, _):
        await asker.call("PUT", f"/v1/nightfill/contexts/{NAME}", {"text": text, "forms": ["completion"]})
        own = await asker.all(questions, cold=False, before=front)
    say(f"cold with batches of {arguments.other_batch_tokens} tokens")
    async with serving(arguments, folder, fills=False, batch_tokens=arguments.other_batch_tokens) as (asker, _):
        other = await asker.all(questions, cold=True)
    assert all(reply.reused == tokens for reply in (*filled, *restarted, *own)), "not all used the context"
    assert not any(reply.reused for reply in (*cold, *again, *other)), "not all were cold"
    return {
        "filled_equal": equal(filled, cold),
        "restarted_equal": equal(restarted, cold),
        "cold_equal_same_split": equal(again, cold),
        "cold_equal_other_split": equal(other, cold),
        "own_cache_equal": equal(own, cold),
        "filled_equal_own_cache": equal(filled, own),
        "max_abs_dlogprob_filled": difference(filled, cold),
        "max_abs_dlogprob_restarted": difference(restarted, cold),
        "max_abs_dlogprob_cold_same_split": difference(again, cold),
        "max_abs_dlogprob_cold_other_split": difference(other, cold),
        "max_abs_dlogprob_own_cache": difference(own, cold),
        "max_abs_dlogprob_filled_own_cache": difference(filled, own),
        "context_tokens": tokens,
        "reused_tokens": min(reply.reused for reply in filled),
        "questions": len(questions),
        "output_tokens": arguments.output_tokens,
        "batch_tokens": arguments.batch_tokens,
        "other_batch_tokens": arguments.other_batch_tokens,
        "model": arguments.model,
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare filled, cold and cached replies, bit by bit.")
    parser.add_argument("--model", default="demo:small")
    parser.add_argument("--functions", type=int, default=205, help="of the context; some 30 tokens each")
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--output-tokens", type=int, default=24)
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--other-batch-tokens", type=int, default=48)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightfill-fidelity-") as folder:
        found = asyncio.run(measure(arguments, Path(folder)))
    machine = this_machine()
    print(f"nightfill {commit() or 'installed'} on {machine.cpu}, {machine.cores} cores")
    for name, value in found.items():
        print(f"  {name:36} {value}")
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
