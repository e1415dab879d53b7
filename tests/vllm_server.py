"""A real `vllm serve` on the processor, for tests: started on a tiny model, asked over HTTP, killed, stopped.

It comes from the environment that `make vllm` makes; NIGHTFILL_VLLM_PYTHON names the interpreter of another one.
Everything here blocks, and has a deadline. Times are seconds. A start takes 20 s and 1.6 GB: share servers where a test
leaves them as they are (`shared_vllm` in tests/e2e/conftest.py).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from documents import clean_environment
from serving import Answer, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parents[1]
PYTHON: Final = Path(os.environ.get("NIGHTFILL_VLLM_PYTHON") or ROOT / ".venv-vllm" / "bin" / "python")
"""The interpreter of the environment that has vLLM."""
MODELS: Final = PYTHON.parents[1] / "models"
TINY: Final = MODELS / "tiny"
TINY_OTHER: Final = MODELS / "tiny-other"
"""Of the same shape with other weights."""

UP_WITHIN_S: Final = 180.0
"""Alone on two quiet cores 20 s; five at once take 90 s."""
ENDS_WITHIN_S: Final = 30.0
_POLL_S: Final = 0.1
_FLAGS: Final = ("--enforce-eager", "--enable-prompt-tokens-details", "--block-size", "32", "--max-model-len", "8192")
_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # Several servers share two cores: one thread each, bound to none. Two threads would spin while they wait.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What /v1/completions answered."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of `tokens`. Bitwise equal for equal KV in equal chunks; see docs/vllm.md for what else is comparable."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed: from vLLM's own prefix cache or from a connector."""
    kv_transfer_params: Mapping[str, Any] = field(default_factory=dict)


