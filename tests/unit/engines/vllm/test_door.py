from __future__ import annotations

from typing import Any

import pytest

from nightfill.engines.vllm.door import Door


async def through(scope: dict[str, Any], *headers: tuple[bytes, bytes]) -> list[Any]:
    """What is sent to a client; `"in"` where the server is reached."""
    sent: list[Any] = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        sent.append("in")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("status", message.get("code", message["type"])))

    await Door(app)({"headers": list(headers), **scope}, None, send)
    return sent


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "k1")


@pytest.mark.parametrize("path", ["/sleep", "/wake_up", "/collective_rpc", "/v1/models", "/metrics", "/health/x", "/"])
async def test_nothing_is_done_for_somebody_without_the_key(path: str) -> None:
    scope = {"type": "http", "path": path}
    assert await through(scope) == [401, "http.response.body"]
    assert await through(scope, (b"authorization", b"Bearer k2")) == [401, "http.response.body"]
    assert await through(scope, (b"authorization", b"k1")) == [401, "http.response.body"]
    assert await through(scope, (b"x-authorization", b"Bearer k1")) == [401, "http.response.body"]
    assert await through(scope, (b"authorization", b"Bearer k1")) == ["in"]


async def test_whether_it_lives_everybody_may_ask() -> None:
    assert await through({"type": "http", "path": "/health"}) == ["in"]
    assert await through({"type": "lifespan"}) == ["in"]


async def test_other_ways_in_are_closed_too() -> None:
    assert await through({"type": "websocket", "path": "/health"}) == [1008]
    assert await through({"type": "websocket", "path": "/v1/realtime"}) == [1008]


def test_a_server_without_a_key_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(KeyError):
        Door(None)  # type: ignore[arg-type]
