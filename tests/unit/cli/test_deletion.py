"""What is deleted goes from every tier, also from one that was out of reach and over a restart."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from fakes.redis_server import RedisServer
from nightfill.cli.deletion import forget_fill, settle_deletions, settling
from nightfill.cli.rooms import Rooms
from nightfill.cli.upkeep import deletion_samples
from nightfill.config import ByteSize, Duration, KvSettings, Settings, TierSettings
from nightfill.contexts import DEFAULT_TENANT, ContextName, Form, Text
from nightfill.contexts.context import Fill, FillKey, FillState, Signature, TextSource
from nightfill.contexts.fingerprint import fingerprint_of
from nightfill.errors import TierUnavailable
from nightfill.kv import BlockMeta, open_store, salt_of, spans
from nightfill.kv.tiers.redis import RedisTier
from nightfill.state.sqlite import open_state

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

SIGNATURE = Signature("5" * 64)
SALT = salt_of(DEFAULT_TENANT)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    running = RedisServer(password="hunter2")
    yield running
    running.close()


@contextlib.asynccontextmanager
async def rooms_at(folder: Path, server: RedisServer) -> AsyncIterator[Rooms]:
    """All kinds of tiers there are on one host, and a server."""
    kinds = (
        TierSettings(kind="ram", max_bytes=ByteSize(1 << 22)),
        TierSettings(kind="ram", max_bytes=ByteSize(1 << 22), shared=True),
        TierSettings(kind="disk", max_bytes=ByteSize(1 << 22), min_free_bytes=ByteSize(0)),
        TierSettings(
            kind="redis", max_bytes=ByteSize(1 << 22), url=f"unix://:hunter2@{server.path}", timeout_s=Duration(1)
        ),
    )
    settings = Settings(kv=KvSettings(tiers=kinds))
    store = open_store(settings.kv, data_dir=folder)
    try:
        async with open_state(folder / "state.db") as state:
            yield Rooms(settings=settings, data_dir=folder, cache_dir=folder, state=state, store=store)
    finally:
        store.close()


async def stored(rooms: Rooms, *, text: str, tokens: range) -> Fill:
    """A context whose blocks lie in all tiers."""
    content = Text(text)
    context = await rooms.state.book.put(
        tenant=DEFAULT_TENANT,
        name=ContextName(text),
        source=TextSource(),
        content=content,
        fingerprint=fingerprint_of(content),
        forms=[Form.CHAT],
    )
    fill = Fill(
        key=FillKey(tenant=DEFAULT_TENANT, fingerprint=context.current, form=Form.CHAT, signature=SIGNATURE),
        state=FillState.READY,
        tokens=tuple(tokens),
        stored_tokens=len(tokens),
        filled_at_s=0.0,
        fill_seconds=0.0,
    )
    assert await rooms.state.book.put_fill(fill)
    for span in spans(fill.tokens, signature=SIGNATURE, salt=SALT):
        meta = BlockMeta(kind="block", signature=SIGNATURE, start=span.start, stop=span.stop, layout=b"")
        rooms.store.put(span.key, [bytes(4096)], meta, salt=SALT, hot=True)
    return fill


def names(folder: Path, server: RedisServer, fill: Fill) -> tuple[int, int]:
    """Of the fill's blocks, how many are named on the disk and on the server."""
    keys = [span.key for span in spans(fill.tokens, signature=SIGNATURE, salt=SALT)]
    on_disk = [path.name for path in (folder / "kv").rglob("*") if path.is_file()]
    (listed,) = server.call([b"KEYS", b"*"])
    (indexed,) = server.call([b"ZRANGE", b"nf:{kv}:used", b"0", b"-1"])
    assert isinstance(listed, list)
    assert isinstance(indexed, list)
    on_server = b" ".join(one for one in [*listed, *indexed] if isinstance(one, bytes))
    return (
        sum(any(key.hex() in name for name in on_disk) for key in keys),
        sum(key.hex().encode() in on_server for key in keys),
    )


async def test_what_is_deleted_leaves_all_tiers(tmp_path: Path, server: RedisServer) -> None:
    async with rooms_at(tmp_path, server) as rooms:
        fill, kept = await stored(rooms, text="a", tokens=range(1000)), await stored(rooms, text="b", tokens=range(600))
        assert names(tmp_path, server, fill) == (4, 4)
        await rooms.state.book.delete(DEFAULT_TENANT, ContextName("a"))
        forgotten = await forget_fill(rooms, fill)
        assert (forgotten.dropped, forgotten.why_left) == (2, ""), "two blocks are the other's too"
        assert names(tmp_path, server, fill) == (2, 2)
        assert names(tmp_path, server, kept) == (3, 3)
        assert [tier.blocks for tier in rooms.store.report().tiers] == [3, 3, 3, 3]
        assert rooms.state.deletions.owed().blocks == 0


async def test_a_deletion_that_a_tier_missed_is_made_up_for_after_a_restart(
    tmp_path: Path, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's memory outlives the break, as with one that is only out of reach."""
    async with rooms_at(tmp_path, server) as rooms:
        fill = await stored(rooms, text="a", tokens=range(1000))
        server.pause()
        await rooms.state.book.delete(DEFAULT_TENANT, ContextName("a"))
        forgotten = await forget_fill(rooms, fill)
        assert "redis" in forgotten.why_left
        assert rooms.state.deletions.owed().blocks >= 4
        (sample,) = deletion_samples(rooms.state.deletions)
        assert sample.value >= 4
        with pytest.raises(TierUnavailable):
            await settle_deletions(rooms)
        assert [tier.blocks for tier in rooms.store.report().tiers][:3] == [0, 0, 0]
    server.resume()
    on_disk, on_server = names(tmp_path, server, fill)
    assert (on_disk, on_server >= 3) == (0, True), "what was under way when it fell silent may come through"
    async with rooms_at(tmp_path, server) as rooms:
        assert await settle_deletions(rooms) >= 4
        assert rooms.state.deletions.owed() == (0, None)
    assert names(tmp_path, server, fill) == (0, 0)
    assert "hunter2" not in caplog.text


async def test_a_deletion_is_made_up_for_while_running_once_the_server_is_back(
    tmp_path: Path, server: RedisServer
) -> None:
    async with rooms_at(tmp_path, server) as rooms:
        fill = await stored(rooms, text="a", tokens=range(1000))
        server.kill()
        await rooms.state.book.delete(DEFAULT_TENANT, ContextName("a"))
        assert (await forget_fill(rooms, fill)).why_left
        server.start()
        redis = rooms.store._tiers[-1]
        assert isinstance(redis, RedisTier)
        assert await asyncio.to_thread(redis.wait_until_up, 20.0)
        stop = asyncio.Event()
        task = asyncio.create_task(settling(rooms, stop))
        stop.set()
        async with asyncio.timeout(20):
            await task
        assert rooms.state.deletions.owed().blocks >= 4, "asked to stop before it began"
        assert await settle_deletions(rooms) >= 4
        assert names(tmp_path, server, fill) == (0, 0)


async def test_what_was_filled_again_meanwhile_stays(tmp_path: Path, server: RedisServer) -> None:
    async with rooms_at(tmp_path, server) as rooms:
        fill = await stored(rooms, text="a", tokens=range(1000))
        await rooms.state.deletions.owe(span.key for span in spans(fill.tokens, signature=SIGNATURE, salt=SALT))
        await settle_deletions(rooms)
        assert rooms.state.deletions.owed().blocks == 0
        assert names(tmp_path, server, fill) == (4, 4)
