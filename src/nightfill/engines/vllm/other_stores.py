"""KV of vLLM servers in another store than ours: what LMCache, or vLLM itself, must be told for `kv.tiers`.

Pure: settings in, records out. Option names are those of LMCache 0.5.6 and vLLM 0.32, and are checked against their own
parsers. docs/other-stores.md says what these stores lack.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec

from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nightfill.config import KvSettings, Settings, TierSettings

_GIB: Final = 1 << 30
_LMCACHE: Final[Mapping[str, frozenset[str]]] = {
    "ram": frozenset({"max_bytes"}),
    "disk": frozenset({"max_bytes", "path", "direct"}),
    "redis": frozenset({"url"}),
}
_NATIVE: Final[Mapping[str, frozenset[str]]] = {
    "ram": frozenset({"max_bytes"}),
    "disk": frozenset({"path"}),
    "s3": frozenset({"url", "endpoint", "region", "connections"}),
}
"""Kind of tier -> the settings of it that the store carries out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherStore:
    """What a vLLM server is started with for a store that is not ours."""

    flags: tuple[str, ...] = ()
    """Of `vllm serve`."""
    transfer: dict[str, Any]
    """Its `--kv-transfer-config`."""
    env: dict[str, str] = field(default_factory=dict)
    """Its environment."""
    file: str = ""
    """Text that its environment expects in a file; empty for none."""
    warnings: tuple[str, ...] = ()
    """Settings that the store does not carry out, by name."""


def lmcache(settings: Settings, *, data_dir: Path, host_bytes: int, ranks: int, file: str) -> OtherStore:
    """LMCache inside the server, configured by the YAML file `file`.

    `host_bytes` is the host memory of a store without a ram tier, and `ranks` the tensor parallel size. Raises
    BadSetting for what LMCache cannot do: encryption, s3 tiers with our settings, two tiers of a kind.
    """
    _refuse_unfit(settings.kv, _LMCACHE, "lmcache")
    tiers = _by_kind(settings.kv)
    if not file:
        raise BadSetting(
            "kv_backend lmcache is configured by a file: name it with --settings-file", param="--settings-file"
        )
    warnings = list(_left_out(settings.kv, _LMCACHE, "LMCache"))
    if len(settings.gateway.api_keys) > 1:
        warnings.append("gateway.api_keys: LMCache's keys have no salt; tenants with equal text share its blocks")
    # Each rank makes a pool and a folder of its own, as large as it is told here.
    ram_bytes = tiers["ram"].max_bytes if "ram" in tiers else host_bytes
    options: dict[str, object] = {
        "chunk_size": settings.kv.block_tokens,
        "local_cpu": "ram" in tiers,
        "max_local_cpu_size": ram_bytes / ranks / _GIB,
        # The default is Python's hash(), which differs between processes and gives collisions on demand.
        "pre_caching_hash_algorithm": "sha256_cbor",
    }
    if "disk" in tiers:
        options["local_disk"] = str(_folder(tiers["disk"], data_dir) / "lmcache")
        options["max_local_disk_size"] = tiers["disk"].max_bytes / ranks / _GIB
        options["extra_config"] = {"use_odirect": tiers["disk"].direct}
    if "redis" in tiers:
        options["remote_url"] = tiers["redis"].url
        if has_password(tiers["redis"].url):
            warnings.append("kv.tiers: LMCache writes the url of the redis tier to its log, with its password")
    return OtherStore(
        transfer={"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both", "kv_load_failure_policy": "recompute"},
        env={"LMCACHE_CONFIG_FILE": file},
        file="".join(f"{key}: {msgspec.json.encode(value).decode()}\n" for key, value in options.items()),
        warnings=tuple(warnings),
    )


