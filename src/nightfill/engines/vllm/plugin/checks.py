"""What a vLLM server must be started with for its KV to go into the shared store. Looked at once, at start."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
import vllm
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

from nightfill.config import KvSettings
from nightfill.engines.vllm.wire import NAME
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

TESTED: Final = re.compile(r"0\.32\.\d+.*")
_HINT: Final = "`nightfill vllm-args` prints a command line that fits"


class PluginSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `kv_connector_extra_config.nightfill` may hold."""

    kv: KvSettings = KvSettings()
    data_dir: str = ""
    """Folder of relative tier paths and of the weights' digests; empty for the user's data folder."""
    save: str = "wished"
    """`wished`: prompts whose request says so, as fills do. `all`: every prompt."""
    settings_file: str = ""
    """A JSON file with the settings above, for those that should not stand on a command line."""
    allow_untested: bool = False
    """Start with versions of vLLM that this was not tested with."""


def check_server(vllm_config: VllmConfig, settings: PluginSettings) -> None:
    """Raise BadSetting for flags under which KV would be wrong, or a failed load an error."""
    transfer, cache = vllm_config.kv_transfer_config, vllm_config.cache_config
    assert transfer is not None
    if not TESTED.fullmatch(vllm.__version__) and not settings.allow_untested:
        raise _bad("vLLM", vllm.__version__, "nightfill was tested with 0.32; allow_untested: true overrides this")
    if transfer.kv_load_failure_policy != "recompute":
        raise _bad("kv_load_failure_policy", transfer.kv_load_failure_policy, "must be 'recompute'")
    if getattr(cache, "calculate_kv_scales", False):
        raise _bad("--calculate-kv-scales", True, "must be off: KV scaled on the fly fits no other server")
    if vllm_config.model_config.runner_type != "generate":
        raise _bad("--runner", vllm_config.model_config.runner_type, "must be generate")
    wanted = transfer.kv_connector_extra_config.get("block_size")
    if wanted != settings.kv.block_tokens:
        raise _bad("block_size", wanted, f"must be kv.block_tokens, {settings.kv.block_tokens}")
    if settings.save not in ("wished", "all"):
        raise _bad("nightfill.save", settings.save, "must be 'wished' or 'all'")


def check_cache(kv_cache_config: KVCacheConfig) -> None:
    """Raise BadSetting for models whose KV cache was not tried: all but plain full attention in one group."""
    groups = kv_cache_config.kv_cache_groups
    kinds = ", ".join(type(group.kv_cache_spec).__name__ for group in groups)
    plain = (
        len(groups) == 1
        and isinstance(groups[0].kv_cache_spec, FullAttentionSpec)
        and not isinstance(groups[0].kv_cache_spec, MLAAttentionSpec)
    )
    if not plain:
        raise _bad("model", kinds, "nightfill was tested with full attention in one group of layers only")


def read_settings(extra_config: dict[str, Any], read: Callable[[str], bytes]) -> PluginSettings:
    """The plug-in's settings out of `kv_connector_extra_config`. Raises BadSetting."""
    try:
        settings = msgspec.convert(extra_config.get(NAME, {}), PluginSettings, dec_hook=_number)
        if settings.settings_file:
            settings = msgspec.json.decode(read(settings.settings_file), type=PluginSettings, dec_hook=_number)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise _bad(NAME, "...", str(error)) from error
    except OSError as error:
        raise _bad(f"{NAME}.settings_file", extra_config[NAME], f"cannot be read: {error.strerror}") from error
    return settings


def _number(kind: type, value: object) -> object:
    """Byte sizes and durations come as plain numbers here."""
    if isinstance(value, int | float):
        return kind(value)
    raise ValueError(f"{value!r} is no number")


def _bad(key: str, value: object, allowed: str) -> BadSetting:
    return BadSetting(f"{key} = {value!r}: {allowed} ({_HINT})", param=key)
