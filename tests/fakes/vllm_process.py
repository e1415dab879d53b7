"""A stand-in for the `vllm` program, started as it is: keeps its side of the HTTP calls on sleep, or breaks it as told.

The model's name is the mood. Standard library only, and run by its path. What it is asked goes to the file `calls` in
the folder FAKE_DIR, a line each; its process ids, arguments and environment to `starts`.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAKE_DIR"])
KEY = os.environ.get("VLLM_API_KEY", "")
ARGUMENTS = sys.argv[1:]
MOOD = Path(ARGUMENTS[1]).name
CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"

awake = threading.Event()
awake.set()
asleep: set[str] = set()
level = 0
slept = False


def note(file: str, what: object) -> None:
    with (FOLDER / file).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(what) + "\n")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def starts() -> int:
    return len((FOLDER / "starts").read_text(encoding="utf-8").splitlines())


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: object, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer({})
        elif MOOD != "open" and self.headers.get("Authorization") != f"Bearer {KEY}":
            self.answer({"error": {"message": "Unauthorized"}}, 401)
        elif self.path == "/v1/models":
            self.answer({"data": [{"id": ARGUMENTS[ARGUMENTS.index("--served-model-name") + 1]}]})
        elif self.path == "/is_sleeping":
            self.answer({"is_sleeping": not awake.is_set()})

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self.answer({"error": {"message": "Unauthorized"}}, 401)
            return
        note("calls", f"{self.path} {body['method']}" if "method" in body else self.path)
        path, _, query = self.path.partition("?")
        {"/sleep": self.sleep, "/wake_up": self.wake}.get(path, self.other)(path, query)

    def sleep(self, _: str, query: str) -> None:
        global level, slept
        level, slept = int(query.removeprefix("level=")), True
        if MOOD != "insomniac":
            asleep.update(("weights", "kv_cache"))
            awake.clear()
        self.answer({"status": "sleeping", "level": level})

    def wake(self, _: str, query: str) -> None:
        if MOOD == "drowsy":
            time.sleep(60)
        asleep.difference_update([query.removeprefix("tags=")] if query else list(asleep))
        if not asleep:
            awake.set()
        self.answer({"status": "sleeping" if asleep else "awake", "tags": query})

    def other(self, path: str, _: str) -> None:
        if path == "/v1/completions":
            awake.wait()
            tokens = [7, 8] if MOOD == "forgetful" and slept else [5, starts() if MOOD == "another" else 6]
            tops = [{"token_id:5": -0.25}, {"token_id:6": -0.5}]
            choice = {"index": 0, "text": "ab", "token_ids": tokens, "logprobs": {"top_logprobs": tops}}
            self.answer({"choices": [choice], "usage": {"prompt_tokens": 32}})
        else:
            self.answer({"results": [None], "success": MOOD != "busy"})


def hold_shared_memory() -> None:
    """Two files, one as vLLM makes them, one as our own tier does; held by a child that is killed in the end."""
    for name in ("psm", "nightfill"):
        path = Path("/dev/shm") / f"{name}_{os.environ['FAKE_MARK']}"
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            held.append(mmap.mmap(file.fileno(), 4096))


held: list[mmap.mmap] = []


def main() -> None:
    port = int(ARGUMENTS[ARGUMENTS.index("--port") + 1])
    note("starts", {"pid": os.getpid(), "argv": ARGUMENTS, "env": dict(os.environ)})
    if MOOD == "fails" or (MOOD == "fails-once" and starts() == 1):
        say("vllm serve: error: unrecognized arguments: --bogus")
        sys.exit(2)
    if MOOD in ("breeds", "stubborn"):
        child = subprocess.Popen([sys.executable, "-S", "-c", CHILD], stdout=subprocess.PIPE, start_new_session=True)
        assert child.stdout is not None
        child.stdout.readline()
        note("children", child.pid)
    if MOOD == "stubborn":
        hold_shared_memory()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, end)
    say("(APIServer pid=1) INFO 01-01 00:00:00 [x.py:1] Loading")
    if MOOD == "hangs":
        time.sleep(60)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        say(f"OSError: {error.strerror}")
        sys.exit(1)
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if MOOD == "breeds" or (MOOD == "falls-once" and starts() == 1):
        threading.Thread(target=fall, daemon=True).start()
    server.serve_forever(poll_interval=0.01)


def end(*_: object) -> None:
    note("calls", "SIGTERM")
    os._exit(0)


def fall() -> None:
    """End by itself, once it was told that it may."""
    while not (FOLDER / "fall").exists():
        time.sleep(0.01)
    say("(APIServer pid=1) ERROR 01-01 00:00:00 [x.py:1] prompt: my secret")
    say("(EngineCore pid=2) ERROR 01-01 00:00:00 [x.py:1] OutOfMemoryError: CUDA out of memory")
    os._exit(7)


main()
