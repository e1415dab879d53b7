"""What `nightfill vllm-args` prints, read by its addressees: vLLM's parser of arguments, LMCache's of settings.

Both live in virtual environments of their own (`make vllm`, `make lmcache`), so each is asked in a process.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from documents import ROOT
from nightfill.config import ByteSize, EngineSettings, KvSettings, Settings, SpeculationSettings, TierSettings
from nightfill.engines.vllm.args import Launch, Wanted, launch
from nightfill.engines.vllm.launched import launched

VLLM: Final = Path(os.environ.get("NIGHTFILL_VLLM_PYTHON") or ROOT / ".venv-vllm" / "bin" / "python")
LMCACHE: Final = ROOT / ".venv-lmcache" / "bin" / "python"
GIB: Final = 1 << 30

# Reads command lines; writes what vLLM made of each. The whole configuration is built, down to the classes that the
# connector, its spec and its tiers are; only the model's weights are not looked at.
READ_BY_VLLM: Final = """
import inspect, json, sys
from pathlib import Path
from nightfill.engines.vllm.plugin.checks import read_settings
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory
from vllm.v1.kv_offload.tiering.obj.config import ObjStoreConfig
from vllm.config import KVTransferConfig

def tier(config):
    cls = SecondaryTierFactory.get_tier_class(config)
    given = {key: value for key, value in config.items() if key not in ("type", "module_path")}
    inspect.signature(cls).bind(offloading_spec=None, primary_kv_view=None, tier_type="", **given)
    if "store_config" in given:
        ObjStoreConfig(**given["store_config"])
    return cls.__name__

def connector(config):
    extra = config.kv_connector_extra_config
    children = [connector(KVTransferConfig(**child)) for child in extra.get("connectors", [])]
    found = {"connector": config.kv_connector, "policy": config.kv_load_failure_policy, "children": children}
    if not config.kv_connector.startswith(("LMCache", "Nixl")):  # they import packages that are not here
        found["connector"] = KVConnectorFactory.get_connector_class(config).__name__
    if "Offloading" in found["connector"] or found["connector"] == "NightfillConnector":
        found["spec"] = OffloadingSpecFactory.get_spec_cls(extra).__name__
        found["bytes"] = extra["cpu_bytes_to_use"]
    if found["connector"] == "NightfillConnector":
        ours = read_settings(extra, lambda path: Path(path).read_bytes())
        found["store"] = [ours.data_dir, ours.kv.block_tokens, [(one.kind, one.max_bytes) for one in ours.kv.tiers]]
    found["tiers"] = [tier(one) for one in extra.get("secondary_tiers", [])]
    return found

read = []
for argv in json.load(sys.stdin):
    args = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(argv[2:])
    validate_parsed_serve_args(args)
    args.model = args.model_tag
    sleep = [args.enable_sleep_mode, args.sleep_preserve_parameter_names]
    args.enable_sleep_mode = False  # where there is no GPU it is refused
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    read.append({
        "address": [args.host, args.port],
        "details": args.enable_prompt_tokens_details,
        "served": args.served_model_name,
        "prefix_caching": config.cache_config.enable_prefix_caching,
        "hash": config.cache_config.prefix_caching_hash_algo,
        "dtype": config.cache_config.cache_dtype,
        "kv_bytes": config.cache_config.kv_cache_memory_bytes,
        "block_size": config.cache_config.block_size,
        "scheduling": config.scheduler_config.policy,
        "chunked": config.scheduler_config.enable_chunked_prefill,
        "step": config.scheduler_config.max_num_batched_tokens,
        "ranks": config.parallel_config.tensor_parallel_size,
        "scheduler": [config.scheduler_config.get_scheduler_cls().__name__, config.additional_config],
        "length": config.model_config.max_model_len,
        "sleep": sleep,
        "logs": [args.enable_log_requests, args.enable_log_outputs, args.log_error_stack, args.uvicorn_log_level],
        "middleware": args.middleware,
        **connector(config.kv_transfer_config),
    })
