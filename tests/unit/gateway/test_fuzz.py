"""Random requests against a gateway on a real socket: whatever comes, no 5xx and no hang."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.house import House

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
KNOWN = (
    *("messages", "prompt", "input", "model", "stream", "stream_options", "temperature", "top_p", "n", "max_tokens"),
    *("stop", "seed", "logprobs", "logit_bias", "tools", "nightfill", "id_slot", "cache_prompt", "echo", "suffix"),
)
messages = st.lists(
    st.fixed_dictionaries({}, optional={"role": st.sampled_from(["user", "system", "x"]) | values, "content": values}),
    max_size=3,
)
extension = st.fixed_dictionaries(
    {}, optional={"context": st.text(max_size=5) | values, "mode": values, "skip": values, "max_age_s": values}
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(KNOWN, values),
        "messages": messages | values,
        "nightfill": extension | values,
        "prompt": st.text(max_size=5) | st.lists(st.integers(), max_size=3) | values,
        "model": st.just("demo") | values,
        "unknown": values,
    },
)
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/tokenize")
ADMIN_PATHS = ("contexts/a", "contexts/a/fill", "contexts/a/pin", "contexts", "jobs", "contexts/%00", "contexts/A b")
requests = st.one_of(
    st.tuples(st.just("POST"), st.sampled_from(PATHS), bodies.map(lambda body: json.dumps(body).encode())),
    st.tuples(st.just("POST"), st.sampled_from(PATHS), st.binary(max_size=60)),
    st.tuples(
        st.sampled_from(["GET", "PUT", "POST", "DELETE", "PATCH"]),
        st.sampled_from(ADMIN_PATHS).map("/v1/nightfill/".__add__),
        st.dictionaries(st.sampled_from(["text", "messages", "source", "forms", "pinned", "ttl_s"]), values).map(
            lambda body: json.dumps(body).encode()
        ),
    ),
)


def test_no_request_makes_the_gateway_fail_or_hang() -> None:
    seen: dict[int, int] = {}
    with asyncio.Runner() as runner:
        house = House()
        opened = house.client()
        client = runner.run(opened.__aenter__())

        async def ask(method: str, path: str, body: bytes) -> tuple[int, bytes]:
            async with asyncio.timeout(5), client.request(method, path, data=body) as reply:
                return reply.status, await reply.read()

        async def ask_all(batch: list[tuple[str, str, bytes]]) -> list[tuple[int, bytes]]:
            return await asyncio.gather(*(ask(*request) for request in batch))

        @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(requests, min_size=5, max_size=20))
        def fuzz(batch: list[tuple[str, str, bytes]]) -> None:
            for status, answer in runner.run(ask_all(batch)):
                seen[status] = seen.get(status, 0) + 1
                assert status < 500, answer
                if status >= 400:
                    error: dict[str, Any] = json.loads(answer)["error"]
                    assert set(error) == {"message", "type", "param", "code"}

        try:
            fuzz()
        finally:
            runner.run(opened.__aexit__(None, None, None))
    assert house.board.in_flight == 0
    assert sum(seen.values()) >= 2000
    assert {200, 400} <= seen.keys()  # both what passes and what is refused was tried
