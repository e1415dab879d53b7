from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.house import CHAT, post

if TYPE_CHECKING:
    from fakes.house import House


@pytest.mark.parametrize("path", ["/healthz", "/health", "/livez", "/readyz", "/ready", "/version", "/metrics"])
async def test_probes_answer_get_and_head_without_a_key(house: House, path: str) -> None:
    async with house.client() as client:
        async with client.get(path) as reply:
            assert reply.status == 200
            assert len(await reply.read()) == int(reply.headers["content-length"])
        async with client.head(path) as reply:
            assert (reply.status, await reply.read()) == (200, b"")
        async with client.post(path) as reply:
            assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


async def test_without_a_healthy_engine_it_is_alive_but_not_ready(house: House) -> None:
    house.engine.is_healthy = False
    async with house.client() as client:
        async with client.get("/healthz") as reply:
            assert reply.status == 200
        async with client.get("/readyz") as reply:
            assert reply.status == 503


async def test_an_unknown_path_is_a_404_in_openais_shape(house: House) -> None:
    async with house.client() as client, client.get("/slots/0?action=restore") as reply:
        assert reply.status == 404
        error = (await reply.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "path", ["/slots", "/slots/0", "/props", "/lora-adapters", "/completion", "/infill", "/models"]
)
async def test_routes_that_control_the_engine_are_closed(house: House, path: str) -> None:
    async with house.client() as client, client.post(path, json={}) as reply:
        assert reply.status == 404
    assert house.engine.calls == []


async def test_models_are_those_that_engines_describe(house: House) -> None:
    async with house.client() as client:
        async with client.get("/v1/models") as reply:
            assert [model["id"] for model in (await reply.json())["data"]] == ["demo"]
        async with client.get("/v1/models/demo") as reply:
            assert (await reply.json())["max_model_len"] == 4096
        async with client.get("/v1/models/other") as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (404, "model_not_found")


async def test_an_unknown_model_is_a_404_that_names_those_there_are(house: House) -> None:
    async with house.client() as client, client.post("/v1/chat/completions", json={**CHAT, "model": "gpt-9"}) as reply:
        error = (await reply.json())["error"]
    assert (reply.status, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "demo" in error["message"]


async def test_embeddings_are_refused_where_the_engine_has_none(house: House) -> None:
    ask = {"model": "demo", "input": "text"}
    async with house.client() as client, client.post("/v1/embeddings", json=ask) as reply:
        assert (reply.status, (await reply.json())["error"]["param"]) == (400, "model")
    house.engine.embeddings = True
    async with house.client() as client, client.post("/v1/embeddings", json=ask) as reply:
        assert reply.status == 200


async def test_an_engines_own_refusal_passes_byte_for_byte(house: House) -> None:
    house.engine.status = 400
    house.engine.whole = b'{"error": {"code":400, "message": "too long","type":"exceed_context_size_error"}}'
    house.engine.script = [house.engine.whole]
    for stream in (False, True):
        async with (
            house.client() as client,
            client.post("/v1/chat/completions", json={**CHAT, "stream": stream}) as reply,
        ):
            assert (reply.status, await reply.read()) == (400, house.engine.whole)
            assert reply.headers["content-type"] == "application/json"


async def test_a_requests_id_is_echoed_or_made(house: House) -> None:
    async with house.client() as client:
        async with client.get("/healthz", headers={"x-request-id": "abc-1"}) as reply:
            assert reply.headers["x-request-id"] == "abc-1"
        async with client.get("/healthz", headers={"x-request-id": "no spaces \t allowed"}) as reply:
            assert len(reply.headers["x-request-id"]) == 32
        await post(
            client, "/v1/chat/completions", json=CHAT, headers={"x-request-id": "abc-2", "traceparent": "00-a-b-01"}
        )
    assert house.engine.calls[0].headers == {"x-request-id": "abc-2", "traceparent": "00-a-b-01"}


async def test_metrics_count_requests_by_route_and_class(house: House) -> None:
    async with house.client() as client:
        await post(client, "/v1/chat/completions", json={**CHAT, "stream": True})
        await post(client, "/v1/chat/completions", json={})
        await post(client, "/some/secret/path")
        async with client.get("/metrics") as reply:
            text = await reply.text()
    assert 'nightfill_requests_total{route="/v1/chat/completions",status="2xx"} 1.0' in text
    assert 'nightfill_requests_total{route="/v1/chat/completions",status="4xx"} 1.0' in text
    assert 'nightfill_requests_total{route="other",status="4xx"} 1.0' in text
    assert 'nightfill_jobs{state="queued"} 0.0' in text
    assert "secret" not in text
    assert house.value("nightfill_time_to_first_token_seconds_count", model_name="demo", layer="cold") == 1


async def test_metrics_are_served_while_the_state_is_down(house: House) -> None:
    house.queue.down = True
    async with house.client() as client, client.get("/metrics") as reply:
        assert reply.status == 200