class VllmServer:
    """One `vllm serve` on a free port of loopback. `start`, `stop`, `kill` in any number of turns; `close` at the end.

    `flags` are added to the command line (and win over those set here), `environment` to the environment. The port, the
    log and the cache folder stay the same over restarts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: Path = TINY,
        name: str = "tiny",
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        kv_cache_bytes: int = 128 << 20,
        api_key: str = "",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "home").mkdir(exist_ok=True)
        self.name = name
        self.log = folder / "vllm.log"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **clean_environment(folder / "home"),
            "PYTHONWARNINGS": "default",  # those of vLLM and torch are not ours to repair
            **_ENVIRONMENT,
            "PYTHONPATH": str(ROOT / "src"),  # this checkout's plug-in, wherever the environment has one from
            **({"VLLM_API_KEY": api_key} if api_key else {}),
            **(environment or {}),
        }
        self.command = [
            *(str(PYTHON.with_name("vllm")), "serve", str(model)),
            *("--served-model-name", name, "--host", "127.0.0.1", "--port", str(self.port)),
            # Without a bound vLLM takes nearly all memory there is.
            *("--kv-cache-memory-bytes", str(kv_cache_bytes)),
            *_FLAGS,
            *flags,
        ]
        self._model = model
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._process: subprocess.Popen[bytes] | None = None

    # --- life ---

    def launch(self) -> VllmServer:
        """Start it and do not wait, so that several can start together; `ready` waits."""
        assert self._process is None, "it runs already"
        assert PYTHON.exists(), f"{PYTHON} is missing: make vllm makes it"
        assert (self._model / "config.json").exists(), f"{self._model} is missing: make vllm makes it"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env=self.environment,
                cwd=self.log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # by which all that it starts is found again
            )
        return self

    def ready(self, within_s: float = UP_WITHIN_S) -> VllmServer:
        """Wait until it is healthy. If it ends or the time does, kills it and shows the log's end."""
        assert self._process is not None
        deadline_s = time.monotonic() + within_s
        while not self.healthy():
            if self._process.poll() is not None:
                status = self._process.returncode
                self.kill()
                raise AssertionError(f"vllm ended with status {status} before it was ready:\n{self.log_tail()}")
            if time.monotonic() > deadline_s:
                self.kill()
                raise AssertionError(f"vllm was not ready within {within_s:g} s:\n{self.log_tail()}")
            time.sleep(_POLL_S)
        return self

    def start(self, within_s: float = UP_WITHIN_S) -> VllmServer:
        """Start it and wait until it answers."""
        return self.launch().ready(within_s)

    def stop(self) -> None:
        """End it in good order: the main process is told, and ends the others."""
        assert self._process is not None
        held = self.shared_memory()
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(ENDS_WITHIN_S)
            eventually(lambda: not self._session(), within_s=ENDS_WITHIN_S, what="all processes of vllm gone")
        except (subprocess.TimeoutExpired, AssertionError) as exc:
            self.kill()
            raise AssertionError(f"vllm did not end:\n{self.log_tail()}") from exc
        self._process = None
        _remove(held)  # two ranks leave some
        assert status == 0, f"vllm ended with status {status}:\n{self.log_tail()}"

    def kill(self) -> None:
        """SIGKILL to all its processes, as a power cut would; what they held in shared memory is removed."""
        assert self._process is not None
        pids = self._session()
        held = _shared_memory(pids)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(ENDS_WITHIN_S)
        eventually(lambda: not self._session(), within_s=ENDS_WITHIN_S, what="all processes of vllm gone")
        self._process = None
        _remove(held)

    def restart(self) -> VllmServer:
        """End it in good order, start it again."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Stop it if it runs; whatever happened, nothing stays behind. Its log goes to the test's captured output."""
        if self._process is None:
            return
        try:
            if self._process.poll() is None:
                self.stop()
            else:
                status = self._process.returncode
                self.kill()
                raise AssertionError(f"vllm ended by itself with status {status}:\n{self.log_tail()}")
        finally:
            sys.stderr.write(f"--- {self.log}\n{self.log_tail()}\n")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the main process, which serves HTTP."""
        assert self._process is not None
        return self._process.pid

    def shared_memory(self) -> set[int]:
        """Inodes of what its processes hold in /dev/shm now."""
        return _shared_memory(self._session())

    def _session(self) -> list[int]:
        """All processes that run in the session of the main one, itself included; it may be gone already."""
        assert self._process is not None
        return list(_in_session(self._process.pid))

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def log_tail(self, characters: int = 10_000) -> str:
        return self.log_text()[-characters:]

    def logged(self, pattern: str) -> list[str]:
        """What the pattern's group matched in the log, in order."""
        return re.findall(pattern, self.log_text())

    # --- HTTP ---

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        within_s: float = 120,
    ) -> Answer:
        """Ask and read the whole answer. `body`: bytes as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=within_s)
        try:
            sent = {"content-type": "application/json", **self._headers, **(headers or {})}
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Answer(
                status=response.status,
                headers={name.lower(): value for name, value in response.getheaders()},
                body=response.read(),
            )
        finally:
            connection.close()

    def healthy(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.request("GET", "/health", within_s=5).status == 200
        return False

    def complete(self, prompt: str | Sequence[int], *, max_tokens: int = 8, **members: Any) -> Completion:
        """A greedy completion of a text or of token ids, not streamed."""
        body = {
            "model": self.name,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": 1,
            "return_token_ids": True,
            **members,
        }
        reply = self._post("/v1/completions", body)
        choice, usage = reply["choices"][0], reply["usage"]
        return Completion(
            text=choice["text"],
            tokens=tuple(choice["token_ids"]),
            logprobs=tuple(choice["logprobs"]["token_logprobs"]),
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            kv_transfer_params=reply.get("kv_transfer_params") or {},
        )

    def chat(self, content: str, *, max_tokens: int = 8, **members: Any) -> dict[str, Any]:
        """The whole answer to one greedy chat turn."""
        messages = [{"role": "user", "content": content}]
        body = {"model": self.name, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **members}
        return self._post("/v1/chat/completions", body)

    def tokenize(self, text: str) -> list[int]:
        return list(self._post("/tokenize", {"model": self.name, "prompt": text})["tokens"])

    def detokenize(self, tokens: Sequence[int]) -> str:
        return str(self._post("/detokenize", {"model": self.name, "tokens": list(tokens)})["prompt"])

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.request("POST", path, body)
        assert answer.status == 200, (answer.status, answer.body)
        return dict(answer.json())

    def metrics(self) -> dict[str, float]:
        """`name{labels}` -> value."""
        answer = self.request("GET", "/metrics")
        assert answer.status == 200, answer.body
        lines = (line.rpartition(" ") for line in answer.body.decode().splitlines() if line and line[0] != "#")
        return {name: float(value) for name, _, value in lines}

    def metric(self, name: str, **labels: str) -> float:
        """Sum over all series that have these labels; 0 while there is none."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for series, value in self.metrics().items()
            if series.partition("{")[0] == name and all(one in series for one in wanted)
        )


def _free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- processes, as /proc shows them ---


def _in_session(session: int) -> Iterator[int]:
    """Running processes of that session; no zombies."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX" and int(fields[3]) == session:
                    yield int(folder.name)


def _shared_memory(pids: Sequence[int]) -> set[int]:
    """Inodes of files in /dev/shm that these processes have mapped or open.

    Inodes, as a semaphore is mapped under another name than it has: that of a draft, long gone.
    """
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                fields = line.split(maxsplit=5)
                if len(fields) == 6 and fields[5].startswith("/dev/shm/"):
                    found.add(int(fields[4]))
            for link in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(link.readlink()).startswith("/dev/shm/"):
                        found.add(link.stat().st_ino)
    return found


def shared_memory_left(inodes: set[int]) -> list[Path]:
    """Those of the files that are still there."""
    found = []
    for file in Path("/dev/shm").iterdir():
        with contextlib.suppress(OSError):
            if file.stat().st_ino in inodes:
                found.append(file)
    return found


def _remove(inodes: set[int]) -> None:
    for file in shared_memory_left(inodes):
        file.unlink(missing_ok=True)
