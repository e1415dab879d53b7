"""Requests and sources beyond a bound, and shutdown under way: each a clear answer, none a surprise."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Answer, Serve

pytestmark = pytest.mark.e2e


def assert_error(answer: Answer, status: int, *, code: str, param: str | None, part: str) -> None:
    assert answer.status == status, answer.body[:500]
    error = answer.error
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert part in error["message"]
    assert len(error["message"]) < 500


def test_a_body_of_50_mb_is_refused_while_it_is_being_sent(shared_serve: Serve) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "a" * (50 << 20)}]}).encode()
    answer = shared_serve.request("POST", "/v1/chat/completions", body)
    assert_error(answer, 413, code="request_too_large", param=None, part=f"{len(body)} bytes; at most {32 << 20}")
    assert shared_serve.ask().status == 200


def test_a_body_of_50_mb_in_chunks_of_unknown_number_is_refused_too(shared_serve: Serve) -> None:
    sent = 0
    with socket.create_connection(shared_serve.address, timeout=60) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        # The rest is thrown away for a moment and then the connection ends, at any byte of ours.
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                connection.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
                sent += 1 << 20
        response = http.client.HTTPResponse(connection)
        response.begin()
        answer = json.loads(response.read())
    assert response.status == 413
    assert answer["error"]["message"] == f"the body has more than {32 << 20} bytes"
    assert sent > 32 << 20


def test_a_prompt_beyond_the_context_is_refused_with_both_figures(shared_serve: Serve) -> None:
    answer = shared_serve.ask(source_text(1, functions=1500))
    assert_error(answer, 400, code="context_length_exceeded", param=None, part="32768 tokens")
    streamed = shared_serve.ask(source_text(1, functions=1500), stream=True)
    assert_error(streamed, 400, code="context_length_exceeded", param=None, part="32768 tokens")
    completion = shared_serve.ask(source_text(1, functions=1500), path="/v1/completions")
    assert_error(completion, 400, code="context_length_exceeded", param=None, part="32768 tokens")


def test_a_context_beyond_the_models_context_is_refused_when_it_is_used(shared_serve: Serve) -> None:
    shared_serve.put("huge", source_text(2, functions=1500))
    answer = shared_serve.ask(context="huge")
    assert_error(answer, 400, code="context_length_exceeded", param=None, part="32768 tokens")
    assert shared_serve.request("DELETE", "/v1/nightfill/contexts/huge").status == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(shared_serve: Serve, path: str) -> None:
    answer = shared_serve.ask(model="gpt-4o", path=path)
    assert_error(answer, 404, code="model_not_found", param="model", part="'gpt-4o' is not served here; there are: ")
    assert shared_serve.model in answer.error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_unknown_context_is_not_found(shared_serve: Serve, path: str) -> None:
    answer = shared_serve.ask(context="nowhere", path=path)
    assert_error(answer, 404, code="context_not_found", param="nightfill.context", part="there is no context 'nowhere'")


@pytest.mark.parametrize("deeper", [False, True])
def test_an_unreadable_folder_is_refused_by_name(shared_serve: Serve, tmp_path: Path, *, deeper: bool) -> None:
    folder = tmp_path / "code"
    secret = folder / "secret" if deeper else folder
    secret.mkdir(parents=True)
    (secret / "a.py").write_text("a = 1\n", encoding="utf-8")
    (folder / "b.py").write_text("b = 1\n", encoding="utf-8")
    secret.chmod(0)
    # Root may read everything, unless it does without the right to.
    under = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.access(secret, os.R_OK) else ()
    try:
        if under and shutil.which(under[0]) is None:
            pytest.skip("needs a user other than root")
        ran = shared_serve.cli("context", "add", "code", str(folder), under=under)
    finally:
        secret.chmod(0o700)
    assert ran.returncode == 2
    assert str(secret) in ran.stderr
    assert ("ermission denied" if deeper else "is not readable") in ran.stderr
    assert "Traceback" not in ran.stderr
    assert shared_serve.request("GET", "/v1/nightfill/contexts/code").status == 404


def test_a_missing_folder_is_refused_by_name(shared_serve: Serve, tmp_path: Path) -> None:
    ran = shared_serve.cli("context", "add", "gone", str(tmp_path / "gone"))
    assert ran.returncode == 2
    assert f"Path '{tmp_path / 'gone'}' does not exist" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_stream_under_way_at_sigterm_is_finished_and_nothing_new_is_taken(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve().start()
    answers: list[Answer] = []
    # At some 150 tokens a second this takes seconds.
    client = threading.Thread(
        target=lambda: answers.append(serve.ask(stream=True, max_tokens=600, ignore_eos=True)), daemon=True
    )
    client.start()
    eventually(lambda: serve.metric("nightfill_in_flight_requests") == 1, within_s=10, what="the stream began")
    address = serve.address
    serve.terminate()
    refused = None
    while client.is_alive() and refused is None:
        connection = http.client.HTTPConnection(*address, timeout=10)
        with contextlib.suppress(OSError):
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            refused = (response.status, json.loads(response.read())["status"]) if response.status != 200 else None
        connection.close()
    client.join(60)
    (answer,) = answers
    assert (answer.status, answer.finished, answer.usage["completion_tokens"]) == (200, True, 600)
    assert refused == (503, "draining")
    assert serve.wait() == 0


def test_a_fill_under_way_at_sigterm_stops_within_seconds_and_goes_on_where_it_was(
    new_serve: Callable[..., Serve],
) -> None:
    serve = new_serve(settings={"sleep": {"max_slice_s": 0.3}}).start()
    serve.put("code", source_text(3, functions=400))

    def stored() -> int:
        return sum(fill["stored_tokens"] for fill in serve.fills("code"))

    eventually(lambda: stored() >= 512, within_s=60, what="something stored")
    before = stored()
    began_s = time.monotonic()
    serve.stop()
    assert time.monotonic() - began_s < 15
    serve.start()
    assert stored() >= before
    serve.wait_ready("code")
    (fill,) = serve.fills("code")
    (job,) = serve.jobs()
    assert job["attempts"] == 2
    assert job["failures"] == 0
    computed = [int(found) for found in serve.logged(r"ready, \d+ tokens, (\d+) computed now")]
    assert len(computed) == 1
    assert computed[0] <= fill["tokens"] - before
