"""What the gateway adds to a request: a stub upstream, the gateway before it, and an open-loop load from a third
process.

A third way goes over the floor: a proxy on the same server and the same client as the gateway, with none of its logic.
What the gateway costs above it is ours to answer for; the floor itself is the price of a process in between.

Rounds of the three ways alternate, so that whatever else the machine does falls on all, and a figure is the median of
the rounds'. Latency counts from the moment a request was due to its first body byte and, for an answer in one piece,
that is its end; so a stall of the machine shows instead of being left out. CPU is that of the proxy's process alone,
by the kernel's account.

    python benchmarks/gateway.py [--rps 200] [--seconds 20]

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
import uvicorn
import uvloop

from nightfill.bench.machine import commit, this_machine
from nightfill.config import ContextSettings, GatewaySettings
from nightfill.contexts.context import Signature
from nightfill.engines.engine import Call, Description, Engine, Reuse, Tokens
from nightfill.engines.sse import EventSplitter
from nightfill.engines.upstream import StreamResponse, Upstream
from nightfill.gateway import FrontDoor
from nightfill.observe.metrics import Metrics
from nightfill.state.board import MmapLoadBoard
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CHUNKS: Final = 32
CHUNK: Final = (
    b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
)
WHOLE: Final = json.dumps(
    {
        "id": "1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 170}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 150, "completion_tokens": 170, "prompt_tokens_details": {"cached_tokens": 0}},
    }
).encode()


def request_bytes(*, stream: bool) -> bytes:
    """A chat request of 0.7 KB."""
    body = json.dumps(
        {"model": "stub", "stream": stream, "messages": [{"role": "user", "content": "x" * 620}]}, separators=(",", ":")
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


# --- the stub


async def stub(_scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answers at once: one piece, or a stream of `CHUNKS` events."""
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    if b'"stream":true' in body:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for _ in range(CHUNKS):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    else:
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(WHOLE))]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": WHOLE})


async def serve_bare(app: Any) -> None:
    """Serve a raw ASGI callable; print the port."""
    config = uvicorn.Config(app, port=0, http="httptools", lifespan="off", access_log=False, log_level="warning")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await task


# --- the floor


