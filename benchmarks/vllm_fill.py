"""Time to the first token on real vLLM servers: cold, filled from disk, filled from Redis, and hot in the engine.

One server fills contexts into disk and Redis, and is ended. A second one, with the disk tier only, loads them from
there past the page cache (O_DIRECT); a third, with the Redis tier only, over a socket. `hot` is vLLM's own prefix cache
with the same number of tokens. Between two loads of a context the server's own caches are dropped (host memory too).

    python benchmarks/vllm_fill.py [--size tiny] [--tokens 6932] [--contexts 3] [--rounds 5]

The last line is one JSON object: medians in seconds, `kv_bytes` of one context, `disk_read_bps` and `redis_read_bps`
of its bytes by plain reads in the same run, `reused_tokens` the least over all loads, `lookup_s` what looking one up
takes of the scheduler's thread, `bound_s` what the disk may take:
1.5 times hot and the bytes at the raw device's speed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from _vllm import First, VllmServer, ask, disk, fill, flags_for, kv_of, model, prompt, ttft_s, warm_up
from nightfill.bench import commit, this_machine
from nightfill.config import ByteSize, TierSettings
from nightfill.engines.vllm.wire import Wish
from nightfill.kv.buffer import Buffers

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME: Final = "vllm_fill"
_QUIET: Final = Wish(store=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", help="demo model (default: tiny; medium has 200 M parameters)")
    parser.add_argument("--tokens", type=int, default=27 * 256 + 20, help="of a prompt (default: 6932)")
    parser.add_argument("--contexts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="loads of each context per tier")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nightfill-"))
    try:
        result = measure(options, folder)
    finally:
        shutil.rmtree(folder)
    result = {
        "name": NAME,
        "command": "python " + " ".join(sys.argv),
        "commit": commit(),
        "machine": msgspec.to_builtins(this_machine()),
        **result,
    }
    print(msgspec.json.encode(result).decode())


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    redis = _redis(folder)
    try:
        return _measure(options, folder, folder / "redis.sock")
    finally:
        redis.terminate()
        redis.wait(20)


def _measure(options: argparse.Namespace, folder: Path, redis: Path) -> dict[str, Any]:
    ids = [prompt(seed, options.tokens) for seed in range(options.contexts)]
    on_disk = disk(folder / "kv")
    on_redis = TierSettings(kind="redis", url=f"unix://{redis}", max_bytes=ByteSize(4 << 30))

    say("cold, and filling")
    both = kv_of(on_disk, on_redis)
    first = server(options, folder, "first", both).start()
    warm_up(first)
    cold = [ttft_s(first, one, Wish(cold=True, store=False)) for one in ids]
    hot: list[First] = []
    for one in ids:
        fill(first, both, one)
        hot += [ttft_s(first, one, _QUIET) for _ in range(options.rounds)]
    first.stop()

    loads: dict[str, list[First]] = {}
    for name, tier in (("disk", on_disk), ("redis", on_redis)):
        say(f"from {name}")
        other = server(options, folder, name, kv_of(tier)).start()
        warm_up(other)
        loads[name] = []
        for _ in range(options.rounds):
            for one in ids:
                loads[name].append(ttft_s(other, one, _QUIET))
            drop_caches_of(other)
        if name == "disk":
            looks = [ask(other, one, Wish(fresh=True, store=False), max_tokens=1)[1].lookup_s for one in ids * 3]
        other.stop()

    files = sorted((folder / "kv").rglob("*.kv"))
    kv_bytes = sum(file.stat().st_size for file in files) // options.contexts
    part = files[: len(files) // options.contexts]
    raw_disk = max(read_bps(part) for _ in range(3))
    raw_redis = max(redis_bps(redis, kv_bytes // len(part), len(part)) for _ in range(3))
    median = {
        "cold": statistics.median(one.ttft_s for one in cold),
        "hot": statistics.median(one.ttft_s for one in hot),
        **{name: statistics.median(one.ttft_s for one in found) for name, found in loads.items()},
    }
    whole = options.tokens - options.tokens % 256
    assert all(one.cached_tokens == 0 for one in cold), "not all were cold"
    assert all(one.cached_tokens == whole for one in hot), "not all were hot"
    bound_s = 1.5 * median["hot"] + kv_bytes / raw_disk
    return {
        **{f"{name}_ttft_s": value for name, value in median.items()},
        **{f"{name}_ttft_spread_s": spread([one.ttft_s for one in found]) for name, found in loads.items()},
        "cold_ttft_spread_s": spread([one.ttft_s for one in cold]),
        "hot_ttft_spread_s": spread([one.ttft_s for one in hot]),
        "bound_s": bound_s,
        "disk_within_bound": median["disk"] <= bound_s,
        "disk_over_cold": median["disk"] / median["cold"],
        "redis_over_cold": median["redis"] / median["cold"],
        "lookup_s": statistics.median(looks),
        "kv_bytes": kv_bytes,
        "disk_read_bps": raw_disk,
        "redis_read_bps": raw_redis,
        "prompt_tokens": options.tokens,
        "reused_tokens": min(one.cached_tokens for found in loads.values() for one in found),
        "model": options.size,
    }


def server(options: argparse.Namespace, folder: Path, name: str, kv: Any) -> VllmServer:
    flags = flags_for(kv, data_dir=folder, host_bytes=512 << 20, kv_cache_bytes=512 << 20)
    return VllmServer(
        folder / name,
        model=model(options.size),
        name="m",
        flags=[*flags, "--max-num-batched-tokens", "2048"],
        kv_cache_bytes=512 << 20,
        environment={"VLLM_SERVER_DEV_MODE": "1"},
    )


def drop_caches_of(server: VllmServer) -> None:
    """The engine's own prefix cache and host memory; the shared store stays."""
    answer = server.request("POST", "/reset_prefix_cache?reset_external=true")
    assert answer.status == 200, answer.body


