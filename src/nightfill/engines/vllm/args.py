"""The command line of a vLLM server that works with nightfill: settings in, arguments and environment out. Pure.

Each flag is checked against the argument parser of vLLM 0.32 in tests/e2e/test_other_stores.py.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from nightfill.engines.vllm.other_stores import OtherStore, has_password, lmcache, native
from nightfill.engines.vllm.wire import NAME
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from pathlib import Path

    from nightfill.config import EngineSettings, Settings, SpeculationSettings

CONNECTOR: Final = "NightfillConnector"
TIER: Final = "NightfillTier"
PLUGIN: Final = "nightfill.engines.vllm.plugin"
CPU_SPEC: Final = "CpuTieringSpec"
CPU_PLUGIN: Final = f"{PLUGIN}.cpu"
SCHEDULER: Final = f"{PLUGIN}.scheduler.AsyncIdleScheduler"
CPU_SCHEDULER: Final = f"{PLUGIN}.scheduler.IdleScheduler"
"""Where the plug-in is, and what its classes are called."""
API_KEY: Final = "VLLM_API_KEY"
LOADS_ADAPTERS: Final = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"

KvDtype = Literal["auto", "fp8_e4m3", "fp8_e5m2"]

_STEP_TOKENS: Final = (256, 2048)
"""Least and most tokens of one step where live requests meet fills; vLLM runs no more requests at once than that."""
_GUESSED: Final = 3
"""Tokens at once, where the settings do not say: vLLM has no default for most methods."""
_CPU_BLOCK_TOKENS: Final = 128
_CPU_KV_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the settings do not say about a server."""

    data_dir: Path
    """Absolute; where the store's folders are, on the server's machine."""
    model: str = ""
    """Path or name of the model; empty for `engine.model`."""
    tensor_parallel_size: int = 1
    kv_cache_dtype: KvDtype = "auto"
    host_bytes: int = 8 << 30
    """Host memory between device and store, over all ranks."""
    kv_cache_bytes: int = 0
    """Memory of the engine's own KV cache, per rank; 0 for what vLLM takes."""
    cpu: bool = False
    """Run on the processor, for tests and trials."""
    pd: Literal["", "nixl"] = ""
    """`nixl`: also hand KV from device to device."""
    lora_rank: int = 16
    """Of LoRA adapters, at most, where the engine has any."""
    idle_slice_tokens: int = 0
    """Above 0: our scheduler class, which computes fills in idle steps of so many tokens only."""
    settings_file: str = ""
    """Absolute path of a file that carries the store's settings instead of the command line; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start a server."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    """Besides what the environment has; may hold the engine's API key."""
    file: str = ""
    """Text for `Wanted.settings_file`, to be readable by the server's user alone; empty when none is needed."""
    warnings: tuple[str, ...] = ()


def launch(settings: Settings, engine: EngineSettings, wanted: Wanted) -> Launch:
    """The start of the vLLM server that `engine` describes. Raises BadSetting."""
    model = wanted.model or engine.model
    if not model:
        raise BadSetting("which model? name it with --model, or set the engine's `model`", param="--model")
    store = _store(settings, wanted)
    env, warnings = dict(store.env), list(store.warnings)
    host, port = _address(engine)
    argv = ["vllm", "serve", model]
    if engine.model and engine.model != model:
        argv += ["--served-model-name", engine.model]
    if engine.url.startswith("https://"):
        warnings.append(f"engine {engine.name}: its https:// url is of a proxy; add --host and --port of the server")
    else:
        argv += ["--host", host, "--port", str(port)]
        if not engine.api_key and not _is_loopback(host):
            warnings.append(f"engine {engine.name}: listens on {host} without an api_key")
    if engine.api_key:
        env[API_KEY] = engine.api_key  # a command line is there for all users of a machine to read
    if engine.context_length:
        argv += ["--max-model-len", str(engine.context_length)]
    argv += ["--tensor-parallel-size", str(wanted.tensor_parallel_size)]
    argv += ["--enable-prefix-caching", "--prefix-caching-hash-algo", "sha256_cbor"]
    argv += ["--kv-cache-dtype", wanted.kv_cache_dtype]
    argv += ["--enable-chunked-prefill", *_step(settings, engine)]
    argv += ["--scheduling-policy", "priority", "--enable-prompt-tokens-details"]
    if wanted.idle_slice_tokens:
        # vLLM schedules asynchronously where it can, which it cannot on a processor; each way has a class of its own.
        argv += ["--scheduler-cls", CPU_SCHEDULER if wanted.cpu else SCHEDULER]
        argv += ["--additional-config", _json({NAME: {"slice_tokens": wanted.idle_slice_tokens}})]
    argv += [*_memory(settings, wanted), *_speculation(engine.speculation), *_reports(settings, engine)]
    argv += _adapters(engine, wanted)
    env |= {LOADS_ADAPTERS: "1"} if engine.adapters else {}
    if wanted.cpu:
        # Two servers that pin threads pick the same cores, and threads that spin on busy cores take seconds per token.
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(engine.threads or 1)}
    if wanted.pd == "nixl":
        env["VLLM_NIXL_SIDE_CHANNEL_HOST"] = host
    argv += [*store.flags, "--kv-transfer-config", _json(store.transfer)]
    return Launch(argv=tuple(argv), env=env, file=store.file, warnings=tuple(warnings))


def plain(record: msgspec.Struct) -> dict[str, Any]:
    """A record of settings as JSON takes it, without what has its default: sizes as bytes, durations as seconds."""
    found = {}
    for one in msgspec.structs.fields(type(record)):
        value = getattr(record, one.name)
        if one.required or value != one.default:
            found[one.name] = _plain(value)
    return found


