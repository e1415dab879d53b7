from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from fakes.engine import SIGNATURE, FakeEngine
from fakes.house import CHAT, House, post
from nightfill.config import ByteSize, ContextSettings
from nightfill.contexts import DEFAULT_TENANT, ContextName, Fill, FillKey, FillState, Fingerprint, Form
from nightfill.errors import BudgetSpent
from nightfill.state.jobs import JobState

if TYPE_CHECKING:
    from pathlib import Path

    import aiohttp


TEXT = {"text": "A long text about harbours."}


async def call(
    client: aiohttp.ClientSession, method: str, path: str, body: object = None, key: str = ""
) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    data = msgspec.json.encode(body) if body is not None else b""
    async with client.request(method, f"/v1/nightfill/{path}", data=data, headers=headers) as reply:
        return reply.status, await reply.json()


def filled(fingerprint: str, form: Form, state: FillState = FillState.READY) -> Fill:
    key = FillKey(tenant=DEFAULT_TENANT, fingerprint=Fingerprint(fingerprint), form=form, signature=SIGNATURE)
    return Fill(key=key, state=state, tokens=(1, 2, 3), stored_tokens=3, filled_at_s=time.time(), fill_seconds=0.5)


async def test_a_context_is_put_shown_listed_and_deleted(house: House) -> None:
    async with house.client() as client:
        status, made = await call(client, "PUT", "contexts/repo", TEXT)
        assert (status, made["name"], made["forms"], made["source"]) == (201, "repo", ["chat"], "text")
        assert made["bytes"] == len(TEXT["text"])
        assert (await call(client, "PUT", "contexts/repo", TEXT))[0] == 200
        assert (await call(client, "GET", "contexts/repo"))[1]["fingerprint"] == made["fingerprint"]
        assert [row["name"] for row in (await call(client, "GET", "contexts"))[1]["data"]] == ["repo"]
        assert (await call(client, "DELETE", "contexts/repo"))[1]["deleted"]
        assert (await call(client, "GET", "contexts/repo"))[0] == 404
        assert (await call(client, "DELETE", "contexts/repo"))[0] == 404


