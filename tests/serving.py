"""A real `nightfill serve` for tests: started on a demo model, asked over HTTP, looked at through /proc, stopped.

Everything here blocks, and has a deadline. Times are seconds.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from documents import clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

UP_WITHIN_S: Final = 60.0
STILL_S: Final = 60.0
"""A fill whose state has not changed for so long is stuck."""
ENDS_WITHIN_S: Final = 45.0
_POLL_S: Final = 0.05
_CHILD: Final = "nightfill.engines.llama.child"
_MARK: Final = "SERVED_FOR_TEST"


def source_text(seed: int, *, functions: int = 100) -> str:
    """Text like a program's, about 30 tokens of the demo models a function; another seed shares no line with it."""
    rng = random.Random(seed)
    return "".join(
        f"def f_{rng.randrange(10**9)}(value: int) -> int:\n    return value + {rng.randrange(10**6)}\n\n"
        for _ in range(functions)
    )


def eventually(holds: Callable[[], bool], *, within_s: float, what: str) -> None:
    """Wait for what another process does and tells nobody."""
    deadline_s = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(_POLL_S)


# --- processes ---


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc shows it."""

    pid: int
    parent: int
    command: str


def processes() -> Iterator[Process]:
    """All that run; no zombies."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    yield Process(int(folder.name), int(fields[1]), command)


def child_of(parent: int | None, part: str) -> int | None:
    """The running child of `parent` whose command line has `part` in it."""
    return next((one.pid for one in processes() if one.parent == parent and part in one.command), None)


def marked(mark: str) -> list[Process]:
    """All running processes that were started, by whatever way, with `mark` in their environment."""
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for one in processes():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{one.pid}/environ").read_bytes().split(b"\0"):
                found.append(one)
    return found


