"""What looking for recurring prefixes costs: per request of live traffic, and for a whole log.

    python benchmarks/discovery.py [--rounds 5] [--requests 4000] [--trace FILE]

Live: prompts of several lengths, of which half begin alike; `note_s` is what the event loop is kept by one, `look` the
processor time that a thread takes for it. Log: requests as JSON lines with prompts of 4 KB to 128 KB, a third of them
new, a third with a date at the top, read by `nightfill profile` in a process of its own.

The last line is one JSON object: `note_s` and `look_us_per_kb` by kilobytes of prompt, with the spread of the rounds;
`log_bytes_per_s` of processor time, `log_bytes` and `log_rss_bytes`; with `--trace` the counts that the trace has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from nightfill.bench import commit, spread, this_machine
from nightfill.config import DiscoverySettings
from nightfill.contexts import DEFAULT_TENANT
from nightfill.engines.engine import Call
from nightfill.gateway.discovery import Discovery
from nightfill.gateway.layers import Plan
from nightfill.kv.key import salt_of
from nightfill.state.seal import NoSeal

KILOBYTES: Final = (4, 64, 512)
PROMPTS: Final = 40


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--trace", type=Path)
    given = parser.parse_args()
    live = {size: asyncio.run(measure_live(size, given.rounds)) for size in KILOBYTES}
    for size, (noted, looked) in live.items():
        print(
            f"{size} KB: {1e6 * median(noted):.1f} us on the loop, {1e6 * median(looked) / size:.2f} us per KB in all"
        )
    log = measure_log(given.requests)
    print(
        f"log: {log['log_bytes_per_s'] / 1e6:.1f} MB a second of one core, "
        f"{log['log_rss_bytes'] / 1e6:.0f} MB of memory"
    )
    record = {
        "command": " ".join(["python", "benchmarks/discovery.py", *(Path(one).name for one in sys.argv[1:])]),
        "commit": commit(),
        "machine": this_machine(),
        "rounds": given.rounds,
        "note_s": {size: spread(noted) for size, (noted, _) in live.items()},
        "look_us_per_kb": {size: spread(1e6 * one / size for one in looked) for size, (_, looked) in live.items()},
        **log,
        **({"trace": counts(given.trace)} if given.trace else {}),
    }
    print(msgspec.json.encode(record).decode())


async def measure_live(kilobytes: int, rounds: int) -> tuple[list[float], list[float]]:
    """Processor seconds per request: of the event loop, and of all until the last of them is looked at."""
    rng = random.Random(kilobytes)
    shared = words(rng, kilobytes << 10)
    noted: list[float] = []
    looked: list[float] = []
    for _ in range(rounds):
        plans = [
            plan(shared if number % 2 else words(rng, kilobytes << 10), f"question {number}")
            for number in range(PROMPTS)
        ]
        discovery = Discovery(
            None,  # type: ignore[arg-type]  # nothing recurs often enough to be put into a book
            None,  # type: ignore[arg-type]
            DiscoverySettings(enabled=True, min_tokens=256, requests=1_000_000),
            max_context_bytes=1 << 30,
            tenants=1,
            seal=NoSeal(),
            clock=lambda: 1.0,
        )
        async with discovery:
            began_s = time.process_time()
            for one in plans:
                discovery.note(DEFAULT_TENANT, one)
            noted.append((time.process_time() - began_s) / PROMPTS)
            await discovery.settled()
            looked.append((time.process_time() - began_s) / PROMPTS)
    return noted, looked


def plan(system: str, question: str) -> Plan:
    """As a gateway would have served it."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = {"messages": msgspec.Raw(msgspec.json.encode(messages))}
    return Plan(call=Call(path="/v1/chat/completions", body=body, stream=False, salt=salt_of(DEFAULT_TENANT)))


def words(rng: random.Random, size: int) -> str:
    """Lines of made-up words."""
    some = [f"{rng.randrange(10**6):x}" for _ in range(400)]
    lines = [" ".join(rng.choices(some, k=12)) for _ in range(size // 80 + 1)]
    return "\n".join(lines)[:size]


def measure_log(requests: int) -> dict[str, Any]:
    """How fast and in how much memory a log is read."""
    rng = random.Random(1)
    shared = [words(rng, 4096 << (number % 6)) for number in range(30)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        with path.open("w", encoding="utf-8") as log:
            for number in range(requests):
                text = rng.choice(shared)
                if number % 3 == 1:
                    text = f"Today is 2026-{number % 12 + 1:02}-{number % 28 + 1:02}.\n{text}"
                elif number % 3 == 2:
                    text = words(rng, len(text))
                messages = [{"role": "system", "content": text}, {"role": "user", "content": f"question {number}"}]
                log.write(json.dumps({"timestamp": 1.7e9 + number, "messages": messages}) + "\n")
        found = profile(path, folder)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        size = path.stat().st_size
    return {
        "log_bytes": size,
        "log_requests": requests,
        "log_bytes_per_s": size / (used.ru_utime + used.ru_stime),
        "log_rss_bytes": used.ru_maxrss << 10,
        "log_recurring_prefixes": found["recurring_prefixes"],
        "log_breaks_reuse": len(found["breaks_reuse"]),
    }


def counts(trace: Path) -> dict[str, Any]:
    """What the trace says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        found = profile(trace, folder)
    names = ("requests", "distinct_prefixes", "recurring_prefixes", "recurrences", "interval_p50_s", "reusable_tokens")
    return {"file": trace.name, **{name: found[name] for name in names}}


def profile(path: Path, folder: str) -> dict[str, Any]:
    """`nightfill profile` in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "nightfill",
        "--data-dir",
        str(Path(folder) / "data"),
        "profile",
        str(path),
        "--json",
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    main()