async def run_floor(upstream_port: int) -> None:
    """Serve a proxy that passes requests on and answers back, and does nothing else; print its port."""
    upstream = Upstream(f"http://127.0.0.1:{upstream_port}", engine="stub")

    async def proxy(scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        async with upstream.stream("POST", scope["path"], body=body) as response:
            head = [(b"content-type", response.content_type.encode())]
            if "content-length" in response.headers:
                head.append((b"content-length", response.headers["content-length"].encode()))
            await send({"type": "http.response.start", "status": response.status, "headers": head})
            async for chunk in response.chunks():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    await serve_bare(proxy)


# --- the gateway


async def whole_events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    splitter = EventSplitter(engine="stub")
    async for piece in pieces:
        if events := splitter.feed(piece):
            yield events


@dataclass
class HttpReply:
    """An answer of the stub."""

    response: StreamResponse
    restore_s: float = 0.0
    queued_s: float = 0.0
    weighed: None = None
    loaded_tokens: int = 0
    tokens: Tokens = field(default_factory=Tokens)

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def content_type(self) -> str:
        return self.response.content_type

    def chunks(self) -> AsyncIterator[bytes]:
        pieces = self.response.chunks()
        return whole_events(pieces) if self.content_type.startswith("text/event-stream") else pieces


class Opened:
    """A request to the stub; what an engine does beyond this is its own affair, and not the gateway's."""

    def __init__(self, upstream: Upstream, call: Call) -> None:
        body = msgspec.json.encode(call.body)
        self.stream = upstream.stream("POST", call.path, body=body, headers=call.headers)

    async def __aenter__(self) -> HttpReply:
        return HttpReply(await self.stream.__aenter__())

    async def __aexit__(self, *failure: Any) -> None:
        await self.stream.__aexit__(*failure)


class HttpEngine:
    """The least that the gateway asks of an engine."""

    def __init__(self, url: str) -> None:
        self.upstream = Upstream(url, engine="stub")

    async def describe(self) -> Description:
        return Description(
            engine="stub",
            model="stub",
            signature=Signature("0" * 64),
            context_length=32768,
            kv_bytes_per_token=1,
            slots=64,
            reuse=Reuse.TRIM,
            embeddings=False,
            version="stub",
        )

    def open(self, call: Call) -> Opened:
        return Opened(self.upstream, call)

    async def healthy(self) -> bool:
        return True


async def run_gateway(upstream_port: int) -> None:
    """Serve the gateway with its real state; print its port."""
    engine = HttpEngine(f"http://127.0.0.1:{upstream_port}")
    with tempfile.TemporaryDirectory() as folder:
        state = open_state(Path(folder) / "state.db")
        board = MmapLoadBoard(Path(folder) / "load")
        try:
            async with FrontDoor(
                settings=GatewaySettings(port=0),
                contexts=ContextSettings(),
                engines=[cast("Engine", engine)],
                book=state.book,
                queue=state.jobs,
                access=state.access,
                board=board,
                metrics=Metrics(),
            ).open() as server:
                print(server.port, flush=True)
                await asyncio.to_thread(sys.stdin.read)
        finally:
            await engine.upstream.aclose()
            board.close()
            await state.aclose()


# --- the load


class Connection:
    """One keep-alive connection that sends ready-made bytes and looks no closer at the answer than it must."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: bytes) -> float:
        """Send, read the whole answer; the moment its first body byte was there."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        at = head.lower().find(b"content-length:")
        if at >= 0:
            await self.reader.readexactly(int(head[at + 15 : head.index(b"\r\n", at)]))
            return time.perf_counter()
        await self.reader.readuntil(b"\n\n")
        first = time.perf_counter()
        await self.reader.readuntil(b"\r\n0\r\n\r\n")
        return first


async def run_load(port: int, *, rps: float, seconds: float, stream: bool) -> None:
    """Open loop: requests leave when they are due, whatever became of the ones before. Prints latencies as JSON."""
    request = request_bytes(stream=stream)
    idle = [await Connection.open(port) for _ in range(8)]
    latencies: list[float] = []

    async def one(due: float) -> None:
        connection = idle.pop() if idle else await Connection.open(port)
        latencies.append(await connection.ask(request) - due)
        idle.append(connection)

    for connection in list(idle):
        await connection.ask(request)
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for index in range(int(rps * seconds)):
            due = begin + index / rps
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(one(due))
    for connection in idle:
        connection.writer.close()
    print(json.dumps(latencies))


async def run_flood(port: int, *, seconds: float, connections: int = 16) -> None:
    """Closed loop: as many requests as go through. Prints requests per second."""
    request = request_bytes(stream=False)
    until = time.perf_counter() + seconds

    async def loop() -> int:
        connection, count = await Connection.open(port), 0
        while time.perf_counter() < until:
            await connection.ask(request)
            count += 1
        connection.writer.close()
        return count

    counts = await asyncio.gather(*(loop() for _ in range(connections)))
    print(json.dumps(sum(counts) / seconds))


# --- the benchmark


def child(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def result(*arguments: str) -> Any:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def port_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all threads, in nanosecond resolution."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


WAYS: Final = ("direct", "floor", "gateway")
KINDS: Final = ("json", "stream")


@dataclass
class Round:
    """One measurement of every way, one after the other."""

    latencies: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    cpu_s: dict[tuple[str, str], float] = field(default_factory=dict)
    """Of the proxy, per request."""

    def added(self, way: str, share: float) -> float:
        """Seconds that `way` adds to the percentile, both kinds of request together."""
        return self.percentile(way, share) - self.percentile("direct", share)

    def percentile(self, way: str, share: float) -> float:
        return percentile([value for kind in KINDS for value in self.latencies[way, kind]], share)


def measure(ports: dict[str, str], pids: dict[str, int], *, rps: float, seconds: float) -> Round:
    done = Round()
    for kind in KINDS:
        for way in WAYS:
            before = cpu_s(pids[way])
            taken = result("--role", "load", ports[way], str(rps), str(seconds), kind)
            done.latencies[way, kind] = taken
            done.cpu_s[way, kind] = (cpu_s(pids[way]) - before) / len(taken)
    return done


def show(rounds: list[Round]) -> None:
    print(f"{'':16}{'p50':>10}{'p90':>10}{'p99':>10}   ms, and CPU ms per request; medians of {len(rounds)} rounds")
    for kind in KINDS:
        for way in WAYS:
            shares = [
                statistics.median(percentile(one.latencies[way, kind], share) for one in rounds)
                for share in (0.5, 0.9, 0.99)
            ]
            cpu = statistics.median(one.cpu_s[way, kind] for one in rounds)
            print(f"{way + ' ' + kind:16}" + "".join(f"{1000 * value:10.3f}" for value in (*shares, cpu)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rps", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=20, help="of load for each way and each kind of request")
    parser.add_argument("--round-seconds", type=float, default=2.5)
    options = parser.parse_args()
    processes = {"direct": child("--role", "stub")}
    try:
        ports = {"direct": port_of(processes["direct"])}
        for way in WAYS[1:]:
            processes[way] = child("--role", way, ports["direct"])
            ports[way] = port_of(processes[way])
        pids = {way: process.pid for way, process in processes.items()}
        rounds = [
            measure(ports, pids, rps=options.rps, seconds=options.round_seconds)
            for _ in range(max(1, round(options.seconds / options.round_seconds)))
        ]
        max_rps = {way: result("--role", "flood", ports[way], "3") for way in ("floor", "gateway")}
    finally:
        for process in processes.values():
            process.terminate()
            process.wait(10)
    show(rounds)

    def middle(figure: Callable[[Round], float]) -> float:
        return statistics.median(figure(one) for one in rounds)

    figures = {
        "added_p50_s": middle(lambda one: one.added("gateway", 0.5)),
        "added_p99_s": middle(lambda one: one.added("gateway", 0.99)),
        "cpu_s_per_request": middle(lambda one: one.cpu_s["gateway", "json"]),
        "cpu_s_per_stream": middle(lambda one: one.cpu_s["gateway", "stream"]),
        "max_rps": max_rps["gateway"],
        "floor_added_p50_s": middle(lambda one: one.added("floor", 0.5)),
        "floor_added_p99_s": middle(lambda one: one.added("floor", 0.99)),
        "floor_cpu_s_per_request": middle(lambda one: one.cpu_s["floor", "json"]),
        "floor_cpu_s_per_stream": middle(lambda one: one.cpu_s["floor", "stream"]),
        "floor_max_rps": max_rps["floor"],
        "added_p50_of_rounds_s": [round(one.added("gateway", 0.5), 6) for one in rounds],
        "added_p99_of_rounds_s": [round(one.added("gateway", 0.99), 6) for one in rounds],
        "rps": options.rps,
        "chunks_per_stream": CHUNKS,
        "requests": sum(len(values) for one in rounds for values in one.latencies.values()),
        "load_average": os.getloadavg()[0],
        "machine": asdict(this_machine()),
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
    }
    print(json.dumps(figures))


def role(arguments: list[str]) -> None:
    match arguments:
        case ["stub"]:
            uvloop.run(serve_bare(stub))
        case ["floor", port]:
            uvloop.run(run_floor(int(port)))
        case ["gateway", port]:
            uvloop.run(run_gateway(int(port)))
        case ["load", port, rps, seconds, kind]:
            uvloop.run(run_load(int(port), rps=float(rps), seconds=float(seconds), stream=kind == "stream"))
        case ["flood", port, seconds]:
            uvloop.run(run_flood(int(port), seconds=float(seconds)))
        case _:
            sys.exit(f"unknown role: {shlex.join(arguments)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        role(sys.argv[2:])
    else:
        main()