# --- answers ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back over HTTP. For streams `text` is put together from the events."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    text: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = True
    """A stream came to its `[DONE]`."""

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        found = self.json()["error"]
        assert set(found) >= {"message", "type", "param", "code"}, found
        return dict(found)

    @property
    def layer(self) -> str:
        return self.headers.get("x-nightfill-layer", "")

    @property
    def reused(self) -> int:
        """Prompt tokens that the engine says it did not compute."""
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def distance(a: Answer, b: Answer) -> float:
    """How far two answers with `top_logprobs` are apart in their first token: nats, over the tokens that both list.

    The same prompt computed in other batches gives up to 0.12 with the smallest demo model; another prompt, or wrong
    KV, gives 0.7 and more. Texts are worse to compare: the best two tokens are now and then nearly alike.
    """
    mine, theirs = (
        {one["token"]: one["logprob"] for one in answer.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
        for answer in (a, b)
    )
    both = mine.keys() & theirs.keys()
    if len(both) < len(mine) / 2:
        return math.inf
    return max(float(abs(mine[token] - theirs[token])) for token in both)


def _joined(body: bytes) -> tuple[str, dict[str, Any], bool]:
    """Text, usage and whether it is finished, from a body of events."""
    text, finished = "", False
    usage: dict[str, Any] = {}
    for line in body.split(b"\n"):
        if line.startswith(b"data: "):
            if line == b"data: [DONE]":
                finished = True
                continue
            event = json.loads(line.removeprefix(b"data: "))
            usage = event.get("usage") or usage
            for choice in event.get("choices") or []:
                text += choice.get("delta", {}).get("content") or choice.get("text") or ""
    return text, usage, finished


# --- the server ---


class Serve:
    """One data folder and the `nightfill serve` on it. `start` and `stop` in any number of turns; `close` at the end.

    `settings` go to a file (they are what docs/settings.md lists), `arguments` to the command line.
    """

    def __init__(
        self,
        folder: Path,
        *,
        home: Path,
        model: str = "demo:tiny",
        settings: Mapping[str, Any] | None = None,
        arguments: tuple[str, ...] = (),
        data_dir: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data_dir = data_dir or folder / "data"
        self.log = folder / "serve.log"
        self.config = folder / "settings.yaml"
        self.config.write_text(json.dumps(settings or {}), encoding="utf-8")
        self.mark = uuid.uuid4().hex
        self.environment = {**clean_environment(home), _MARK: self.mark}
        if "restore" not in (settings or {}).get("kv", {}):
            # The smallest models compute a short context about as quickly as they load it.
            self.environment["NIGHTFILL_KV__RESTORE"] = "always"
        self.where: dict[str, Any] = {}
        self._arguments = ("--model", model, "--port", "0", "--json", *arguments)
        self._process: subprocess.Popen[str] | None = None

    # --- life ---

    def start(self, *, within_s: float = UP_WITHIN_S) -> Serve:
        """Start it and wait until it says where it listens."""
        assert self._process is None
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [*self.command, "serve", *self._arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        watchdog = _kill_after(self._process, within_s)
        try:
            line = self._process.stdout.readline()
        finally:
            watchdog()
        assert line, f"serve ended before it listened:\n{self.log_tail()}"
        self.where = json.loads(line)
        assert "url" in self.where, self.where
        return self

    @property
    def command(self) -> list[str]:
        """The start of every command line on this folder: the program, its settings, its data."""
        return [sys.executable, "-m", "nightfill", "--config", str(self.config), "--data-dir", str(self.data_dir)]

    def cli(
        self, *arguments: str, within_s: float = 60, under: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run another command on the same folder and settings; `under` is a program that runs it."""
        return subprocess.run(
            [*under, *self.command, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )

    def terminate(self) -> None:
        """Ask it to end, as an init system would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self, within_s: float = ENDS_WITHIN_S) -> int:
        """Its exit status. Checks that it left no process behind."""
        assert self._process is not None
        status = self._process.wait(within_s)
        self._ended()
        return status

    def stop(self) -> None:
        """End it in good order."""
        self.terminate()
        assert self.wait() == 0, self.log_tail()

    def kill(self) -> None:
        """End it as a power cut would; nothing that it started may outlive it for long."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(ENDS_WITHIN_S)
        self._ended()

    def _ended(self) -> None:
        assert self._process is not None
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None
        # A worker whose server is gone keeps what it computed, and ends.
        eventually(lambda: not marked(self.mark), within_s=20, what=f"all processes gone, not {marked(self.mark)}")

    def close(self) -> None:
        """Stop it if it runs; whatever happened, nothing stays behind. Its log goes to the test's captured output."""
        try:
            if self._process is not None:
                if self._process.poll() is None:
                    self.stop()
                else:
                    status = self.wait()
                    raise AssertionError(f"serve ended by itself with status {status}")
            assert "Traceback" not in self.log_text()
        finally:
            sys.stderr.write(f"--- {self.log}\n{self.log_tail()}\n")
            for one in marked(self.mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGKILL)

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def log_tail(self, characters: int = 20_000) -> str:
        return self.log_text()[-characters:]

    def logged(self, pattern: str) -> list[str]:
        """What the pattern's group matched in the log, in order."""
        return re.findall(pattern, self.log_text())

    # --- processes ---

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def live_pid(self) -> int | None:
        """Of the llama.cpp child that answers requests."""
        return child_of(self.pid, _CHILD)

    @property
    def worker_pid(self) -> int | None:
        return child_of(self.pid, "nightfill work")

    @property
    def fill_pid(self) -> int | None:
        """Of the llama.cpp child that fills, the worker's."""
        worker = self.worker_pid
        return child_of(worker, _CHILD) if worker is not None else None

    # --- HTTP ---

    @property
    def url(self) -> str:
        return str(self.where["url"])

    @property
    def model(self) -> str:
        return str(self.where["model"])

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        within_s: float = 60,
    ) -> Answer:
        """Ask and read the whole answer. `body`: bytes as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(*self.address, timeout=within_s)
        try:
            connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Answer(
                status=response.status,
                headers={name.lower(): value for name, value in response.getheaders()},
                body=response.read(),
            )
        finally:
            connection.close()

    def ask(
        self,
        content: str = "What is it for?",
        *,
        context: str | None = None,
        stream: bool = False,
        skip: tuple[str, ...] = (),
        max_tokens: int = 8,
        path: str = "/v1/chat/completions",
        within_s: float = 120,
        **members: Any,
    ) -> Answer:
        """A greedy chat (or completion) with its text and usage, whatever its status."""
        body: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0, **members}
        if path.endswith("/chat/completions"):
            body["messages"] = [{"role": "user", "content": content}]
        else:
            body["prompt"] = content
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        extension = {"context": context} if context is not None else {}
        if skip:
            extension |= {"skip": skip}  # type: ignore[dict-item]
        if extension:
            body["nightfill"] = extension
        answer = self.request("POST", path, body, within_s=within_s)
        if answer.status != 200:
            return answer
        if stream:
            text, usage, finished = _joined(answer.body)
        else:
            whole = answer.json()
            choice = whole["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            usage, finished = whole["usage"], True
        return Answer(
            status=answer.status,
            headers=answer.headers,
            body=answer.body,
            text=text,
            usage=usage,
            finished=finished,
        )

    # --- contexts ---

    def put(self, name: str, text: str, *, forms: tuple[str, ...] = ("chat",), **more: Any) -> dict[str, Any]:
        """Make or replace a context."""
        answer = self.request("PUT", f"/v1/nightfill/contexts/{name}", {"text": text, "forms": forms, **more})
        assert answer.status in (200, 201), answer.body
        return dict(answer.json())

    def context(self, name: str) -> dict[str, Any]:
        answer = self.request("GET", f"/v1/nightfill/contexts/{name}")
        assert answer.status == 200, answer.body
        return dict(answer.json())

    def fills(self, name: str) -> list[dict[str, Any]]:
        return list(self.context(name)["fills"])

    def states(self, name: str) -> list[str]:
        """Of its fills; fewer than the context has forms while some are absent."""
        return [fill["state"] for fill in self.fills(name)]

    def wait_ready(self, *names: str, models: int = 1, within_s: float = 120) -> None:
        """Wait until the contexts are filled in all forms for so many models. Fails earlier when nothing moves for
        `STILL_S`.
        """
        deadline_s = time.monotonic() + within_s
        seen: object = None
        moved_s = time.monotonic()
        while True:
            views = {name: self.context(name) for name in names}
            if all(
                sum(fill["state"] == "ready" for fill in view["fills"]) >= models * len(view["forms"])
                for view in views.values()
            ):
                return
            now_s = time.monotonic()
            progress = [
                (view["fills"], [(job["state"], job["done_tokens"]) for job in self.jobs()]) for view in views.values()
            ]
            if progress != seen:
                seen, moved_s = progress, now_s
            if now_s > deadline_s or now_s - moved_s > STILL_S:
                raise AssertionError(f"not ready: {views}; jobs: {self.jobs()}")
            time.sleep(_POLL_S)

    def jobs(self) -> list[dict[str, Any]]:
        answer = self.request("GET", "/v1/nightfill/jobs")
        assert answer.status == 200, answer.body
        return list(answer.json()["data"])

    def metrics(self) -> dict[str, float]:
        """`name{labels}` -> value."""
        answer = self.request("GET", "/metrics")
        assert answer.status == 200, answer.body
        lines = (line.rpartition(" ") for line in answer.body.decode().splitlines() if line and line[0] != "#")
        return {name: float(value) for name, _, value in lines}

    def metric(self, name: str) -> float:
        """Sum over all labels; 0 while it has none."""
        return sum(value for key, value in self.metrics().items() if key.partition("{")[0] == name)


def _kill_after(process: subprocess.Popen[str], seconds: float) -> Callable[[], None]:
    """Kill it if it still runs then; call the result to call that off."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    return timer.cancel