json.dump(read, open(sys.argv[1], "w"))
"""

READ_BY_LMCACHE: Final = """
import json, sys
from lmcache.v1.config import load_engine_config_with_overrides
config = load_engine_config_with_overrides()
config.validate()
json.dump([config.to_dict(), sorted(config._user_set_keys)], open(sys.argv[1], "w"))
"""

MODEL: Final = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "hidden_act": "silu",
}  # fmt: skip

RAM: Final = TierSettings(kind="ram", max_bytes=ByteSize(4 * GIB))
DISK: Final = TierSettings(kind="disk", max_bytes=ByteSize(100 * GIB), path="/nvme")
REDIS: Final = TierSettings(kind="redis", max_bytes=ByteSize(GIB), url="redis://:pw@10.0.0.7:6379/1")
S3: Final = TierSettings(
    kind="s3", max_bytes=ByteSize(GIB), url="s3://kv/prefix", endpoint="https://s3.example.org", region="eu"
)


def start(backend: Any, *tiers: TierSettings, block_tokens: int = 256, **wanted: Any) -> Launch:
    settings = Settings(kv_backend=backend, kv=KvSettings(tiers=tiers or (RAM, DISK), block_tokens=block_tokens))
    engine = EngineSettings(kind="vllm", url="http://127.0.0.1:8011", model="name", context_length=2048)
    return launch(settings, engine, Wanted(data_dir=Path("/data"), **wanted))


def start_of_ours(model: str) -> Launch:
    """On a GPU, where it may sleep, with a draft model."""
    engine = EngineSettings(
        kind="vllm",
        model=model,
        served_model_name="name",
        context_length=2048,
        device="gpu0",
        speculation=SpeculationSettings(method="draft", model=model),
    )
    return launched(
        Settings(), engine, data_dir=Path("/data"), port=8011, api_key="k1", settings_file=f"{model}/ours.json"
    )


def ask(python: Path, script: str, folder: Path, *, stdin: str = "", env: dict[str, str] | None = None) -> Any:
    assert python.exists(), f"{python} is missing; `make vllm lmcache` makes it"
    answer = folder / "answer.json"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": str(ROOT / "src"),
        **(env or {}),
    }
    ran = subprocess.run(
        [python, "-c", script, answer],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(answer.read_text())


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name of a command line -> what vLLM read. All are asked at once, for vLLM takes seconds to import."""
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "config.json").write_text(json.dumps(MODEL))
    model = str(folder)
    starts = {
        "gpu": start("nightfill", model=model, tensor_parallel_size=2),
        "cpu": start(
            "nightfill", model=model, block_tokens=64, cpu=True, idle_slice_tokens=512, kv_cache_dtype="fp8_e5m2"
        ),
        "file": start(
            "nightfill", REDIS, model=model, kv_cache_dtype="fp8_e4m3", settings_file=str(folder / "store.json")
        ),
        "nixl": start("nightfill", model=model, pd="nixl", idle_slice_tokens=256),
        "native": start("native", DISK, S3, model=model),
        "native memory": start("native", RAM, model=model),
        "lmcache": start("lmcache", model=model, settings_file="/run/lmcache.yaml"),
    }
    starts["launched"] = start_of_ours(model)
    (folder / "store.json").write_text(starts["file"].file)
    (folder / "ours.json").write_text(starts["launched"].file)
    answers = ask(VLLM, READ_BY_VLLM, folder, stdin=json.dumps([one.argv for one in starts.values()]))
    return dict(zip(starts, answers, strict=True))


def test_vllm_takes_every_command_line_as_it_is_meant(read: dict[str, Any]) -> None:
    for name, found in read.items():
        assert found["address"] == ["127.0.0.1", 8011], name
        assert found["served"] == ["name"], name
        assert found["details"], name
        assert found["prefix_caching"], name
        assert found["chunked"], name
        assert (found["hash"], found["scheduling"]) == ("sha256_cbor", "priority"), name
        assert (found["step"], found["length"]) == (2048, 2048), name
        assert found["policy"] == "recompute", name


