from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from nightfill.config import (
    AdapterSettings,
    ByteSize,
    Duration,
    EngineSettings,
    ExperimentSettings,
    KvSettings,
    Role,
    Settings,
    SleepSettings,
    SpeculationSettings,
    TierSettings,
)
from nightfill.engines.vllm.args import API_KEY, LOADS_ADAPTERS, Launch, Wanted, launch, plain
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Sequence

ENGINE = EngineSettings(kind="vllm", url="http://127.0.0.1:8001", model="org/model")
SECRET_TIER = TierSettings(kind="redis", max_bytes=ByteSize(1 << 30), url="redis://me:s3cret@10.0.0.7:6379/0")


def start(
    engine: EngineSettings = ENGINE, settings: Settings | None = None, *, model: str = "", **wanted: Any
) -> Launch:
    return launch(settings or Settings(), engine, Wanted(data_dir=Path("/data"), model=model, **wanted))


def value(argv: Sequence[str], flag: str) -> str:
    assert argv.count(flag) == 1, (flag, argv)
    return argv[argv.index(flag) + 1]


def transfer(found: Launch) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(value(found.argv, "--kv-transfer-config"))
    return decoded


def test_the_command_line_has_all_that_the_gateway_and_the_store_rely_on() -> None:
    argv = start(tensor_parallel_size=2, kv_cache_dtype="fp8_e4m3").argv
    assert argv[:3] == ("vllm", "serve", "org/model")
    assert {"--enable-prefix-caching", "--enable-chunked-prefill", "--enable-prompt-tokens-details"} <= set(argv)
    for flag, wanted in {
        "--host": "127.0.0.1",
        "--port": "8001",
        "--prefix-caching-hash-algo": "sha256_cbor",
        "--scheduling-policy": "priority",
        "--tensor-parallel-size": "2",
        "--kv-cache-dtype": "fp8_e4m3",
    }.items():
        assert value(argv, flag) == wanted


def test_the_connector_gets_the_store_settings_without_defaults() -> None:
    kv = KvSettings(block_tokens=64, ttl_s=Duration(60), tiers=(TierSettings(kind="ram", max_bytes=ByteSize(1 << 21)),))
    found = transfer(start(settings=Settings(kv=kv), host_bytes=1 << 30))
    assert (found["kv_connector"], found["kv_role"]) == ("NightfillConnector", "kv_both")
    assert found["kv_load_failure_policy"] == "recompute"
    extra = found["kv_connector_extra_config"]
    assert extra["spec_name"] == "TieringOffloadingSpec"
    assert (extra["cpu_bytes_to_use"], extra["block_size"]) == (1 << 30, 64)
    assert [tier["type"] for tier in extra["secondary_tiers"]] == ["NightfillTier"]
    assert extra["nightfill"] == {
        "kv": {"block_tokens": 64, "ttl_s": 60, "tiers": [{"kind": "ram", "max_bytes": 1 << 21}]},
        "data_dir": "/data",
    }


def test_settings_come_back_from_their_plain_form() -> None:
    kv = KvSettings(
        ttl_s=Duration(0.5),
        key_file="/k",
        old_key_files=("/a", "/b"),
        restore="always",
        tiers=(SECRET_TIER, TierSettings(kind="disk", max_bytes=ByteSize(1 << 40), direct=False)),
    )

    def number(kind: type, given: Any) -> Any:
        assert isinstance(given, int | float)
        return kind(given)

    assert msgspec.json.decode(msgspec.json.encode(plain(kv)), type=KvSettings, dec_hook=number) == kv
    assert plain(KvSettings()) == {}


