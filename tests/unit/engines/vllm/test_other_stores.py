from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nightfill.config import ByteSize, Duration, EngineSettings, GatewaySettings, KvSettings, Settings, TierSettings
from nightfill.engines.vllm.args import Wanted, launch
from nightfill.engines.vllm.other_stores import OtherStore, has_password, lmcache, native
from nightfill.errors import BadSetting

GIB = 1 << 30
RAM = TierSettings(kind="ram", max_bytes=ByteSize(4 * GIB))
DISK = TierSettings(kind="disk", max_bytes=ByteSize(100 * GIB), path="/nvme")
REDIS = TierSettings(kind="redis", max_bytes=ByteSize(GIB), url="redis://10.0.0.7:6379/1")
S3 = TierSettings(
    kind="s3", max_bytes=ByteSize(GIB), url="s3://kv/some/prefix", endpoint="https://s3.example.org", region="eu"
)


def settings(*tiers: TierSettings, gateway: GatewaySettings | None = None, **kv: Any) -> Settings:
    return Settings(kv=KvSettings(tiers=tiers, **kv), gateway=gateway or GatewaySettings())


def lmcache_of(given: Settings, *, ranks: int = 1, file: str = "/run/lmcache.yaml") -> OtherStore:
    return lmcache(given, data_dir=Path("/data"), host_bytes=8 * GIB, ranks=ranks, file=file)


def native_of(given: Settings) -> OtherStore:
    return native(given, data_dir=Path("/data"), host_bytes=8 * GIB)


def test_lmcache_gets_memory_disk_and_redis() -> None:
    store = lmcache_of(settings(RAM, DISK, REDIS, block_tokens=128))
    assert store.transfer["kv_connector"] == "LMCacheConnectorV1"
    assert store.transfer["kv_load_failure_policy"] == "recompute"
    assert store.env == {"LMCACHE_CONFIG_FILE": "/run/lmcache.yaml"}
    assert store.file.splitlines() == [
        "chunk_size: 128",
        "local_cpu: true",
        "max_local_cpu_size: 4.0",
        'pre_caching_hash_algorithm: "sha256_cbor"',
        'local_disk: "/nvme/lmcache"',
        "max_local_disk_size: 100.0",
        'extra_config: {"use_odirect":true}',
        'remote_url: "redis://10.0.0.7:6379/1"',
    ]
    assert store.warnings == ("kv.tiers.2.max_bytes: LMCache does not carry it out",)


def test_each_rank_of_lmcache_gets_its_share() -> None:
    lines = lmcache_of(settings(RAM, DISK), ranks=4).file.splitlines()
    assert {"max_local_cpu_size: 1.0", "max_local_disk_size: 25.0"} <= set(lines)


def test_lmcache_without_a_ram_tier_still_has_memory_to_pass_through() -> None:
    lines = lmcache_of(settings(DISK)).file.splitlines()
    assert {"local_cpu: false", "max_local_cpu_size: 8.0"} <= set(lines)


def test_lmcache_says_that_tenants_share_blocks() -> None:
    several = GatewaySettings(api_keys={"a": "1", "b": "2"})
    (warning,) = lmcache_of(settings(RAM, gateway=several)).warnings
    assert warning.startswith("gateway.api_keys")
    assert lmcache_of(settings(RAM, gateway=GatewaySettings(api_keys={"a": "1"}))).warnings == ()


def test_lmcache_says_where_a_password_ends_up() -> None:
    tier = TierSettings(kind="redis", max_bytes=ByteSize(GIB), url="redis://:pw@h")
    assert any("to its log" in warning for warning in lmcache_of(settings(RAM, tier)).warnings)


def test_lmcache_needs_a_file() -> None:
    with pytest.raises(BadSetting, match="--settings-file"):
        lmcache_of(settings(RAM), file="")


def test_native_memory_alone_is_a_matter_of_flags() -> None:
    store = native_of(settings(RAM))
    assert store.flags == ("--kv-offloading-backend", "native", "--kv-offloading-size", "4")
    assert store.transfer == {"kv_load_failure_policy": "recompute"}


