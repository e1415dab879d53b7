"""What state in Redis has beside what every store keeps."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.seal import XorSeal
from fakes.state import told
from fakes.stores import redis_server
from nightfill.contexts.context import (
    ContextName,
    ContextOptions,
    Fill,
    FillKey,
    FillState,
    Form,
    Signature,
    Tenant,
    Text,
    TextSource,
)
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.errors import StateUnavailable
from nightfill.state.jobs import JobKind, JobState, QueueRules, WorkerId
from nightfill.state.redis import RedisState, open_redis_state
from nightfill.state.redis.server import scripts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

A = WorkerId("worker-a")
T, REPO = Tenant("default"), ContextName("repo")
HELLO = Text("hello")


@pytest.fixture
async def state() -> AsyncIterator[RedisState]:
    redis_server().call([b"FLUSHALL"])
    async with open_redis_state(redis_server().url) as opened:
        yield opened


async def put(state: RedisState) -> Fill:
    context = await state.book.put(
        tenant=T, name=REPO, source=TextSource(), content=HELLO, fingerprint=fingerprint_of(HELLO), forms=[Form.CHAT]
    )
    key = FillKey(tenant=T, fingerprint=context.current, form=Form.CHAT, signature=Signature("5" * 64))
    fill = Fill(key=key, state=FillState.READY, tokens=(1, 2, 3), stored_tokens=3, filled_at_s=1.0, fill_seconds=0.5)
    assert await state.book.put_fill(fill)
    return fill


def raw() -> list[bytes]:
    """Everything on the server, in whatever form."""
    (keys,) = redis_server().call([b"KEYS", b"*"])
    assert isinstance(keys, list)
    dumps = redis_server().call(*([b"DUMP", bytes(key)] for key in keys if isinstance(key, bytes)))
    return [bytes(dump) for dump in dumps if isinstance(dump, bytes)]


async def test_everything_lies_under_one_hash_tag(state: RedisState) -> None:
    await put(state)
    await state.jobs.enqueue(kind=JobKind.FILL, target="t", tenant="t", label="l", priority=1)
    assert await state.jobs.lease(A, kinds=[JobKind.FILL], lease_s=30)
    await state.engines.put("e", {})
    await state.deletions.owe([b"k"])
    (keys,) = redis_server().call([b"KEYS", b"*"])
    assert isinstance(keys, list)
    assert {bytes(key).split(b":")[0] for key in keys if isinstance(key, bytes)} == {b"{nightfill}"}


async def test_what_is_deleted_leaves_nothing_behind(state: RedisState) -> None:
    await put(state)
    assert await state.book.delete(T, REPO)
    (keys,) = redis_server().call([b"KEYS", b"*"])
    assert keys == [b"{nightfill}:changes"]


async def test_texts_are_sealed_and_sealed_anew_after_a_change_of_keys(state: RedisState) -> None:
    url = redis_server().url
    async with open_redis_state(url, seal=XorSeal(7)) as old:
        fill = await put(old)
        assert not any(b"hello" in value for value in raw())
    renewed = XorSeal(9, old=7)
    async with open_redis_state(url, seal=renewed) as both:
        assert await both.reseal_texts(renewed) == 3
        assert await both.reseal_texts(renewed) == 0
    async with open_redis_state(url, seal=XorSeal(9)) as new:
        assert await new.book.content(T, fingerprint_of(HELLO)) == HELLO
        assert await new.book.fill(fill.key) == fill
    async with open_redis_state(url, seal=XorSeal(8)) as wrong:
        assert await wrong.book.fill(fill.key) is None
        assert await wrong.book.get(T, REPO) is not None
        with pytest.raises(StateUnavailable, match="cannot be opened"):
            await wrong.book.content(T, fingerprint_of(HELLO))
        assert await wrong.book.put_fill(fill), "its tokens are written again"
        assert await wrong.book.fill(fill.key) == fill


async def test_deletions_are_owed_until_they_are_settled(state: RedisState) -> None:
    await state.deletions.owe([b"a", b"b\0\xff"])
    assert sorted(await state.deletions.keys(limit=10)) == [b"a", b"b\0\xff"]
    assert state.deletions.owed().blocks == 2
    await state.deletions.settle([b"a", b"b\0\xff"])
    assert await state.deletions.keys(limit=10) == []
    assert state.deletions.owed() == (0, None)


async def test_the_number_of_changes_does_not_come_back_after_a_loss_of_everything(state: RedisState) -> None:
    await put(state)
    before = await told(state.book)
    redis_server().call([b"FLUSHALL"])
    await put(state)
    assert await told(state.book) > before


async def test_too_long_jobs_do_not_hide_the_short_one_behind_them(state: RedisState) -> None:
    async def enqueue(n: int, tokens: int, priority: float) -> None:
        await state.jobs.enqueue(
            kind=JobKind.FILL, target=f"t/{n}", tenant="t", label="l", priority=priority, total_tokens=tokens
        )

    await asyncio.gather(*(enqueue(n, 40_000, 5.0) for n in range(1500)))
    await enqueue(2000, 30_000, 1.0)
    await enqueue(2001, 33_000, 2.0)
    for most, target in ((32_768, "t/2000"), (39_000, None)):
        lease = await state.jobs.lease(A, kinds=[JobKind.FILL], lease_s=30, max_tokens=most)
        # Among 1000 of about its length that are too long it would be seen, among more of them it is not.
        assert (lease and lease.job.target) == target


async def test_weights_that_a_server_has_lost_are_told_again(state: RedisState) -> None:
    rules = QueueRules(weights={"heavy": 3.0})
    async with open_redis_state(redis_server().url, rules=rules) as weighed:

        async def shares() -> list[str]:
            redis_server().call([b"FLUSHALL"])
            for n in range(8):
                for tenant in ("heavy", "light"):
                    await weighed.jobs.enqueue(
                        kind=JobKind.FILL, target=f"{tenant}/{n}", tenant=tenant, label="l", priority=1, total_tokens=10
                    )
            leases = [await weighed.jobs.lease(A, kinds=[JobKind.FILL], lease_s=30) for _ in range(8)]
            return [lease.job.tenant for lease in leases if lease is not None]

        for _ in range(2):
            assert (await shares()).count("heavy") == 6


async def test_a_long_list_of_jobs_is_read_in_steps_and_in_order(state: RedisState) -> None:
    for n in range(1200):
        await state.jobs.enqueue(kind=JobKind.FILL, target=f"t/{n}", tenant="t", label="l", priority=n % 7)
    assert await state.jobs.lease(A, kinds=[JobKind.FILL], lease_s=30)
    listed = await state.jobs.jobs(states=[JobState.QUEUED, JobState.LEASED], limit=1100)
    assert len(listed) == 1100
    assert listed == sorted(listed, key=lambda job: (-job.priority, job.id))
    assert listed[0].state is JobState.LEASED


def test_a_program_brings_what_it_needs_and_no_more() -> None:
    source = scripts("jobs")["count"].source
    assert "local root, args" in source
    assert "local function" not in source
    assert "local function finish" in scripts("jobs")["complete"].source


async def test_a_context_from_before_there_were_options_has_the_default_ones(state: RedisState) -> None:
    await put(state)
    packed = redis_server().call([b"HGET", b"{nightfill}:contexts:default", b"repo"])[0]
    assert isinstance(packed, bytes)
    earlier = msgspec.msgpack.encode(msgspec.msgpack.decode(packed)[:12])
    redis_server().call([b"HSET", b"{nightfill}:contexts:default", b"repo", earlier])
    found = await state.book.get(T, REPO)
    assert found is not None
    assert (found.options, found.distilled) == (ContextOptions(), None)
    short = Text("short")
    assert await state.book.put_distilled(found, content=short, fingerprint=fingerprint_of(short))
    found = await state.book.get(T, REPO)
    assert found is not None
    assert found.distilled == fingerprint_of(short)