def read_bps(files: Sequence[Path]) -> float:
    """Bytes per second of plain O_DIRECT reads of whole files, one after the other."""
    size = max(file.stat().st_size for file in files)
    room = Buffers().take(size)
    moved = 0
    began_s = time.perf_counter()
    for file in files:
        fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            moved += os.preadv(fd, [room], 0)
        finally:
            os.close(fd)
    return moved / (time.perf_counter() - began_s)


def redis_bps(path: Path, size: int, count: int) -> float:
    """Bytes per second of a plain GET over the socket, received into one buffer again and again."""
    room = memoryview(bytearray(size + 64))
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        value = os.urandom(size)
        line.sendall(b"*3\r\n$3\r\nSET\r\n$3\r\nraw\r\n$%d\r\n%s\r\n" % (size, value))
        assert line.recv(16) == b"+OK\r\n"
        wanted = size + len(b"$%d\r\n\r\n" % size)
        began_s = time.perf_counter()
        for _ in range(count):
            line.sendall(b"*2\r\n$3\r\nGET\r\n$3\r\nraw\r\n")
            got = 0
            while got < wanted:
                got += line.recv_into(room[got:])
        took_s = time.perf_counter() - began_s
        line.sendall(b"*2\r\n$3\r\nDEL\r\n$3\r\nraw\r\n")
        assert line.recv(16) == b":1\r\n"
    return size * count / took_s


def spread(values: Sequence[float]) -> list[float]:
    """Least and most."""
    return [min(values), max(values)]


def _redis(folder: Path) -> subprocess.Popen[bytes]:
    path = folder / "redis.sock"
    process = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    deadline_s = time.monotonic() + 20
    while not path.exists():
        assert process.poll() is None, "redis-server did not start"
        assert time.monotonic() < deadline_s, "redis-server is not up"
        time.sleep(0.05)
    return process


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
