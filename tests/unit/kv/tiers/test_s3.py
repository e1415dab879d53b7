from __future__ import annotations

import hashlib
import logging
import sys
import time
from typing import TYPE_CHECKING

import pytest

from fakes.arena_worker import KEYS, content
from fakes.s3_server import ACCESS_KEY, BUCKET, SECRET, S3Server
from nightfill.config import ByteSize, KvSettings, TierSettings
from nightfill.errors import BadSetting, BlockCorrupt, TierFull, TierUnavailable
from nightfill.kv import objects, open_store
from nightfill.kv.key import BlockKey
from nightfill.kv.objects import Address, parse_address
from nightfill.kv.tiers.s3 import S3Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fakes.kv import FakeClock
    from nightfill.kv.buffer import Buffers

    MakeS3 = Callable[..., S3Tier]

DAY_S = 86400


@pytest.fixture
def make(s3_server: S3Server, buffers: Buffers, clock: FakeClock) -> Iterator[MakeS3]:
    opened: list[S3Tier] = []

    def make(
        *,
        max_bytes: int = 1 << 20,
        timeout_s: float = 5.0,
        endpoint: str = "",
        bucket: str = BUCKET,
        refresh_every_s: float = 600.0,
    ) -> S3Tier:
        address = Address(bucket=bucket, prefix="pre/fix", endpoint=endpoint or s3_server.endpoint, region="eu-test-1")
        tier = S3Tier(
            address,
            max_bytes=max_bytes,
            timeout_s=timeout_s,
            buffers=buffers,
            clock=clock,
            refresh_every_s=refresh_every_s,
        )
        opened.append(tier)
        return tier

    yield make
    for tier in opened:
        tier.close()


