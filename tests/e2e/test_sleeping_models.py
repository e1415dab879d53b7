"""Two real models, and memory for one of them awake beside the other asleep."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from serving import Serve, eventually, processes, source_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from serving import Answer

pytestmark = pytest.mark.e2e

MEMORY: Final = 136 << 20
"""One takes 77 MiB awake and 41 asleep."""
REQUESTS: Final = 100
SESSIONS: Final = 10


def settings(**lifecycle: Any) -> dict[str, Any]:
    engine = {"context_length": 4096, "slots": 1, "device": "ram"}
    return {
        "engines": [
            {**engine, "name": "a", "served_model_name": "model-a", "model": "demo:small"},
            {**engine, "name": "b", "served_model_name": "model-b", "model": "demo:small:1"},
        ],
        "gateway": {"max_in_flight": 128},
        "lifecycle": {
            "devices": [{"name": "ram", "max_bytes": MEMORY}],
            "min_awake_s": 0,
            "max_turn_s": 1,
            **lifecycle,
        },
    }


@pytest.fixture(scope="module")
def serve(serve_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """For all tests that leave it able to answer."""
    served = Serve(tmp_path_factory.mktemp("sleeping"), home=serve_home, model="demo:small", settings=settings())
    try:
        yield served.start()
    finally:
        served.close()


def engine(serve: Serve, name: str) -> dict[str, Any]:
    rows = serve.request("GET", "/v1/nightfill/engines").json()["data"]
    return next(row for row in rows if row["name"] == name)


def model(serve: Serve, name: str) -> dict[str, Any]:
    return dict(engine(serve, name)["lifecycle"])


def told(serve: Serve, *arguments: str) -> dict[str, Any]:
    """What `nightfill models` says."""
    done = serve.cli("models", *arguments, "--url", serve.url, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def move(serve: Serve, name: str, action: str, **body: Any) -> dict[str, Any]:
    answer = serve.request("POST", f"/v1/nightfill/engines/{name}/{action}", body or None)
    assert answer.status == 200, answer.body
    return dict(answer.json())


def resident(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def ends_by_arrival(serve: Serve) -> list[float]:
    """When the requests for model a had their answers, by the server's clock; whoever came first is first."""
    address = f"file:{serve.data_dir / 'state.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(address, uri=True)) as log:
        rows = log.execute("SELECT at_s + total_s FROM accesses WHERE model = 'model-a' ORDER BY at_s")
        return [end_s for (end_s,) in rows]


def children(serve: Serve) -> list[int]:
    """Process ids of the models."""
    return [one.pid for one in processes() if one.parent == serve.pid and "llama.child" in one.command]


@contextlib.contextmanager
def standing_still(serve: Serve) -> Iterator[None]:
    """The child of the model that sleeps does nothing inside, so that waking it hangs."""
    pid = min(children(serve), key=resident)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def wait_for_line(serve: Serve, length: int) -> None:
    """Until so many requests wait for model a."""
    eventually(lambda: bool(model(serve, "a")["waiting"] == length), within_s=20, what=f"{length} requests wait")


def a_sleeps_b_is_awake(serve: Serve) -> None:
    move(serve, "a", "wake")
    move(serve, "a", "sleep", level=1)
    assert move(serve, "b", "wake")["state"] == "awake"
    assert model(serve, "a")["state"] == "asleep_1"


def test_a_hundred_first_requests_wake_a_model_once_and_each_session_is_answered_in_its_order(serve: Serve) -> None:
    a_sleeps_b_is_awake(serve)
    before = model(serve, "a")["wakes"]
    earlier = len(ends_by_arrival(serve))
    warmings = len(serve.logged(r"model a: \w+ -> (warming)"))

    def ask(number: int) -> Answer:
        return serve.ask(f"number {number}", model="model-a", max_tokens=1, user=f"user-{number % SESSIONS}")

    with ThreadPoolExecutor(REQUESTS) as pool:
        with standing_still(serve):
            asked = []
            for number in range(REQUESTS):
                asked.append(pool.submit(ask, number))
                wait_for_line(serve, number + 1)
        answers = [one.result(60) for one in asked]
    assert [answer.status for answer in answers] == [200] * REQUESTS
    assert all(answer.headers["x-nightfill-engine"] == "a" for answer in answers)
    woken = model(serve, "a")
    assert (woken["wakes"], woken["last_wake"]["released"], woken["failures"]) == (before + 1, REQUESTS, 0)
    assert len(serve.logged(r"model a: \w+ -> (warming)")) == warmings + 1
    eventually(lambda: len(ends_by_arrival(serve)) == earlier + REQUESTS, within_s=20, what="the access log is written")
    ends = ends_by_arrival(serve)[-REQUESTS:]
    for session in range(SESSIONS):
        assert ends[session::SESSIONS] == sorted(ends[session::SESSIONS])