def test_native_puts_disk_and_s3_below_memory() -> None:
    store = native_of(settings(DISK, S3, block_tokens=512))
    assert store.flags == ()
    extra = store.transfer["kv_connector_extra_config"]
    assert (extra["spec_name"], extra["cpu_bytes_to_use"], extra["block_size"]) == (
        "TieringOffloadingSpec",
        8 * GIB,
        512,
    )
    assert extra["secondary_tiers"] == [
        {"type": "fs", "root_dir": "/nvme/native"},
        {
            "type": "obj",
            "store_config": {
                "bucket": "kv",
                "endpoint_override": "https://s3.example.org",
                "scheme": "https",
                "region": "eu",
            },
            "prefix": "some/prefix",
            "io_threads": 4,
        },
    ]
    assert "kv.tiers.0.max_bytes: vLLM's own offloading does not carry it out" in store.warnings


def test_a_disk_tier_without_a_path_lies_in_the_data_folder() -> None:
    disk = TierSettings(kind="disk", max_bytes=ByteSize(GIB))
    assert 'local_disk: "/data/kv/lmcache"' in lmcache_of(settings(disk)).file
    extra = native_of(settings(disk)).transfer["kv_connector_extra_config"]
    assert extra["secondary_tiers"] == [{"type": "fs", "root_dir": "/data/kv/native"}]


@pytest.mark.parametrize("store", [lmcache_of, native_of])
def test_each_setting_that_is_not_carried_out_is_named(store: Any) -> None:
    tier = TierSettings(
        kind="disk",
        max_bytes=ByteSize(GIB),
        tenant_max_bytes=ByteSize(GIB),
        ttl_s=Duration(5),
        write="back",
        write_bytes_per_day=ByteSize(GIB),
    )
    named = {warning.split(":")[0] for warning in store(settings(RAM, tier, ttl_s=Duration(9))).warnings}
    wanted = {"tenant_max_bytes", "ttl_s", "write", "write_bytes_per_day"}
    assert {"kv.ttl_s", *(f"kv.tiers.1.{name}" for name in wanted)} <= named
    assert not {"kv.tiers.1.path", "kv.tiers.1.kind"} & named


@pytest.mark.parametrize("store", [lmcache_of, native_of])
def test_encryption_that_would_not_happen_is_refused(store: Any) -> None:
    with pytest.raises(BadSetting, match=r"kv\.key_file.*unencrypted"):
        store(settings(RAM, key_file="/k"))


@pytest.mark.parametrize(
    ("store", "tiers", "message"),
    [
        (lmcache_of, (RAM, S3), r"kv\.tiers\.1 \(s3\): kv_backend lmcache takes"),
        (lmcache_of, (RAM, DISK, TierSettings(kind="disk", max_bytes=ByteSize(GIB))), r"kv\.tiers\.2 \(disk\)"),
        (native_of, (RAM, REDIS), r"kv\.tiers\.1 \(redis\): kv_backend native takes"),
        (native_of, (RAM, TierSettings(kind="ram", max_bytes=ByteSize(GIB))), r"kv\.tiers\.1 \(ram\)"),
        (native_of, (TierSettings(kind="s3", max_bytes=ByteSize(GIB), url="s3://b"),), r"kv\.tiers\.0 .*endpoint"),
    ],
)
def test_tiers_that_a_store_does_not_have_are_refused(store: Any, tiers: Any, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        store(settings(*tiers))


@pytest.mark.parametrize(
    ("backend", "wanted", "message"),
    [
        ("native", {"cpu": True}, "--cpu: .*GPUs only"),
        ("native", {"pd": "nixl"}, "--pd nixl: is for kv_backend nightfill"),
        ("lmcache", {"pd": "nixl"}, "--pd nixl: is for kv_backend nightfill"),
    ],
)
def test_what_only_our_store_does_is_refused_for_the_others(backend: Any, wanted: Any, message: str) -> None:
    engine = EngineSettings(kind="vllm", url="http://127.0.0.1:8001", model="m")
    with pytest.raises(BadSetting, match=message):
        launch(Settings(kv_backend=backend), engine, Wanted(data_dir=Path("/data"), **wanted))


@pytest.mark.parametrize(
    ("url", "has"),
    [
        ("", False),
        ("redis://h:1/0", False),
        ("redis://me@h:1", False),
        ("redis://:pw@h", True),
        ("rediss://me:pw@h", True),
        ("unix:///run/redis.sock?password=pw", True),
        ("s3://bucket/prefix", False),
    ],
)
def test_passwords_are_seen_wherever_a_url_may_have_them(url: str, has: bool) -> None:
    assert has_password(url) is has
