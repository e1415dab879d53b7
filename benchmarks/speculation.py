"""What speculative decoding gains in llama.cpp on text that repeats itself, and what it costs on text that does not.

    python benchmarks/speculation.py [--rounds 5]

`demo:loop-medium` (210 M parameters) goes round in circles of 150 tokens, whatever it read before, and is guessed by
n-grams, and by a small model that goes round in the same circles (`demo:loop`). `repeated`: what follows is in the
prompt already. `repeats`: it comes again after 150 new tokens. `other`: the text of `demo:medium`, which is noise: no
n-gram comes twice, and the small model guesses wrongly. These are the ends of a scale: a model that only ever copies,
and one that never does. Each round has another text, as a child remembers n-grams of all that it ever wrote.

All children of a text run, and are asked in turn, each round in another order. Speed is llama.cpp's own measurement of
its decoding; processor time is that of the child. The last line is one JSON object: by text and method `tokens_per_s`
and `cpu_ms_per_token` with spread, `speed_up` and `cpu_ratio` to `none` with intervals, `drafted`, `accepted`, and
`same`, the answers equal to those of `none`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.bench.machine import commit, this_machine
from nightfill.bench.stats import ratio_of_means
from nightfill.engines.llama import demo_model, demo_vocabulary
from nightfill.engines.llama.api import LlamaApi
from nightfill.engines.llama.child_config import ChildConfig, Drafting
from nightfill.engines.llama.process import LlamaProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME: Final = "speculation"
LOOPS: Final = demo_model.loops(demo_vocabulary.load())
MODELS: Final = {"repeated": "loop-medium", "repeats": "loop-medium", "other": "medium"}
TOKENS: Final = {"repeated": 150, "repeats": 300, "other": 60}
"""Of the answer."""


def prompt_of(text: str, number: int) -> list[int]:
    """Of each round another one."""
    loop = LOOPS[number % len(LOOPS)]
    noise = [33 + (number + 1) * place * place % 90 for place in range(190)]
    return {"repeated": [*loop, *loop[:40]], "repeats": loop[:3], "other": noise}[text]


@dataclass(frozen=True, slots=True)
class Run:
    """One answer."""

    text: str
    tokens_per_s: float
    cpu_s: float
    tokens: int
    drafted: int
    accepted: int


def methods(cache: Path) -> dict[str, Drafting | None]:
    small = str(demo_model.ensure("loop", cache))
    return {
        "none": None,
        "ngram": Drafting(method="ngram"),
        "draft": Drafting(method="draft", model=small, tokens=8),
    }


async def started(stack: AsyncExitStack, model: Path, drafting: Drafting | None) -> tuple[LlamaApi, int]:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nightfill-speculation-"))
    config = ChildConfig(model=str(model), slot_save_path=folder, n_ctx=2048, drafting=drafting)
    process = LlamaProcess(config, name="benchmark")
    stack.push_async_callback(process.aclose)
    process.start()
    await process.ready(120)
    api = LlamaApi.of(process, first_byte_timeout_s=300, idle_timeout_s=300)
    stack.push_async_callback(api.aclose)
    assert process.pid is not None
    return api, process.pid


async def answer(api: LlamaApi, pid: int, prompt: Sequence[int], tokens: int) -> Run:
    """One greedy answer to a prompt that was read before."""
    await api.prefill(prompt, slot=0)
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "id_slot": 0}
    before_s = _cpu_s(pid)
    async with api.stream("/v1/completions", msgspec.json.encode(body), headers={}) as response:
        whole = msgspec.json.decode(b"".join([chunk async for chunk in response.chunks()]))
    timings = whole["timings"]
    return Run(
        whole["choices"][0]["text"],
        timings["predicted_per_second"],
        _cpu_s(pid) - before_s,
        timings["predicted_n"],
        timings.get("draft_n") or 0,
        timings.get("draft_n_accepted") or 0,
    )


def _cpu_s(pid: int) -> float:
    spent = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK")


async def measure(text: str, cache: Path, *, rounds: int) -> dict[str, Any]:
    """The figures of one text, by method."""
    path = demo_model.ensure(MODELS[text], cache)
    found: dict[str, list[Run]] = {}
    async with AsyncExitStack() as stack:
        children = {name: await started(stack, path, one) for name, one in methods(cache).items()}
        for child in children.values():
            await answer(*child, prompt_of(text, -1), 8)  # the first request of a child is slower
        names = list(children)
        for number in range(rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                run = await answer(*children[name], prompt_of(text, number), TOKENS[text])
                found.setdefault(name, []).append(run)
    return {name: figures(found[name], found["none"]) for name in names}


def figures(runs: Sequence[Run], plain: Sequence[Run]) -> dict[str, Any]:
    speeds, usual = ([run.tokens_per_s for run in some] for some in (runs, plain))
    costs, usual_costs = ([1000 * run.cpu_s / run.tokens for run in some] for some in (runs, plain))
    return {
        "tokens_per_s": round(statistics.median(speeds), 1),
        "tokens_per_s_spread": [round(min(speeds), 1), round(max(speeds), 1)],
        "speed_up": _ratio(speeds, usual),
        "cpu_ms_per_token": round(statistics.median(costs), 2),
        "cpu_ms_per_token_spread": [round(min(costs), 2), round(max(costs), 2)],
        "cpu_ratio": _ratio(costs, usual_costs),
        "drafted": sum(run.drafted for run in runs),
        "accepted": sum(run.accepted for run in runs),
        "same": sum(one.text == other.text for one, other in zip(runs, plain, strict=True)),
        "answers": len(runs),
    }


def _ratio(some: Sequence[float], others: Sequence[float]) -> dict[str, float] | None:
    ratio = ratio_of_means(some, others, random.Random(0))
    return {name: round(value, 2) for name, value in asdict(ratio).items()} if ratio is not None else None


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="nightfill-speculation-models-") as cache:
        texts = {text: await measure(text, Path(cache), rounds=given.rounds) for text in MODELS}
    for text, by_method in texts.items():
        for name, one in by_method.items():
            print(
                f"{text:9} {name:6} {one['tokens_per_s']:7.1f} tokens/s {one['tokens_per_s_spread']}  "
                f"{one['cpu_ms_per_token']:7.2f} CPU ms/token  x{one['speed_up']['estimate']}  "
                f"{one['accepted']}/{one['drafted']}  {one['same']} of {one['answers']} the same"
            )
    result = {
        "name": NAME,
        "command": f"python benchmarks/speculation.py --rounds {given.rounds}",
        "commit": commit(),
        "machine": asdict(this_machine()),
        "load_before": round(load, 2),
        "texts": texts,
    }
    print(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    asyncio.run(main())
