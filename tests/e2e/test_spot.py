"""A machine is taken away in the middle of a fill: the worker leaves in time, and the next one goes on where it was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import pytest

from serving import child_of, eventually, marked, source_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from serving import Serve

pytestmark = pytest.mark.e2e

GRACE_S: Final = 5.0
SLICE: Final = 256
SETTINGS: Final[dict[str, Any]] = {
    "engines": [{"model": "demo:small", "threads": 1, "batch_tokens": 128}],
    "sleep": {"max_slice_tokens": SLICE, "max_slice_s": "1s", "audit_share": 0},
}
FUNCTIONS: Final = 200
LONGER: Final = 800
"""So many that a notice, which is asked for every few seconds, comes in the middle."""


class Worker:
    """`nightfill work` on the folder of a server that does not run."""

    def __init__(self, serve: Serve, *options: str) -> None:
        self.log = serve.log.with_name(f"work-{time.monotonic_ns()}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*serve.command, "work", *options], env=serve.environment, stdin=subprocess.DEVNULL, stderr=log
            )

    def left_after_s(self, since_s: float) -> float:
        """Seconds from `since_s` to its end, which is a good one."""
        status = self.process.wait(60)
        took_s = time.monotonic() - since_s
        assert status == 0, self.log.read_text()
        return took_s


@contextlib.contextmanager
def working(serve: Serve, *options: str) -> Iterator[Worker]:
    worker = Worker(serve, *options)
    try:
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait(60)


def shown(serve: Serve, *command: str) -> Any:
    done = serve.cli(*command, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def job(serve: Serve) -> dict[str, Any]:
    (found,) = shown(serve, "jobs", "ls", "--all")
    return dict(found)


def stored(serve: Serve) -> int:
    (fill,) = shown(serve, "context", "show", "long")["fills"]
    return int(fill["stored_tokens"])


def in_the_middle(serve: Serve) -> bool:
    # From the file itself: commands would take the processor from the fill.
    with contextlib.closing(sqlite3.connect(f"file:{serve.data_dir / 'state.db'}?mode=ro", uri=True)) as state:
        jobs = state.execute("SELECT done_tokens, total_tokens FROM jobs").fetchall()
    return any(0.25 < done / max(total, 1) < 0.9 for done, total in jobs)


@pytest.fixture
def night(new_serve: Callable[..., Serve], tmp_path: Path, request: pytest.FixtureRequest) -> Serve:
    """A folder with one long context, and nobody who works on it."""
    serve = new_serve("night", settings=SETTINGS)
    text = tmp_path / "long.txt"
    text.write_text(source_text(7, functions=getattr(request, "param", FUNCTIONS)), encoding="utf-8")
    assert serve.cli("context", "add", "long", str(text)).returncode == 0
    return serve


def assert_handed_back(serve: Serve) -> int:
    """The job is as if nobody had failed; what is stored of it."""
    found = job(serve)
    assert {name: found[name] for name in ("state", "failures", "lost", "worker")} == {
        "state": "queued",
        "failures": 0,
        "lost": 0,
        "worker": None,
    }
    eventually(lambda: not marked(serve.mark), within_s=5, what=f"the engine gone too, not {marked(serve.mark)}")
    # Not one slice is lost: what was computed when the signal came is stored.
    kept = stored(serve)
    assert found["done_tokens"] - SLICE <= kept
    return kept


def assert_the_next_one_goes_on(serve: Serve, kept: int) -> None:
    with working(serve) as worker:
        eventually(lambda: ": ready, " in worker.log.read_text(), within_s=120, what="the fill is done")
        worker.process.terminate()
        worker.left_after_s(time.monotonic())
    (line,) = [line for line in worker.log.read_text().splitlines() if ": ready, " in line]
    total, computed = (int(word) for word in line.replace(",", "").split() if word.isdigit() and int(word) > 100)
    assert stored(serve) == total
    assert computed <= total - kept + SLICE


def test_a_worker_that_is_told_to_leave_does_so_in_time_and_the_next_one_goes_on(night: Serve) -> None:
    with working(night) as worker:
        eventually(lambda: in_the_middle(night), within_s=90, what="a fill is under way")
        told_s = time.monotonic()
        worker.process.terminate()
        assert worker.left_after_s(told_s) < GRACE_S
    assert "cut off" not in worker.log.read_text()
    assert_the_next_one_goes_on(night, assert_handed_back(night))


class Metadata(ThreadingHTTPServer):
    """Answers as the metadata address of AWS does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.taken = threading.Event()
        """The machine is to be taken away."""
        self.told_s: float | None = None
        """When a worker was first told so."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        self._say(200, b"a-token")

    def do_GET(self) -> None:
        assert (self.path, self.headers["x-aws-ec2-metadata-token"]) == (
            "/latest/meta-data/spot/instance-action",
            "a-token",
        )
        if not self.server.taken.is_set():
            self._say(404, b"")
            return
        self.server.told_s = self.server.told_s or time.monotonic()
        self._say(200, b'{"action": "terminate", "time": "2026-09-18T08:22:00Z"}')

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize("night", [LONGER], indirect=True)
def test_a_spot_notice_is_obeyed_like_a_signal(night: Serve, metadata: Metadata) -> None:
    night.environment["NIGHTFILL_SLEEP__SPOT_NOTICE_URL"] = metadata.url
    night.environment["NIGHTFILL_SLEEP__SPOT"] = "aws"
    with working(night) as worker:
        eventually(lambda: in_the_middle(night), within_s=90, what="a fill is under way")
        metadata.taken.set()
        eventually(lambda: metadata.told_s is not None, within_s=10, what="the address is asked")
        assert metadata.told_s is not None
        assert worker.left_after_s(metadata.told_s) < GRACE_S
    assert "spot notice: terminate at 2026-09-18T08:22:00Z" in worker.log.read_text()
    assert_handed_back(night)


def test_an_engine_that_hangs_does_not_keep_a_worker_beyond_its_grace(night: Serve) -> None:
    with working(night) as worker:
        eventually(lambda: in_the_middle(night), within_s=90, what="a fill is under way")
        engine = child_of(worker.process.pid, "nightfill.engines.llama.child")
        assert engine is not None
        os.kill(engine, signal.SIGSTOP)
        told_s = time.monotonic()
        worker.process.terminate()
        assert worker.left_after_s(told_s) < GRACE_S
    eventually(lambda: not marked(night.mark), within_s=5, what="the engine is gone too")
    assert job(night)["state"] == "queued"