async def test_messages_become_a_context_for_chats_alone(house: House) -> None:
    body = {"messages": [{"role": "user", "content": "one"}]}
    async with house.client() as client:
        assert (await call(client, "PUT", "contexts/talk", body))[1]["forms"] == ["chat"]
        status, answer = await call(client, "PUT", "contexts/talk", {**body, "forms": ["completion"]})
        assert (status, answer["error"]["param"]) == (400, "forms")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": "a", "messages": [{"role": "user", "content": "b"}]},
        {"text": ""},
        {"text": 3},
        {"txt": "a"},
        {"text": "a", "forms": []},
        {"text": "a", "ttl_s": 0},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "b"}]},
        {"source": {"type": "text"}},
        {"source": {"type": "folder"}},
    ],
)
async def test_a_context_that_makes_no_sense_is_refused(house: House, body: dict[str, Any]) -> None:
    async with house.client() as client:
        status, answer = await call(client, "PUT", "contexts/repo", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert await house.book.contexts() == []


async def test_a_context_over_the_bound_is_refused_with_the_bound(house: House) -> None:
    house.contexts = ContextSettings(max_bytes=ByteSize(10))
    async with house.client() as client:
        status, answer = await call(client, "PUT", "contexts/repo", TEXT)
    assert status == 400
    assert "10" in answer["error"]["message"]


async def test_a_folder_is_read_only_below_the_configured_roots(house: House, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.py").write_text("print('a')\n")
    (inside / "link").symlink_to(outside)
    house.contexts = ContextSettings(roots=(str(inside),))
    async with house.client() as client:
        for path, expected in ((inside, 201), (outside, 403), (inside / "link", 403), (inside / ".." / "out", 403)):
            body = {"source": {"type": "folder", "path": str(path)}}
            status, _ = await call(client, "PUT", f"contexts/c{expected}", body)
            assert status == expected


async def test_filling_now_queues_each_form_once_before_everything_else(house: House) -> None:
    async with house.client() as client:
        _, made = await call(client, "PUT", "contexts/repo", {**TEXT, "forms": ["chat", "completion"]})
        await house.book.put_fill(filled(made["fingerprint"], Form.COMPLETION))
        status, first = await call(client, "POST", "contexts/repo/fill")
        _, again = await call(client, "POST", "contexts/repo/fill")
        assert status == 202
        assert [job["id"] for job in first["jobs"]] == [job["id"] for job in again["jobs"]]
        assert [row["form"] for row in first["ready"]] == ["completion"]
        _, jobs = await call(client, "GET", "jobs")
    assert [(job["context"], job["state"]) for job in jobs["data"]] == [("repo", "queued")]
    [job] = house.queue.rows.values()
    assert FillKey.parse(job.target).form is Form.CHAT
    assert job.priority >= 1e9


async def test_filling_now_brings_a_dead_job_back(house: House) -> None:
    async with house.client() as client:
        await call(client, "PUT", "contexts/repo", {**TEXT, "forms": ["chat"]})
        await call(client, "POST", "contexts/repo/fill")
        [job] = house.queue.rows.values()
        house.queue.rows[job.id] = replace(job, state=JobState.DEAD)
        _, answer = await call(client, "POST", "contexts/repo/fill")
    assert [row["state"] for row in answer["jobs"]] == ["queued"]


async def test_deleting_forgets_the_kv_and_cancels_the_jobs(house: House) -> None:
    async with house.client() as client:
        _, made = await call(client, "PUT", "contexts/repo", {**TEXT, "forms": ["chat", "completion"]})
        await call(client, "POST", "contexts/repo/fill")
        fill = filled(made["fingerprint"], Form.CHAT)
        await house.book.put_fill(fill)
        _, answer = await call(client, "DELETE", "contexts/repo")
    assert answer["jobs_cancelled"] == 2
    assert house.forgotten == [fill]
    assert await house.book.fills() == []


async def test_deleting_keeps_what_another_context_with_the_same_text_needs(house: House) -> None:
    async with house.client() as client:
        _, made = await call(client, "PUT", "contexts/one", TEXT)
        await call(client, "PUT", "contexts/two", TEXT)
        await house.book.put_fill(filled(made["fingerprint"], Form.CHAT))
        await call(client, "POST", "contexts/two/fill")
        _, answer = await call(client, "DELETE", "contexts/one")
    assert answer["jobs_cancelled"] == 0
    assert house.forgotten == []


async def test_pinning_keeps_everything_else(house: House) -> None:
    async with house.client() as client:
        _, made = await call(client, "PUT", "contexts/repo", {**TEXT, "ttl_s": 60, "forms": ["chat"]})
        _, pinned = await call(client, "POST", "contexts/repo/pin")
        _, unpinned = await call(client, "POST", "contexts/repo/pin", {"pinned": False})
    assert (made["pinned"], pinned["pinned"], unpinned["pinned"]) == (False, True, False)
    assert {key: pinned[key] for key in ("fingerprint", "ttl_s", "forms")} == {
        key: made[key] for key in ("fingerprint", "ttl_s", "forms")
    }


async def test_a_tenant_sees_neither_contexts_nor_jobs_of_another(house: House) -> None:
    house.settings = msgspec.structs.replace(house.settings, api_keys={"a": "key-a", "b": "key-b"})
    async with house.client() as client:
        await call(client, "PUT", "contexts/repo", TEXT, key="key-a")
        await call(client, "POST", "contexts/repo/fill", key="key-a")
        for path in ("contexts", "jobs"):
            assert (await call(client, "GET", path, key="key-a"))[1]["data"] != []
            assert (await call(client, "GET", path, key="key-b"))[1]["data"] == []
        for method, path in (("GET", "contexts/repo"), ("DELETE", "contexts/repo"), ("POST", "contexts/repo/fill")):
            assert (await call(client, method, path, key="key-b"))[0] == 404
        assert (await call(client, "GET", "contexts"))[0] == 401


async def test_a_context_has_a_user_whose_budget_pays_for_its_fill(house: House) -> None:
    async with house.client() as client:
        _, made = await call(client, "PUT", "contexts/repo", {**TEXT, "user": "ann"})
        _, pinned = await call(client, "POST", "contexts/repo/pin")
        assert (made["user"], pinned["user"]) == ("ann", "ann")
        _, answer = await call(client, "POST", "contexts/repo/fill")
        status, refused = await call(client, "PUT", "contexts/repo", {**TEXT, "user": "Ann Smith"})
    [job] = house.queue.rows.values()
    assert (job.user, job.needs, answer["jobs"][0]["user"]) == ("ann", SIGNATURE, "ann")
    assert job.reserved_tokens == -(-len(TEXT["text"]) // 3), "an estimate, while nobody asked the tokenizer"
    assert (status, refused["error"]["param"]) == (400, "user")


async def test_a_known_fill_sets_aside_what_is_missing_of_it(house: House) -> None:
    async with house.client() as client:
        _, made = await call(client, "PUT", "contexts/repo", TEXT)
        fill = filled(made["fingerprint"], Form.CHAT, FillState.FILLING)
        await house.book.put_fill(replace(fill, tokens=tuple(range(1000)), stored_tokens=600))
        await call(client, "POST", "contexts/repo/fill")
    [job] = house.queue.rows.values()
    assert job.reserved_tokens == 400


async def test_a_fill_beyond_the_budget_is_refused_and_not_to_be_tried_again_before_it_resets(house: House) -> None:
    house.queue.spent = BudgetSpent("user ann has 5 tokens left", resets_at_s=time.time() + 3600)
    async with house.client() as client:
        await call(client, "PUT", "contexts/repo", {**TEXT, "user": "ann"})
        async with client.post("/v1/nightfill/contexts/repo/fill") as reply:
            error = (await reply.json())["error"]
            assert reply.status == 429
            assert reply.headers["x-should-retry"] == "false"
            assert 3590 <= int(reply.headers["retry-after"]) <= 3600
        assert (error["type"], error["code"]) == ("insufficient_quota", "budget_spent")
        assert error["message"] == "user ann has 5 tokens left"
        async with client.post("/v1/chat/completions", json={**CHAT, "nightfill": {"context": "repo"}}) as reply:
            assert reply.status == 200, "who asks is not refused for what background work may not do"


async def test_engines_show_what_they_are(house: House) -> None:
    async with house.client() as client:
        _, answer = await call(client, "GET", "engines")
    assert [(row["name"], row["signature"], row["reuse"]) for row in answer["data"]] == [("fake", SIGNATURE, "trim")]


async def test_engines_show_how_they_are_and_so_do_the_metrics() -> None:
    gate = asyncio.Event()
    house = House(engine=FakeEngine(gates={0: gate}))
    async with house.client() as client:
        asked = asyncio.create_task(post(client, "/v1/chat/completions", json={**CHAT, "max_tokens": 7}))
        await house.engine.opened.wait()
        _, busy = await call(client, "GET", "engines")
        assert house.value("nightfill_engine_in_flight_tokens", engine="fake") == busy["data"][0]["in_flight_tokens"]
        gate.set()
        assert await asked == 200
        _, idle = await call(client, "GET", "engines")
    (row,) = busy["data"]
    assert (row["healthy"], row["failures"], row["in_flight"]) == (True, 0, 1)
    assert 7 < row["in_flight_tokens"] < 30
    assert idle["data"][0]["in_flight_tokens"] == 0
    assert house.value("nightfill_engine_healthy", engine="fake") == 1


async def test_the_state_being_down_is_a_503(house: House) -> None:
    house.book.down = True
    async with house.client() as client:
        assert (await call(client, "GET", "contexts"))[0] == 503
        assert (await call(client, "PUT", "contexts/repo", TEXT))[0] == 503


async def test_a_method_or_path_that_is_not_there_says_so(house: House) -> None:
    async with house.client() as client:
        assert (await call(client, "POST", "contexts"))[0] == 405
        assert (await call(client, "GET", "plan"))[0] == 404
        assert (await call(client, "GET", "contexts/repo/x"))[0] == 404
        assert (await call(client, "GET", "contexts/NOT A NAME"))[0] == 400
    assert await house.book.get(DEFAULT_TENANT, ContextName("repo")) is None