def native(settings: Settings, *, data_dir: Path, host_bytes: int) -> OtherStore:
    """vLLM's own offloading: host memory, and below it `fs` and `obj` tiers.

    `host_bytes` is the host memory of a store without a ram tier. Raises BadSetting for what vLLM cannot do:
    encryption, redis tiers, s3 tiers without an endpoint, two ram tiers.
    """
    kv = settings.kv
    _refuse_unfit(kv, _NATIVE, "native")
    ram = [tier for tier in kv.tiers if tier.kind == "ram"]
    if len(ram) > 1:
        raise _refused(kv, ram[1], "kv_backend native has one tier of host memory")
    cpu_bytes = ram[0].max_bytes if ram else host_bytes
    below = [_secondary(kv, tier, data_dir) for tier in kv.tiers if tier.kind != "ram"]
    warnings = _left_out(kv, _NATIVE, "vLLM's own offloading")
    if not below:
        return OtherStore(
            flags=("--kv-offloading-backend", "native", "--kv-offloading-size", f"{cpu_bytes / _GIB:g}"),
            transfer={"kv_load_failure_policy": "recompute"},
            warnings=warnings,
        )
    return OtherStore(
        transfer={
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {
                "spec_name": "TieringOffloadingSpec",
                "cpu_bytes_to_use": int(cpu_bytes),
                "block_size": kv.block_tokens,
                "secondary_tiers": below,
            },
        },
        warnings=warnings,
    )


def has_password(url: str) -> bool:
    """Whether a password stands in `url`, before its host or among its options."""
    parts = urlsplit(url)
    return bool(parts.password) or any(key.lower() == "password" for key in parse_qs(parts.query))


def _secondary(kv: KvSettings, tier: TierSettings, data_dir: Path) -> dict[str, Any]:
    if tier.kind == "disk":
        return {"type": "fs", "root_dir": str(_folder(tier, data_dir) / "native")}
    bucket = urlsplit(tier.url)
    endpoint = urlsplit(tier.endpoint)
    if not endpoint.scheme:
        raise _refused(kv, tier, "kv_backend native needs its `endpoint`, such as https://s3.example.org")
    store = {"bucket": bucket.netloc, "endpoint_override": tier.endpoint, "scheme": endpoint.scheme}
    if tier.region:
        store["region"] = tier.region
    return {
        "type": "obj",
        "store_config": store,
        "prefix": bucket.path.strip("/"),
        "io_threads": tier.connections,
    }


def _by_kind(kv: KvSettings) -> dict[str, TierSettings]:
    found: dict[str, TierSettings] = {}
    for tier in kv.tiers:
        if tier.kind in found:
            raise _refused(kv, tier, f"kv_backend lmcache has one tier of kind {tier.kind}")
        found[tier.kind] = tier
    return found


def _refuse_unfit(kv: KvSettings, expressed: Mapping[str, frozenset[str]], backend: str) -> None:
    # Not a warning: who asked for encryption must not find plain KV on the disk later.
    if kv.key_file:
        raise BadSetting(
            f"setting kv.key_file: kv_backend {backend} stores KV unencrypted; remove the key file to accept that",
            param="kv.key_file",
        )
    for tier in kv.tiers:
        if tier.kind not in expressed:
            raise _refused(kv, tier, f"kv_backend {backend} takes tiers of kind {', '.join(expressed)} only")


def _left_out(kv: KvSettings, expressed: Mapping[str, frozenset[str]], store: str) -> tuple[str, ...]:
    """A line for each setting that somebody gave, and that the store does not carry out."""
    given = [f"kv.{name}" for name, value, default in _values(kv) if name == "ttl_s" and value != default]
    for index, tier in enumerate(kv.tiers):
        given += [
            f"kv.tiers.{index}.{name}"
            for name, value, default in _values(tier)
            if name != "kind" and value != default and name not in expressed[tier.kind]
        ]
    return tuple(f"{name}: {store} does not carry it out" for name in given)


def _values(record: msgspec.Struct) -> list[tuple[str, object, object]]:
    """(name, value, default) of each field."""
    return [(one.name, getattr(record, one.name), one.default) for one in msgspec.structs.fields(type(record))]


def _folder(tier: TierSettings, data_dir: Path) -> Path:
    return (data_dir / (Path(tier.path).expanduser() if tier.path else "kv")).absolute()


def _refused(kv: KvSettings, tier: TierSettings, why: str) -> BadSetting:
    key = f"kv.tiers.{kv.tiers.index(tier)}"
    return BadSetting(f"setting {key} ({tier.kind}): {why}", param=key)