def test_vllm_finds_our_connector_spec_and_tier(read: dict[str, Any]) -> None:
    gpu, cpu = read["gpu"], read["cpu"]
    assert (gpu["connector"], gpu["spec"], gpu["tiers"]) == (
        "NightfillConnector",
        "TieringOffloadingSpec",
        ["NightfillTier"],
    )
    assert (gpu["ranks"], gpu["dtype"], gpu["bytes"]) == (2, "auto", 8 * GIB)
    assert (cpu["connector"], cpu["spec"], cpu["tiers"]) == ("NightfillConnector", "CpuTieringSpec", ["NightfillTier"])
    assert (cpu["dtype"], cpu["kv_bytes"], cpu["block_size"]) == ("fp8_e5m2", GIB, 64)
    assert read["file"]["dtype"] == "fp8_e4m3"


def test_the_plug_in_reads_the_settings_that_were_meant(read: dict[str, Any]) -> None:
    tiers = [["ram", 4 * GIB], ["disk", 100 * GIB]]
    assert read["gpu"]["store"] == ["/data", 256, tiers]
    assert read["cpu"]["store"] == ["/data", 64, tiers]
    assert read["file"]["store"] == ["/data", 256, [["redis", GIB]]]


def test_vllm_finds_our_scheduler(read: dict[str, Any]) -> None:
    assert read["cpu"]["scheduler"] == ["IdleScheduler", {"nightfill": {"slice_tokens": 512}}]
    assert read["nixl"]["scheduler"][0] == "AsyncIdleScheduler"
    assert read["gpu"]["scheduler"][0] in {"Scheduler", "AsyncScheduler"}


def test_vllm_takes_what_a_server_of_ours_is_started_with(read: dict[str, Any]) -> None:
    ours = read["launched"]
    assert ours["sleep"] == [True, ["draft.*"]]
    assert ours["logs"] == [False, False, False, "warning"]
    assert ours["middleware"] == ["nightfill.engines.vllm.door.Door"]
    assert read["gpu"]["sleep"][0] is False


def test_vllm_takes_nixl_beside_our_connector(read: dict[str, Any]) -> None:
    assert read["nixl"]["connector"] == "MultiConnector"
    assert [child["connector"] for child in read["nixl"]["children"]] == ["NixlConnector", "NightfillConnector"]


def test_vllm_takes_its_own_tiers_and_its_own_flags(read: dict[str, Any]) -> None:
    tiers = read["native"]
    assert (tiers["connector"], tiers["spec"], tiers["bytes"]) == (
        "OffloadingConnector",
        "TieringOffloadingSpec",
        8 * GIB,
    )
    assert tiers["tiers"] == ["FileSystemTierManager", "ObjectStoreSecondaryTierManager"]
    memory = read["native memory"]
    assert (memory["connector"], memory["spec"], memory["bytes"]) == (
        "OffloadingConnector",
        "CPUOffloadingSpec",
        4 * GIB,
    )


def test_vllm_takes_the_connector_of_lmcache(read: dict[str, Any]) -> None:
    assert read["lmcache"]["connector"] == "LMCacheConnectorV1"


def test_lmcache_reads_its_file_as_it_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "lmcache.yaml"
    found = start("lmcache", RAM, DISK, REDIS, settings_file=str(file), tensor_parallel_size=2)
    file.write_text(found.file)
    config, given = ask(LMCACHE, READ_BY_LMCACHE, tmp_path, env=found.env)
    wanted = {
        "chunk_size": 256,
        "local_cpu": True,
        "max_local_cpu_size": 2.0,
        "local_disk": "/nvme/lmcache",
        "max_local_disk_size": 50.0,
        "remote_url": "redis://:pw@10.0.0.7:6379/1",
        "pre_caching_hash_algorithm": "sha256_cbor",
        "extra_config": {"use_odirect": True},
    }
    assert {key: config[key] for key in wanted} == wanted
    # A key that LMCache does not know is passed over with a line in its log, and is not among those that were given.
    assert given == sorted(wanted)
