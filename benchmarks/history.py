"""What a chat's next turn costs when its history was filled in idle time, beside the same chat without.

A chat about a context goes on for some turns, with time between them in which nobody asks. In that time other requests
have taken the engine's slots, as they do where there are more chats than slots; and once the engine was killed. Both
chats have the same context, which is filled in both, and the same messages; only `history.enabled` differs.

    python benchmarks/history.py [--model demo:small] [--turns 20] [--words 3000] [--reply-tokens 100]

The last line is one JSON object. `computed_tokens` are those of each turn that the engine did not reuse,
`newest_tokens` those of its newest message, `over_newest` the most that any turn from the second on computed beyond
that, `ttft_s` the spread of the time to first token over these turns, `fill_tokens` what the background computed for
the chat in all, and `chat_bytes` what was stored of its text.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nightfill.bench import commit, spread, this_machine
from nightfill.cli.server_process import server_process
from nightfill.engines.aggregate import Aggregate
from nightfill.engines.sse import EventSplitter, payloads
from nightfill.engines.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME: Final = "history"
CHAT: Final = "/v1/chat/completions"
JSON: Final = {"Content-Type": "application/json"}
WORDS: Final = ("river", "table", "engine", "cloud", "window", "prefix", "token", "mountain", "chair", "cache", "paper")
SLICE_TOKENS: Final = 64
"""`sleep.min_slice_tokens`."""
FILLED_WITHIN_S: Final = 120.0
_CONTENT: Final = re.compile(rb'"content"\s*:\s*"[^"]')
_DONE: Final = b"[DONE]"


@dataclass
class Arm:
    """One chat from its first turn to its last."""

    computed: list[int] = field(default_factory=list)
    newest: list[int] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    filled_s: list[float] = field(default_factory=list)
    """From the end of a reply until the next turn's beginning was filled."""
    fill_tokens: int = 0
    chat_bytes: int = 0

    def view(self) -> dict[str, Any]:
        waited = spread(self.filled_s)
        return {
            "computed_tokens": self.computed,
            "newest_tokens": self.newest,
            "over_newest": max(c - n for c, n in zip(self.computed[1:], self.newest[1:], strict=True)),
            "ttft_s": shown(self.ttft_s[1:]),
            "filled_after_s": asdict(waited) if waited is not None else None,
            "fill_tokens": self.fill_tokens,
            "chat_bytes": self.chat_bytes,
        }


def shown(values: Sequence[float]) -> dict[str, Any]:
    found = spread(values)
    assert found is not None
    return asdict(found)


class Asker:
    """Asks one server."""

    def __init__(self, url: str) -> None:
        self._upstream = Upstream(url, engine=NAME)

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def call(self, method: str, path: str, body: object = None) -> Any:
        raw = msgspec.json.encode(body) if body is not None else b""
        response = await self._upstream.request(method, path, body=raw, headers=JSON, timeout_s=600)
        assert response.status in (200, 201), (response.status, response.body[:500])
        return msgspec.json.decode(response.body)

    async def chat(self, messages: Sequence[dict[str, str]], *, tokens: int, context: bool) -> tuple[Any, float]:
        """The whole reply, and the seconds to its first content."""
        body = {
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"nightfill": {"context": NAME}} if context else {}),
        }
        whole, splitter, first_s = Aggregate(), EventSplitter(engine=NAME), 0.0
        asked_s = time.perf_counter()
        async with self._upstream.stream("POST", CHAT, body=msgspec.json.encode(body), headers=JSON) as response:
            assert response.status == 200
            async for chunk in response.chunks():
                if not first_s and _CONTENT.search(chunk):
                    first_s = time.perf_counter() - asked_s
                for payload in payloads(splitter.feed(chunk)):
                    if payload != _DONE:
                        whole.add(payload)
        return msgspec.json.decode(whole.body()), first_s

    async def tokens_of(self, text: str) -> int:
        return len((await self.call("POST", "/tokenize", {"content": text}))["tokens"])

    async def filled(self, name: str) -> None:
        """Wait for the context's fill."""
        async with asyncio.timeout(600):
            while not ready(await self.call("GET", f"/v1/nightfill/contexts/{name}")):  # noqa: ASYNC110 - not ours
                await asyncio.sleep(0.05)

    async def chat_filled(self, nbytes: int) -> float:
        """Wait until a chat of so many bytes is filled; for how long. Turns of little text wait for the next one."""
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < FILLED_WITHIN_S:
            found = (await self.call("GET", "/v1/nightfill/contexts?chats=1"))["data"]
            if any(one["bytes"] == nbytes and ready(one) for one in found):
                return time.perf_counter() - began_s
            await asyncio.sleep(0.05)
        raise TimeoutError(f"the chat was not filled within {FILLED_WITHIN_S:g} s")

    async def background(self) -> int:
        lines = (await self.call("GET", "/v1/nightfill/ledger"))["data"]
        return sum(int(line["background_tokens"]) for line in lines)


