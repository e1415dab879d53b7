"""Thousands of random requests against a real server with a real engine: no 5xx, no hang, no crash, no trace left."""

from __future__ import annotations

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import pytest

import fuzzed
from serving import source_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from fuzzed import Fuzzed
    from serving import Serve

pytestmark = pytest.mark.e2e

SEED: Final = 20261121
REQUESTS: Final = 2400
CLIENTS: Final = 4
WITHIN_S: Final = 40.0
"""For the slowest of them, with all the others at work."""


def trouble(serve: Serve, request: Fuzzed) -> str | None:
    """Send it; what is wrong with the answer, or None."""
    began_s = time.monotonic()
    connection = http.client.HTTPConnection(*serve.address, timeout=WITHIN_S)
    try:
        connection.request(request.method, request.path, request.body, request.headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as exc:
        return f"{type(exc).__name__} {exc} after {time.monotonic() - began_s:.1f} s: {request}"
    finally:
        connection.close()
    status, kind = response.status, response.headers.get("content-type", "")
    if status >= 500:
        return f"{status} {body[:300]!r}: {request}"
    if request.method == "HEAD":
        return None
    if kind.startswith("text/event-stream"):
        return (
            None
            if b'"error"' in body or b"data: [DONE]" in body
            else f"a stream without an end {body[-300:]!r}: {request}"
        )
    if kind.startswith("application/json"):
        try:
            answer = json.loads(body)
        except ValueError:
            return f"{status} and no JSON {body[:300]!r}: {request}"
        if status >= 400:
            error = answer.get("error", {})
            if not (isinstance(error.get("message"), str) and isinstance(error.get("type"), str)):
                return f"{status} in no known shape {body[:300]!r}: {request}"
            if not isinstance(error.get("code"), str | None) or "param" not in error:
                return f"{status} not in OpenAI's shape {body[:300]!r}: {request}"
    return None


@pytest.mark.timeout(400)
def test_no_request_makes_a_5xx_a_hang_or_a_crash(new_serve: Callable[..., Serve]) -> None:
    # What generates without a bound ends at the context's end.
    serve = new_serve(arguments=("--context-length", "768"), settings={"log_level": "warning"}).start()
    serve.put("c", source_text(1, functions=5))
    serve.wait_ready("c")
    before, engine = serve.ask(context="c"), serve.live_pid
    requests = [fuzzed.request(SEED, number) for number in range(REQUESTS)]
    with ThreadPoolExecutor(CLIENTS) as clients:
        troubles = [found for found in clients.map(lambda one: trouble(serve, one), requests) if found]
    shown = "\n".join(troubles[:25])
    assert not troubles, f"{len(troubles)} of {REQUESTS}:\n{shown}\n{serve.log_tail(5000)}"
    assert serve.running
    assert serve.live_pid == engine, "the engine died"
    assert serve.request("GET", "/readyz").status == 200
    assert serve.metric("nightfill_faults_total") == 0
    serve.put("c", source_text(1, functions=5))
    assert serve.ask(context="c").text == before.text
    statuses = {
        key: value for key, value in serve.metrics().items() if key.startswith("nightfill_requests_total") and value
    }
    served = sum(value for key, value in statuses.items() if "2xx" in key and "completions" in key)
    assert served > REQUESTS / 20, "hardly anything came through to the engine"
