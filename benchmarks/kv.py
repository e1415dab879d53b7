"""How fast the tiers of the KV store move blocks, beside memcpy, the bare disk and a bare Redis socket.

Starts a redis-server of its own on a Unix socket and on loopback TCP, and takes a folder of its own for the disk tier.
The same measurement as `nightfill bench kv`, which takes the tiers of the settings instead.

    python benchmarks/kv.py [--block-bytes 4MiB] [--total-bytes 256MiB] [--rounds 5] [--folder .] [--chart kv.png]

The last line is one JSON object. `tiers` has an object per tier (`ram` in the process's own memory, `arena` in memory
shared by processes, `disk`, `redis` on a Unix socket, `redis-tcp`): by one thread, `load_bps`, `save_bps`, `raw_bps`
and `raw_save_bps` in bytes per second, `load_ratio` and `save_ratio` of the two in the same rounds, `lookup_s` for one
block; `store_load_bps` and `store_save_bps` with sealing and verifying; `parallel` the same by several threads.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.bench.tiers import tier_json
from nightfill.cli.bench_kv import ROUNDS, measure, setting, show
from nightfill.cli.units import parse_size
from nightfill.config import ByteSize, KvSettings, TierSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME: Final = "kv"
START_S: Final = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block-bytes", type=size_of, default=4 << 20, help="of KV in one block (default: 4MiB)")
    parser.add_argument("--total-bytes", type=size_of, default=256 << 20, help="in each tier (default: 256MiB)")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tier", action="append", help="ram, arena, disk, redis or redis-tcp; all if none is given")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure (default: here)")
    parser.add_argument("--chart", type=Path, help="PNG to draw")
    options = parser.parse_args()
    tiers = {}
    with tempfile.TemporaryDirectory(prefix="nightfill-kv-", dir=options.folder) as name:
        folder = Path(name).resolve()
        with redis_server() as (path, port):
            room = ByteSize(4 * options.total_bytes)
            arms = {
                "ram": TierSettings(kind="ram", max_bytes=room),
                "arena": TierSettings(kind="ram", shared=True, max_bytes=room),
                "disk": TierSettings(kind="disk", max_bytes=room),
                "redis": TierSettings(kind="redis", url=f"unix://{path}", max_bytes=room),
                "redis-tcp": TierSettings(kind="redis", url=f"redis://127.0.0.1:{port}/0", max_bytes=room),
            }
            for arm in options.tier or arms:
                print(arm, file=sys.stderr, flush=True)
                (figures,) = measure(
                    KvSettings(tiers=(arms[arm],)),
                    data_dir=folder,
                    block_bytes=options.block_bytes,
                    total_bytes=options.total_bytes,
                    rounds=options.rounds,
                )
                tiers[arm] = tier_json(replace(figures, name=arm))
    show(tiers)
    if options.chart:
        from nightfill.bench.chart import draw_tiers

        draw_tiers(tiers, options.chart)
    print(msgspec.json.encode({"name": NAME, **setting("python " + " ".join(sys.argv)), "tiers": tiers}).decode())


def size_of(text: str) -> int:
    return int(parse_size(text))


@contextmanager
def redis_server() -> Iterator[tuple[str, int]]:
    """The path of a Unix socket and a port of loopback on which a server of ours listens, which keeps nothing."""
    folder = tempfile.mkdtemp(prefix="redis-")  # the path of a socket must be short
    path, port = f"{folder}/s", free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--unixsocket", path, "--dir", folder]
    process = subprocess.Popen([*command, "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL)
    try:
        deadline_s = time.monotonic() + START_S
        while not Path(path).exists():
            if process.poll() is not None or time.monotonic() > deadline_s:
                sys.exit("redis-server does not start")
            time.sleep(0.02)
        yield path, port
    finally:
        process.terminate()
        process.wait(START_S)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