def test_on_a_processor_the_spec_is_ours_and_memory_is_bounded() -> None:
    found = start(cpu=True)
    extra = transfer(found)["kv_connector_extra_config"]
    assert (extra["spec_name"], extra["spec_module_path"]) == ("CpuTieringSpec", "nightfill.engines.vllm.plugin.cpu")
    assert value(found.argv, "--kv-cache-memory-bytes") == str(1 << 30)
    assert "--block-size" not in found.argv
    assert found.env == {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    small = start(settings=Settings(kv=KvSettings(block_tokens=32)), cpu=True, kv_cache_bytes=1 << 27)
    assert value(small.argv, "--block-size") == "32"
    assert value(small.argv, "--kv-cache-memory-bytes") == str(1 << 27)


def test_an_api_key_goes_by_the_environment_alone() -> None:
    found = start(msgspec.structs.replace(ENGINE, api_key="very secret"))
    assert found.env[API_KEY] == "very secret"
    assert "very secret" not in " ".join(found.argv)


def test_a_password_in_a_url_needs_a_file() -> None:
    settings = Settings(kv=KvSettings(tiers=(SECRET_TIER,)))
    with pytest.raises(BadSetting, match=r"kv\.tiers\.0\.url.*--settings-file") as caught:
        start(settings=settings)
    assert "s3cret" not in str(caught.value)
    found = start(settings=settings, settings_file="/run/nightfill.json")
    assert "s3cret" not in " ".join(found.argv) + str(found.env)
    assert transfer(found)["kv_connector_extra_config"]["nightfill"] == {"settings_file": "/run/nightfill.json"}
    assert msgspec.json.decode(found.file) == {"kv": plain(settings.kv), "data_dir": "/data"}


def test_no_file_is_written_that_nobody_asked_for() -> None:
    assert start().file == ""


@pytest.mark.parametrize(
    ("roles", "slice_tokens", "step"),
    [
        ((), 4096, "2048"),
        ((), 1024, "1024"),
        ((), 64, "256"),
        (("serve", "fill"), 4096, "2048"),
        (("fill",), 4096, None),
        (("serve",), 4096, None),
        (("prefill",), 4096, None),
    ],
)
def test_steps_are_short_where_live_requests_meet_fills(
    roles: tuple[Role, ...], slice_tokens: int, step: str | None
) -> None:
    settings = Settings(sleep=SleepSettings(max_slice_tokens=slice_tokens))
    argv = start(msgspec.structs.replace(ENGINE, roles=roles), settings).argv
    if step is None:
        assert "--max-num-batched-tokens" not in argv
    else:
        assert value(argv, "--max-num-batched-tokens") == step


@pytest.mark.parametrize(("cpu", "name"), [(True, "IdleScheduler"), (False, "AsyncIdleScheduler")])
def test_our_scheduler_is_there_for_those_who_ask(cpu: bool, name: str) -> None:
    argv = start(cpu=cpu, idle_slice_tokens=512).argv
    assert value(argv, "--scheduler-cls") == f"nightfill.engines.vllm.plugin.scheduler.{name}"
    assert msgspec.json.decode(value(argv, "--additional-config")) == {"nightfill": {"slice_tokens": 512}}
    assert "--scheduler-cls" not in start(cpu=cpu).argv


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_both_sides_of_a_split_read_and_write(role: Role) -> None:
    assert transfer(start(msgspec.structs.replace(ENGINE, roles=(role,))))["kv_role"] == "kv_both"


def test_nixl_stands_before_our_connector() -> None:
    found = start(pd="nixl")
    config = transfer(found)
    assert config["kv_connector"] == "MultiConnector"
    children = config["kv_connector_extra_config"]["connectors"]
    assert [child["kv_connector"] for child in children] == ["NixlConnector", "NightfillConnector"]
    assert {child["kv_load_failure_policy"] for child in children} == {"recompute"}
    assert found.env["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "127.0.0.1"


def test_a_model_path_is_served_under_the_name_that_the_engine_asks_for() -> None:
    argv = start(model="/models/m").argv
    assert argv[2] == "/models/m"
    assert value(argv, "--served-model-name") == "org/model"
    assert "--served-model-name" not in start(model="org/model").argv


def test_a_server_without_a_model_is_refused() -> None:
    with pytest.raises(BadSetting, match="--model"):
        start(EngineSettings(kind="vllm", url="http://127.0.0.1:8001"))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://10.0.0.5:8000", "listens on 10.0.0.5 without an api_key"),
        ("https://llm.example.org", "its https:// url is of a proxy"),
    ],
)
def test_what_is_open_or_unknown_is_said(url: str, said: str) -> None:
    assert [said in warning for warning in start(msgspec.structs.replace(ENGINE, url=url)).warnings] == [True]