def _plain(value: object) -> object:
    match value:
        case msgspec.Struct():
            return plain(value)
        case tuple():
            return [_plain(item) for item in value]
        case bool() | str():
            return value
        case int():
            return int(value)
        case float():
            return int(value) if value.is_integer() else float(value)
        case _:
            raise TypeError(f"no setting is a {type(value).__name__}")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _store(settings: Settings, wanted: Wanted) -> OtherStore:
    """Who keeps KV outside the engine, and how it gets there."""
    if settings.kv_backend == "nightfill":
        return _ours(settings, wanted)
    if wanted.pd:
        raise BadSetting(f"--pd {wanted.pd}: is for kv_backend nightfill only", param="--pd")
    if settings.kv_backend == "lmcache":
        return lmcache(
            settings,
            data_dir=wanted.data_dir,
            host_bytes=wanted.host_bytes,
            ranks=wanted.tensor_parallel_size,
            file=wanted.settings_file,
        )
    if wanted.cpu:
        raise BadSetting("--cpu: vLLM's own offloading (kv_backend native) moves KV of GPUs only", param="--cpu")
    return native(settings, data_dir=wanted.data_dir, host_bytes=wanted.host_bytes)


def _ours(settings: Settings, wanted: Wanted) -> OtherStore:
    kv = settings.kv
    for index, tier in enumerate(kv.tiers):
        if has_password(tier.url) and not wanted.settings_file:
            raise BadSetting(
                f"setting kv.tiers.{index}.url: has a password, which a command line would show to all users of the "
                "machine; name a file for the store's settings with --settings-file",
                param=f"kv.tiers.{index}.url",
            )
    inside: dict[str, Any] = {"kv": plain(kv), "data_dir": str(wanted.data_dir)}
    spec = {"spec_name": "TieringOffloadingSpec"}
    if wanted.cpu:
        spec = {"spec_name": CPU_SPEC, "spec_module_path": CPU_PLUGIN}
    ours: dict[str, Any] = {
        "kv_connector": CONNECTOR,
        "kv_connector_module_path": PLUGIN,
        # Whatever the engine's roles: blocks are found by what is in them. A prefill server that only produced would
        # compute everything again after a restart; a decode server that only consumed would keep nothing of the
        # prompts that it computes while the prefill side is away.
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            **spec,
            "cpu_bytes_to_use": int(wanted.host_bytes),
            "block_size": kv.block_tokens,
            "secondary_tiers": [{"type": TIER, "module_path": PLUGIN}],
            NAME: {"settings_file": wanted.settings_file} if wanted.settings_file else inside,
        },
    }
    file = msgspec.json.format(msgspec.json.encode(inside)).decode() + "\n" if wanted.settings_file else ""
    return OtherStore(transfer=_with_nixl(ours) if wanted.pd == "nixl" else ours, file=file)


def _with_nixl(ours: dict[str, Any]) -> dict[str, Any]:
    """Device to device first: of two that have the same blocks it is the quicker. What is prefilled goes to both."""
    nixl = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute"}
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": [nixl, ours]},
    }


def _address(engine: EngineSettings) -> tuple[str, int]:
    parts = urlsplit(engine.url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise BadSetting(f"engine {engine.name}: url: no usable port", param="url") from exc
    if not host:
        why = "it names no host" if engine.url else "it has none: nightfill serve starts this server itself"
        raise BadSetting(f"engine {engine.name}: url: {why}", param="url")
    return host, port or 80


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _step(settings: Settings, engine: EngineSettings) -> list[str]:
    """A fill is given up at the end of a step of the engine: where one serves and fills, steps are short."""
    roles = engine.roles or ("serve", "fill")
    if "fill" not in roles or len(roles) == 1:
        return []
    least, most = _STEP_TOKENS
    return ["--max-num-batched-tokens", str(max(least, min(most, settings.sleep.max_slice_tokens)))]


def _adapters(engine: EngineSettings, wanted: Wanted) -> list[str]:
    if not engine.adapters:
        return []
    # As many in memory as may be loaded: vLLM reads those that it has no room for again, whatever is there by then.
    many = str(min(engine.max_adapters, len(engine.adapters)))
    return ["--enable-lora", "--max-lora-rank", str(wanted.lora_rank), "--max-loras", many, "--max-cpu-loras", many]


def _speculation(wanted: SpeculationSettings) -> list[str]:
    """Layers of a guessing model are in vLLM's KV cache too: the plug-in's signature has them in it."""
    if wanted.method == "none":
        return []
    config: dict[str, str | int] = {
        "method": "draft_model" if wanted.method == "draft" else wanted.method,
        "num_speculative_tokens": wanted.tokens or _GUESSED,
    }
    if wanted.model:
        config["model"] = wanted.model
    return ["--speculative-config", _json(config), "--per-request-spec-decode-metrics", "summary"]


def _reports(settings: Settings, engine: EngineSettings) -> list[str]:
    """Experiments compare the seconds that engines work on a request."""
    compared = any(engine.name in (one.a, one.b) for one in settings.experiments)
    return ["--enable-per-request-metrics"] if compared else []


def _memory(settings: Settings, wanted: Wanted) -> list[str]:
    flags = []
    # On a processor vLLM would take nearly all memory there is.
    kv_bytes = wanted.kv_cache_bytes or (_CPU_KV_BYTES if wanted.cpu else 0)
    if kv_bytes:
        flags += ["--kv-cache-memory-bytes", str(int(kv_bytes))]
    if wanted.cpu and settings.kv.block_tokens < _CPU_BLOCK_TOKENS:
        # A stored block is a whole number of the engine's, which are of 128 tokens on a processor unless told.
        flags += ["--block-size", str(settings.kv.block_tokens)]
    return flags