def test_requests_by_turns_switch_the_models(serve: Serve) -> None:
    texts = set()
    for name, other in (("a", "b"), ("b", "a"), ("a", "b"), ("b", "a")):
        answer = serve.ask("the same question", model=f"model-{name}")
        assert (answer.status, answer.headers["x-nightfill-engine"]) == (200, name)
        assert model(serve, name)["state"] == "awake"
        assert model(serve, other)["state"] == "asleep_1"
        texts.add((name, answer.text))
    assert len(texts) == 2, "each model says what it said before it slept"
    bytes_taken = sum(model(serve, name)["bytes"] for name in "ab")
    assert bytes_taken <= MEMORY
    assert serve.metric("nightfill_model_failures_total") == 0


def test_a_filled_context_is_reused_after_its_model_slept_and_a_sleeping_models_fill_waits(serve: Serve) -> None:
    a_sleeps_b_is_awake(serve)
    signatures = {name: engine(serve, name)["signature"] for name in "ab"}
    serve.put("code", source_text(6, functions=60))
    serve.wait_ready("code")
    (filled,) = [fill for fill in serve.fills("code") if fill["state"] == "ready"]
    assert filled["signature"] == signatures["b"]
    assert move(serve, "a", "wake")["state"] == "awake"
    serve.wait_ready("code", models=2)
    fills = {fill["signature"]: fill["tokens"] for fill in serve.fills("code")}
    for name, level in (("a", 1), ("a", 2), ("b", 1)):
        move(serve, name, "sleep", level=level)
        answer = serve.ask(context="code", model=f"model-{name}")
        assert (answer.status, answer.layer) == (200, "fill")
        assert answer.reused >= 0.95 * fills[signatures[name]] > 1000
        cold = serve.ask(context="code", model=f"model-{name}", skip=("fill",))
        assert (cold.layer, cold.text) == ("cold", answer.text)
    assert serve.metric("nightfill_broken_promises_total") == 0


def test_models_are_moved_by_the_command_line(serve: Serve) -> None:
    a_sleeps_b_is_awake(serve)
    assert told(serve, "sleep", "b", "--level", "2")["state"] == "asleep_2"
    woken = told(serve, "wake", "a")
    assert woken["state"] == "awake"
    assert woken["bytes"] > 50 << 20
    assert list(woken["last_wake"]["seconds"]) == ["load", "warm"]
    assert told(serve, "pin", "a")["pinned"] is True
    refused = serve.ask(model="model-b")
    assert (refused.status, "beside a which is pinned" in refused.error["message"]) == (503, True), refused.body
    assert told(serve, "unpin", "a")["pinned"] is False
    listed = serve.cli("models", "--url", serve.url)
    assert [line.split()[:3] for line in listed.stdout.splitlines()[1:]] == [
        ["a", "model-a", "awake"],
        ["b", "model-b", "asleep_2"],
    ]


def test_models_whose_processes_were_killed_are_there_for_the_next_requests(serve: Serve) -> None:
    a_sleeps_b_is_awake(serve)
    failures = serve.metric("nightfill_model_failures_total")
    pids = children(serve)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    eventually(
        lambda: serve.metric("nightfill_model_failures_total") == failures + 2, within_s=10, what="it is noticed"
    )
    for name in ("b", "a"):
        assert serve.ask(model=f"model-{name}").status == 200
    assert set(children(serve)).isdisjoint(pids)


def test_a_request_whose_model_does_not_wake_in_time_is_told_so(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve(model="demo:small", settings=settings(max_wait_s=1.5), arguments=("--no-sleep",)).start()
    a_sleeps_b_is_awake(serve)
    with standing_still(serve):
        late = serve.ask(model="model-a")
        assert (late.status, late.error["type"]) == (504, "server_error")
        assert "1.5 s" in late.error["message"]
        assert model(serve, "a")["state"] == "starting"
    eventually(lambda: serve.ask(model="model-a").status == 200, within_s=20, what="an answer once it goes on")
    a_sleeps_b_is_awake(serve)
    with standing_still(serve):
        # All children end with their server, also those that sleep or hang; `stop` looks whether they did.
        serve.stop()


def test_a_model_that_its_device_cannot_hold_ends_serve_and_names_the_setting(serve_home: Path, tmp_path: Path) -> None:
    small = settings(devices=[{"name": "ram", "max_bytes": 60 << 20}])
    served = Serve(tmp_path / "small", home=serve_home, model="demo:small", settings=small)
    try:
        done = served.cli("serve", "--port", "0")
    finally:
        served.close()
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "and device ram has 62914560 (lifecycle.devices, max_bytes)" in done.stderr.splitlines()[-1]