def test_a_url_behind_a_proxy_gives_no_address_to_listen_on() -> None:
    assert "--host" not in start(msgspec.structs.replace(ENGINE, url="https://llm.example.org")).argv


@pytest.mark.parametrize("host", ["localhost", "127.0.0.9", "[::1]"])
def test_loopback_needs_no_key(host: str) -> None:
    assert start(msgspec.structs.replace(ENGINE, url=f"http://{host}:1")).warnings == ()


@pytest.mark.parametrize("url", ["http://", "http://h:99999", "http://h:port"])
def test_a_url_without_an_address_is_refused(url: str) -> None:
    with pytest.raises(BadSetting, match="engine local: url"):
        start(msgspec.structs.replace(ENGINE, url=url))


def test_a_server_that_nightfill_starts_itself_has_no_command_line_for_others() -> None:
    with pytest.raises(BadSetting, match="nightfill serve starts this server itself"):
        start(msgspec.structs.replace(ENGINE, url=""))


def test_the_longest_context_is_passed_on() -> None:
    assert value(start(msgspec.structs.replace(ENGINE, context_length=8192)).argv, "--max-model-len") == "8192"


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (SpeculationSettings(method="ngram", tokens=5), {"method": "ngram", "num_speculative_tokens": 5}),
        (
            SpeculationSettings(method="draft", model="/models/small"),
            {"method": "draft_model", "num_speculative_tokens": 3, "model": "/models/small"},
        ),
        (
            SpeculationSettings(method="eagle3", model="org/head", tokens=4),
            {"method": "eagle3", "num_speculative_tokens": 4, "model": "org/head"},
        ),
        (SpeculationSettings(method="mtp"), {"method": "mtp", "num_speculative_tokens": 3}),
    ],
)
def test_speculation_is_asked_for_and_reported_by_request(wanted: SpeculationSettings, told: dict[str, Any]) -> None:
    argv = start(msgspec.structs.replace(ENGINE, speculation=wanted)).argv
    assert msgspec.json.decode(value(argv, "--speculative-config")) == told
    assert value(argv, "--per-request-spec-decode-metrics") == "summary"
    assert "--speculative-config" not in start().argv


def test_an_engine_of_an_experiment_reports_the_seconds_of_each_request() -> None:
    settings = Settings(experiments=(ExperimentSettings(name="x", a="other", b="local"),))
    assert "--enable-per-request-metrics" in start(settings=settings).argv
    assert "--enable-per-request-metrics" not in start().argv


def test_a_server_with_adapters_has_room_for_as_many_as_are_loaded() -> None:
    assert LOADS_ADAPTERS not in start().env
    assert "--enable-lora" not in start().argv
    adapters = tuple(AdapterSettings(name=name, path=f"/{name}") for name in "abc")
    few = start(msgspec.structs.replace(ENGINE, adapters=adapters, max_adapters=2), lora_rank=32)
    assert "--enable-lora" in few.argv
    flags = ("--max-lora-rank", "--max-loras", "--max-cpu-loras")
    assert [value(few.argv, flag) for flag in flags] == ["32", "2", "2"]
    assert few.env[LOADS_ADAPTERS] == "1"
    assert value(start(msgspec.structs.replace(ENGINE, adapters=adapters)).argv, "--max-loras") == "3"