def ready(view: Any) -> bool:
    return bool(view["fills"]) and all(fill["state"] == "ready" for fill in view["fills"])


async def talk(arguments: argparse.Namespace, folder: Path, *, history: bool) -> Arm:
    rng, arm = random.Random(11), Arm()
    text = " ".join(rng.choices(WORDS, k=arguments.words))
    environ = {"NIGHTFILL_HISTORY__ENABLED": str(history).lower(), "NIGHTFILL_SLEEP__AUDIT_SHARE": "0"}
    async with server_process(["--model", arguments.model], data_dir=folder, environ=environ) as server:
        asker = Asker(server.url)
        try:
            await asker.call("PUT", f"/v1/nightfill/contexts/{NAME}", {"text": text})
            await asker.filled(NAME)
            before = await asker.background()
            messages: list[dict[str, str]] = []
            for turn in range(arguments.turns):
                for other in range(2):
                    prompt = f"{turn} {other} " + " ".join(rng.choices(WORDS, k=200))
                    await asker.chat([{"role": "user", "content": prompt}], tokens=1, context=False)
                if turn == arguments.turns // 2:
                    await server.kill_engine()
                said = " ".join(rng.choices(WORDS, k=rng.randint(10, 60)))
                messages.append({"role": "user", "content": said})
                reply, ttft_s = await asker.chat(messages, tokens=arguments.reply_tokens, context=True)
                usage = reply["usage"]
                arm.computed.append(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])
                arm.newest.append(await asker.tokens_of(said))
                arm.ttft_s.append(ttft_s)
                messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"]})
                arm.chat_bytes = sum(len(one["content"].encode()) for one in messages)
                if history:
                    arm.filled_s.append(await asker.chat_filled(arm.chat_bytes))
            arm.fill_tokens = await asker.background() - before
        finally:
            await asker.aclose()
    return arm


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    arms = {}
    for name, history in (("without", False), ("with", True)):
        print(f"{name} histories", file=sys.stderr, flush=True)
        arms[name] = await talk(arguments, folder / name, history=history)
    print("turn  newest message  computed without  computed with   TTFT without   TTFT with")
    without, filled = arms["without"], arms["with"]
    for turn in range(arguments.turns):
        print(
            f"{turn + 1:4}  {filled.newest[turn]:14,}  {without.computed[turn]:16,}  {filled.computed[turn]:13,}"
            f"  {1000 * without.ttft_s[turn]:10,.0f} ms  {1000 * filled.ttft_s[turn]:7,.0f} ms"
        )
    return {
        "command": f"python benchmarks/history.py {' '.join(sys.argv[1:])}".strip(),
        "commit": commit(),
        "machine": asdict(this_machine()),
        "model": arguments.model,
        "context_words": arguments.words,
        "turns": arguments.turns,
        "slice_tokens": SLICE_TOKENS,
        **{name: arm.view() for name, arm in arms.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat with its history filled in idle time, and without.")
    parser.add_argument("--model", default="demo:small")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--words", type=int, default=3000, help="of the context")
    parser.add_argument("--reply-tokens", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nightfill-history-") as folder:
        found = asyncio.run(measure(arguments, Path(folder)))
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    main()
