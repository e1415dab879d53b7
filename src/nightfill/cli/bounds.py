"""Ranges of settings, which their types cannot say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from nightfill.cli.adapter_bounds import check_adapters
from nightfill.cli.experiment_bounds import check_experiments, check_speculation
from nightfill.cli.lifecycle_bounds import check_launch, check_lifecycle
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from nightfill.config import EngineSettings, Settings, SleepSettings, TierSettings

BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "engines.*.context_length": (0, 1 << 24),
    "engines.*.slots": (1, 16),
    "engines.*.threads": (0, 1024),
    "engines.*.batch_tokens": (16, 65536),
    "engines.*.gpu_layers": (-1, 10_000),
    "engines.*.start_timeout_s": (1, 86400),
    "engines.*.fill_idle_stop_s": (0, 30 * 86400),
    "engines.*.launch.tensor_parallel_size": (1, 1024),
    "engines.*.launch.kv_cache_bytes": (0, 1 << 50),
    "engines.*.launch.host_bytes": (1 << 20, 1 << 50),
    "engines.*.speculation.tokens": (0, 64),
    "engines.*.adapters.*.scale": (-100, 100),
    "engines.*.max_adapters": (1, 256),
    "gateway.port": (0, 65535),
    "gateway.max_body_bytes": (1 << 10, 1 << 32),
    "gateway.max_in_flight": (1, 100_000),
    "gateway.body_timeout_s": (0.1, 86400),
    "gateway.first_byte_timeout_s": (0.1, 86400),
    "gateway.idle_timeout_s": (0.1, 86400),
    "gateway.drain_s": (0, 86400),
    "kv.ttl_s": (1, 100 * 365 * 86400),
    "kv.block_tokens": (32, 4096),
    "kv.tiers.*.max_bytes": (1 << 20, 1 << 60),
    "kv.tiers.*.min_free_bytes": (0, 1 << 60),
    "kv.tiers.*.tenant_max_bytes": (0, 1 << 60),
    "kv.tiers.*.ttl_s": (0, 100 * 365 * 86400),
    "kv.tiers.*.write_bytes_per_day": (0, 1 << 60),
    "kv.tiers.*.timeout_s": (0.01, 3600),
    "kv.tiers.*.connections": (1, 64),
    "sleep.window_length_s": (60, 7 * 86400),
    "sleep.wake_at_queue_depth": (0, 1_000_000_000),
    "sleep.wake_when_idle_s": (0, 30 * 86400),
    "sleep.max_workers": (1, 100_000),
    "sleep.grace_s": (1, 3600),
    "sleep.recency_weight": (0, 1000),
    "sleep.frequency_weight": (0, 1000),
    "sleep.quiet_s": (0, 86400),
    "sleep.max_live": (0, 100_000),
    "sleep.max_slice_s": (0.01, 3600),
    "sleep.min_slice_tokens": (1, 1 << 20),
    "sleep.max_slice_tokens": (1, 1 << 20),
    "sleep.lease_s": (1, 86400),
    "sleep.max_failures": (1, 1000),
    "sleep.retry_base_s": (0.01, 86400),
    "sleep.retry_cap_s": (0.01, 30 * 86400),
    "sleep.plan_every_s": (0.05, 86400),
    "sleep.check_sources_every_s": (0.05, 30 * 86400),
    "sleep.audit_share": (0, 1),
    "sleep.stop_unpaid_after_s": (0, 365 * 86400),
    "split.min_tokens": (1, 1 << 24),
    "split.prefill_timeout_s": (0.01, 86400),
    "split.await_s": (0, 3600),
    "contexts.max_bytes": (1, 1 << 32),
    "contexts.max_file_bytes": (1, 1 << 32),
    "answers.ttl_s": (1, 100 * 365 * 86400),
    "answers.max_answers": (0, 1_000_000_000),
    "answers.max_bytes": (1 << 20, 1 << 60),
    "answers.tenant_max_answers": (0, 1_000_000_000),
    "answers.max_answer_bytes": (1 << 10, 1 << 32),
    "answers.max_temperature": (0, 2),
    "answers.min_similarity": (0, 1),
    "answers.near_timeout_s": (0.001, 60),
    "answers.questions_per_context": (0, 1_000_000),
    "distil.min_tokens": (1, 1 << 24),
    "distil.ratio": (2, 20),
    "foresee.per_context": (0, 100_000),
    "foresee.model_questions": (1, 200),
    "foresee.temperature": (0, 2),
    "foresee.max_tokens": (0, 1 << 20),
    "foresee.every_s": (0.05, 30 * 86400),
    "route.lead_tokens": (0, 1 << 24),
    "history.ttl_s": (1, 7 * 86400),
    "history.max_chats": (1, 100_000),
    "history.min_new_tokens": (1, 1 << 20),
    "discovery.min_tokens": (16, 1 << 24),
    "discovery.requests": (2, 1_000_000),
    "discovery.ttl_s": (1, 100 * 365 * 86400),
    "discovery.keep_text_s": (0, 30 * 86400),
    "discovery.max_contexts": (0, 4096),
    "discovery.max_bytes": (1 << 20, 1 << 40),
    "prices.serving_per_hour": (0, 1e9),
    "prices.background_per_hour": (0, 1e9),
    "prices.machines.*": (0, 1e9),
    "budgets.user_tokens_per_day": (0, 1 << 50),
    "budgets.user_tokens_per_month": (0, 1 << 50),
    "budgets.tenant_tokens_per_day": (0, 1 << 50),
    "budgets.tenant_tokens_per_month": (0, 1 << 50),
    "budgets.all_tokens_per_day": (0, 1 << 50),
    "budgets.all_tokens_per_month": (0, 1 << 50),
    "budgets.weights.*": (0.001, 1000),
    "lifecycle.devices.*.max_bytes": (1 << 20, 1 << 60),
    "lifecycle.host_max_bytes": (0, 1 << 60),
    "lifecycle.level_1_after_s": (0, 30 * 86400),
    "lifecycle.level_2_after_s": (0, 30 * 86400),
    "lifecycle.min_awake_s": (0, 3600),
    "lifecycle.max_turn_s": (0.1, 86400),
    "lifecycle.max_waiting": (1, 100_000),
    "lifecycle.max_wait_s": (0.1, 86400),
    "lifecycle.start_timeout_s": (1, 86400),
    "lifecycle.sleep_timeout_s": (1, 3600),
    "lifecycle.retry_after_s": (0.1, 3600),
    "lifecycle.wake_ahead_s": (0, 86400),
    "experiments.*.share": (0, 1),
    "experiments.*.max_error_share": (0, 1),
    "experiments.*.max_drift": (0, 100),
    "experiments.*.min_requests": (1, 1_000_000),
    "experiments.*.patience_s": (0.1, 86400),
}
"""Lowest and highest value that is allowed; `*` stands for any item of a list or an object."""


def check_bounds(settings: Settings) -> None:
    """Raise BadSetting for the first value out of its range, or that does not go with another."""
    _walk(settings, "", "")
    tokens = settings.kv.block_tokens
    if tokens & (tokens - 1):
        raise _bad("kv.block_tokens", tokens, "must be a power of two from 32 to 4096")
    sleep = settings.sleep
    if sleep.min_slice_tokens > sleep.max_slice_tokens:
        raise _bad("sleep.min_slice_tokens", sleep.min_slice_tokens, "must not be above sleep.max_slice_tokens")
    if sleep.retry_base_s > sleep.retry_cap_s:
        raise _bad("sleep.retry_base_s", sleep.retry_base_s, "must not be above sleep.retry_cap_s")
    _check_night(sleep)
    names = [engine.name for engine in settings.engines]
    for index, engine in enumerate(settings.engines):
        if not engine.name or engine.name in names[:index]:
            raise _bad(f"engines.{index}.name", engine.name, "must be there, and unlike those of the other engines")
        _check_engine(engine, index)
        check_launch(engine, index)
        check_speculation(engine, index)
    check_lifecycle(settings)
    check_adapters(settings)
    check_experiments(settings)
    if not settings.kv.tiers:
        raise _bad("kv.tiers", [], "must have at least one tier")
    for index, tier in enumerate(settings.kv.tiers):
        _check_tier(tier, index)


def _check_night(sleep: SleepSettings) -> None:
    """Windows that never open, or whose hours nobody meant, are found now and not by night."""
    if sleep.windows or sleep.time_zone != "UTC":
        from nightfill.cli.units import parse_duration
        from nightfill.sleep.windows import windows_of

        windows_of(sleep, duration=parse_duration)
    if sleep.spot_notice_url:
        if not sleep.spot_notice_url.startswith(("http://", "https://")):
            raise _unshown("sleep.spot_notice_url", "must be an http:// or https:// address")
        if not sleep.spot:
            raise _unshown("sleep.spot_notice_url", "needs sleep.spot, which says how to read the answer")


def _check_engine(engine: EngineSettings, index: int) -> None:
    """What an engine needs depends on its kind."""
    if engine.kind == "llama":
        if not engine.model:
            raise _bad(f"engines.{index}.model", engine.model, "must be a path of a GGUF file, or demo:SIZE")
        for name in ("url", "api_key", "roles"):
            if getattr(engine, name):
                raise _unshown(f"engines.{index}.{name}", "is for kind: vllm only")
    elif engine.url and not engine.url.startswith(("http://", "https://")):
        raise _unshown(f"engines.{index}.url", "must be the http:// or https:// address of a vLLM server")


def _check_tier(tier: TierSettings, index: int) -> None:
    """What a tier needs depends on its kind."""
    schemes = {"redis": ("redis://", "rediss://", "unix://"), "s3": ("s3://",)}.get(tier.kind, ())
    if schemes and not tier.url.startswith(schemes):
        raise _unshown(f"kv.tiers.{index}.url", f"must begin with {' or '.join(schemes)}")
    if not schemes and tier.url:
        raise _unshown(f"kv.tiers.{index}.url", "is for tiers of kind redis or s3 only")
    if index == 0 and tier.write == "back":
        raise _bad("kv.tiers.0.write", "back", "must be through: nothing is above the first tier")


def _walk(record: msgspec.Struct, path: str, pattern: str) -> None:
    for name in record.__struct_fields__:
        value = getattr(record, name)
        here, rule = (f"{path}.{name}", f"{pattern}.{name}") if path else (name, name)
        if isinstance(value, msgspec.Struct):
            _walk(value, here, rule)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, msgspec.Struct):
                    _walk(item, f"{here}.{index}", f"{rule}.*")
        elif isinstance(value, dict):
            for key, item in value.items():
                _within(f"{here}.{key}", f"{rule}.*", item)
        else:
            _within(here, rule, value)


def _within(key: str, rule: str, value: object) -> None:
    if isinstance(value, int | float) and rule in BOUNDS:
        low, high = BOUNDS[rule]
        if not low <= value <= high:
            raise _bad(key, value, f"must be {_digits(low)} to {_digits(high)}")


def _digits(number: float) -> str:
    return f"{number:_}" if isinstance(number, int) else f"{number:_g}"


def _bad(key: str, value: object, allowed: str) -> BadSetting:
    return BadSetting(f"setting {key} = {value!r}: {allowed}", param=key)


def _unshown(key: str, allowed: str) -> BadSetting:
    """For values that may hold a secret, as addresses do."""
    return BadSetting(f"setting {key}: {allowed}", param=key)