@pytest.fixture
def rested(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again at once."""
    monkeypatch.setattr(objects, "_FIRST_REST_S", 0.0)


def test_blocks_lie_where_the_documents_say(make: MakeS3, s3_server: S3Server, buffers: Buffers) -> None:
    block = content(buffers, 8192)
    make().write(KEYS[0], block)
    digits = KEYS[0].hex()
    assert {name: found[0] for name, found in s3_server.objects.items()} == {
        f"pre/fix/blocks/{digits[:2]}/{digits}": bytes(block)
    }


def test_after_a_drop_nothing_of_the_block_is_in_the_bucket(
    make: MakeS3, s3_server: S3Server, buffers: Buffers, clock: FakeClock
) -> None:
    tier = make()
    tier.write(KEYS[0], content(buffers, 8192))
    clock.advance(2 * DAY_S)
    tier.touch(KEYS[0])
    assert len(s3_server.objects) == 2
    assert tier.drop(KEYS[0])
    assert s3_server.objects == {}
    assert not tier.drop(KEYS[0])


def test_many_lengths_are_told_in_order(make: MakeS3, buffers: Buffers) -> None:
    tier = make()
    for number, key in enumerate(KEYS[:4]):
        tier.write(key, content(buffers, 4096 * (number + 1)))
    asked = [KEYS[3], KEYS[9], KEYS[0], KEYS[2]]
    assert tier.lengths(asked) == [16384, None, 4096, 12288]


def test_very_many_lengths_take_a_listing_and_see_what_others_wrote(
    make: MakeS3, buffers: Buffers, s3_server: S3Server
) -> None:
    ours, theirs = make(), make()
    ours.write(KEYS[0], content(buffers, 4096))
    theirs.write(KEYS[1], content(buffers, 8192))
    absent = [BlockKey(hashlib.sha256(b"absent %d" % n).digest()) for n in range(1000)]
    before = s3_server.requests
    assert ours.lengths([*absent, KEYS[1], KEYS[0]]) == [None] * 1000 + [8192, 4096]
    assert s3_server.requests - before <= 4


def test_a_use_by_another_process_counts_to_the_day(make: MakeS3, buffers: Buffers, clock: FakeClock) -> None:
    writer = make(max_bytes=3 * 4096, refresh_every_s=0.0)
    for key in KEYS[:3]:
        writer.write(key, content(buffers, 4096))
        clock.advance(10)
    clock.advance(2 * DAY_S)
    reader = make()
    assert reader.read(KEYS[0]) is not None
    reader.touch(KEYS[0])
    writer.write(KEYS[3], content(buffers, 4096))
    assert [writer.length(key) is not None for key in KEYS[:4]] == [True, False, True, True]


def test_a_block_is_stamped_once_a_day(make: MakeS3, s3_server: S3Server, buffers: Buffers, clock: FakeClock) -> None:
    tier = make()
    tier.write(KEYS[0], content(buffers, 4096))
    requests = s3_server.requests
    tier.touch(KEYS[0])
    clock.advance(DAY_S + 1)
    for _ in range(5):
        tier.touch(KEYS[0])
    assert s3_server.requests == requests + 1


def test_the_index_is_built_from_the_bucket_over_several_pages(
    make: MakeS3, s3_server: S3Server, buffers: Buffers, clock: FakeClock
) -> None:
    for number in range(120):
        digits = bytes([number] * 32).hex()
        s3_server.objects[f"pre/fix/blocks/{digits[:2]}/{digits}"] = (bytes(4096), clock() + number)
    s3_server.objects["pre/fix/blocks/zz/not-ours"] = (b"", clock())
    s3_server.objects["elsewhere/blocks/00/" + "00" * 32] = (b"", clock())
    tier = make(max_bytes=120 * 4096)
    assert [record.key[0] for record in tier.records()] == list(range(120))
    tier.write(KEYS[0], content(buffers, 4096))
    assert tier.length(type(KEYS[0])(bytes(32))) is None
    assert (tier.usage().blocks, tier.usage().evicted) == (120, 1)


def test_a_use_of_a_block_that_is_gone_leaves_nothing_behind(
    make: MakeS3, s3_server: S3Server, clock: FakeClock
) -> None:
    digits = KEYS[0].hex()
    s3_server.objects[f"pre/fix/used/{digits[:2]}/{digits}"] = (b"", clock())
    assert make().records() == ()
    assert s3_server.objects == {}


@pytest.mark.parametrize("nbytes", [0, 4095, 2 << 20])
def test_an_object_of_a_length_that_cannot_be_right_is_corrupt(
    nbytes: int, make: MakeS3, s3_server: S3Server, clock: FakeClock
) -> None:
    digits = KEYS[0].hex()
    s3_server.objects[f"pre/fix/blocks/{digits[:2]}/{digits}"] = (bytes(nbytes), clock())
    tier = make()
    with pytest.raises(BlockCorrupt):
        tier.read(KEYS[0])
    assert tier.drop(KEYS[0])  # damage of one object says nothing about the store


def test_an_answer_that_breaks_off_is_an_unavailable_tier(
    make: MakeS3, s3_server: S3Server, buffers: Buffers, rested: None
) -> None:
    tier = make(timeout_s=1.0)
    block = content(buffers, 65536)
    tier.write(KEYS[0], block)
    s3_server.short_by = 5000
    with pytest.raises(TierUnavailable):
        tier.read(KEYS[0])
    s3_server.short_by = 0
    assert tier.read(KEYS[0]) == block


@pytest.mark.parametrize("status", [403, 500, 503])
def test_refusals_are_an_unavailable_tier(
    status: int, make: MakeS3, s3_server: S3Server, buffers: Buffers, rested: None
) -> None:
    tier = make()
    s3_server.status = status
    for call in (tier.read, tier.length, tier.drop, lambda key: tier.lengths([key])):
        with pytest.raises(TierUnavailable, match=str(status)):
            call(KEYS[0])
    with pytest.raises(TierUnavailable, match=str(status)):
        tier.write(KEYS[0], content(buffers, 4096))
    with pytest.raises(TierUnavailable, match=str(status)):
        tier.records()
    tier.touch(KEYS[0])
    assert tier.usage().blocks == 0
    s3_server.status = 0
    tier.write(KEYS[0], content(buffers, 4096))


def test_wrong_credentials_are_told_without_telling_them(
    make: MakeS3, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDWRONG")
    caplog.set_level(logging.DEBUG)
    tier = make()
    with pytest.raises(TierUnavailable, match="403") as failure:
        tier.read(KEYS[0])
    tier.touch(KEYS[0])
    for secret in (SECRET, "AKIDWRONG", ACCESS_KEY):
        assert secret not in str(failure.value)
        assert secret not in caplog.text


def test_a_missing_bucket_is_an_unavailable_tier(make: MakeS3, buffers: Buffers) -> None:
    with pytest.raises(TierUnavailable):
        make(bucket="nobodys").write(KEYS[0], content(buffers, 4096))


def test_a_store_that_is_silent_is_given_up_and_then_costs_nothing(
    make: MakeS3, s3_server: S3Server, buffers: Buffers
) -> None:
    tier = make(timeout_s=0.2)
    s3_server.go.clear()
    began_s = time.monotonic()
    with pytest.raises(TierUnavailable, match="no answer in time"):
        tier.read(KEYS[0])
    assert time.monotonic() - began_s < 5
    requests = s3_server.requests
    with pytest.raises(TierUnavailable, match="a moment ago"):
        tier.lengths(KEYS)
    assert s3_server.requests == requests


def test_a_store_that_is_gone_is_found_again(
    make: MakeS3, s3_server: S3Server, buffers: Buffers, clock: FakeClock, rested: None
) -> None:
    first = S3Server(clock)
    tier = make(endpoint=first.endpoint, timeout_s=1.0)
    block = content(buffers, 8192)
    tier.write(KEYS[0], block)
    first.close()
    with pytest.raises(TierUnavailable):
        tier.read(KEYS[0])
    again = S3Server(clock, port=first.port)
    try:
        again.objects.update(first.objects)
        assert tier.read(KEYS[0]) == block
    finally:
        again.close()


def test_rests_double_with_each_failure_up_to_a_bound_and_end_with_success(
    make: MakeS3, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    tier = make()
    s3_server.status = 403
    rests = []
    for _ in range(7):
        with pytest.raises(TierUnavailable, match="answered"):
            tier.length(KEYS[0])
        rests.append(tier._objects._rests_until_s - now_s[0])
        now_s[0] = tier._objects._rests_until_s
    assert rests == [1, 2, 4, 8, 16, 30, 30]
    s3_server.status = 0
    assert tier.length(KEYS[0]) is None
    assert tier._objects._failures == 0


def test_a_failed_write_holds_no_room(make: MakeS3, s3_server: S3Server, buffers: Buffers, rested: None) -> None:
    tier = make(max_bytes=8192)
    tier.records()
    s3_server.status = 403
    for _ in range(5):
        with pytest.raises(TierUnavailable):
            tier.write(KEYS[0], content(buffers, 8192))
    s3_server.status = 0
    tier.write(KEYS[0], content(buffers, 8192))
    tier.pin(frozenset(KEYS[:1]))
    with pytest.raises(TierFull):
        tier.write(KEYS[1], content(buffers, 4096))


def test_a_closed_tier_is_unavailable(make: MakeS3) -> None:
    tier = make()
    tier.close()
    for call in (tier.read, tier.drop, lambda key: tier.lengths([key])):
        with pytest.raises(TierUnavailable, match="closed"):
            call(KEYS[0])


def test_addresses_are_read_from_settings() -> None:
    found = parse_address("s3://bucket/a/b/", endpoint="http://127.0.0.1:9000", region="eu", param="x.url")
    assert found == Address(bucket="bucket", prefix="a/b", endpoint="http://127.0.0.1:9000", region="eu")
    assert str(found) == "s3://bucket/a/b at http://127.0.0.1:9000"
    assert parse_address("s3://bucket", endpoint="", region="", param="x.url").prefix == ""


@pytest.mark.parametrize(
    ("url", "endpoint", "param"),
    [
        ("", "", "x.url"),
        ("http://bucket/a", "", "x.url"),
        ("s3:///a", "", "x.url"),
        ("s3://key:secret@bucket/a", "", "x.url"),
        ("s3://bucket/a", "127.0.0.1:9000", "x.endpoint"),
        ("s3://bucket/a", "http://key:secret@host", "x.endpoint"),
    ],
)
def test_bad_addresses_are_refused_by_name_and_without_their_secrets(url: str, endpoint: str, param: str) -> None:
    with pytest.raises(BadSetting) as failure:
        parse_address(url, endpoint=endpoint, region="", param=param if param == "x.url" else "x.url")
    assert failure.value.param == param
    assert "secret" not in str(failure.value)


def test_the_store_opens_a_bucket_from_settings(tmp_path: Path, s3_server: S3Server) -> None:
    wanted = TierSettings(kind="s3", url=f"s3://{BUCKET}/kv", endpoint=s3_server.endpoint, max_bytes=ByteSize(1 << 20))
    store = open_store(KvSettings(tiers=(wanted,)), data_dir=tmp_path)
    try:
        assert [(tier.name, tier.kind, tier.durable) for tier in store.report().tiers] == [("s3", "s3", True)]
        assert not store.has(KEYS[0])
        assert s3_server.requests == 1
    finally:
        store.close()


def test_without_obstore_the_setting_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nightfill.kv.tiers.s3", None)
    wanted = TierSettings(kind="s3", url=f"s3://{BUCKET}/kv", max_bytes=ByteSize(1 << 20))
    with pytest.raises(BadSetting, match=r"nightfill\[s3\]"):
        open_store(KvSettings(tiers=(wanted,)), data_dir=tmp_path)
