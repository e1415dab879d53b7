"""vLLM's own `OffloadingConnector`, told of each request's tokens, salt and wish.

What moves KV between device and host stays vLLM's tested code. What is added: keys of our own (a tier sees hashes
only, and these name neither weights nor adapters' content), refusal of unfit flags at start, and a report per request.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from typing_extensions import override
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from nightfill.engines.signature import adapted
from nightfill.engines.vllm.adapter_identity import adapter_digest, may_hold
from nightfill.engines.vllm.adapter_shapes import misfit, shapes_in
from nightfill.engines.vllm.asked import Asked, salt_from, whole_spans, wish_of
from nightfill.engines.vllm.pace import PrefillSteps
from nightfill.engines.vllm.plugin.checks import check_cache, check_server
from nightfill.engines.vllm.plugin.identity import folder_of, signature
from nightfill.engines.vllm.plugin.tier import NightfillTier
from nightfill.engines.vllm.wire import NAME, Report, Wish
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

    from nightfill.contexts.context import Signature
    from nightfill.engines.vllm.adapter_identity import Mark

_log: Final = logging.getLogger(__name__)


class NightfillConnector(OffloadingConnector):
    """One object in the scheduler's process, one in each worker's; only the first does anything of its own."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        if role == KVConnectorRole.SCHEDULER:
            _log_with_vllm()
            check_cache(kv_cache_config)
        super().__init__(vllm_config, role, kv_cache_config)
        self._adapters: dict[tuple[str, str], str] = {}
        self._adapter_files: dict[Mark, str] = {}
        self._misfits: dict[str, str] = {}
        self._changed: set[tuple[str, str]] = set()
        self._passing_over: list[Request] = []
        """Requests of this step that are to pass over the engine's own cache."""
        if role != KVConnectorRole.SCHEDULER:
            return
        self._tier = self._find_tier()
        self._forget_name_of_host_memory()
        try:
            check_server(vllm_config, self._tier.settings)
            cache = self._tier.data_dir / "weights.json"
            self._signature = signature(vllm_config, kv_cache_config, cache=cache)
        except BaseException:
            self.shutdown()
            raise
        self._steps = PrefillSteps()
        _log.info("nightfill: signature %s, %d tokens per block", self._signature[:16], self._tier.block_tokens)

    def _find_tier(self) -> NightfillTier:
        tiers = getattr(self.scheduler.manager, "secondary_tiers", ())
        found = [tier for tier in tiers if isinstance(tier, NightfillTier)]
        if len(found) != 1:
            self.shutdown()
            raise ValueError(f"secondary_tiers: {len(found)} of type NightfillTier are set, exactly one is needed")
        return found[0]

    def _forget_name_of_host_memory(self) -> None:
        """Unlink the file behind vLLM's host memory, which would survive a server that is killed.

        Workers are up before the scheduler: one that finds the file made is the last to need its name.
        """
        region = self.scheduler.manager.primary_tier._mmap_region
        if not region._creator:
            Path(region.mmap_path).unlink(missing_ok=True)

    @override
    def on_new_request(self, request: Request) -> None:
        # A request that is given up before it was ever scheduled may come here more than once.
        if self._tier.asked(request.request_id) is None:
            asked = self._ask(request)
            if asked.wish.fresh or asked.wish.cold:
                request.skip_reading_prefix_cache = True
            self._tier.note(asked)
        super().on_new_request(request)

    def _ask(self, request: Request) -> Asked:
        wish, salt = wish_of(request.kv_transfer_params), salt_from(request.cache_salt)
        signature = self._adapted(request)
        tokens = request.prompt_token_ids
        plain = not request.mm_features and request.prompt_embeds is None
        keyed = tokens is not None and signature is not None and plain
        tier = self._tier
        stores = keyed and (wish.store if wish is not None else tier.settings.save == "all")
        return Asked(
            request_id=request.request_id,
            signature=signature or self._signature,
            salt=salt,
            spans=whole_spans(tokens, signature=signature, salt=salt, block_tokens=tier.block_tokens)
            if keyed and tokens is not None and signature is not None
            else (),
            keyed=keyed,
            wish=wish or Wish(),
            stores=stores,
            arrived_s=time.monotonic(),
            decision="absent" if keyed else "unkeyed",
        )

    def _adapted(self, request: Request) -> Signature | None:
        """The signature under the request's adapter, by its content; None when that is not known.

        vLLM's own caches know an adapter by name and path. One that changed in place would be served KV of the one
        before it: so from then on its requests pass over these caches. Gateways name adapters by their content
        (`engines.vllm.adapters`); where a folder holds another one by now, it is not the one that was loaded.
        """
        adapter = request.lora_request
        if adapter is None:
            return self._signature
        name = (adapter.lora_name, adapter.lora_path)
        try:
            digest = adapter_digest(Path(adapter.lora_path), self._adapter_files)
        except OSError as error:
            _log.warning("adapter %s: its files cannot be read (%s); its KV is not stored", name[0], error.strerror)
            request.skip_reading_prefix_cache = True
            return None
        if self._adapters.setdefault(name, digest) != digest:
            self._changed.add(name)
        if name in self._changed:
            request.skip_reading_prefix_cache = True
        if not may_hold(adapter.lora_name, digest):
            _log.warning("adapter %s: its files have changed; its KV is not stored", name[0])
            return None
        if digest not in self._misfits:
            self._misfits[digest] = self._misfit(Path(adapter.lora_path))
        if self._misfits[digest]:
            _log.warning("adapter %s: is for another model: %s", name[0], self._misfits[digest])
            return None
        return adapted(self._signature, digest=digest)

    def _misfit(self, adapter: Path) -> str:
        model = self._vllm_config.model_config
        try:
            return misfit(shapes_in(adapter), shapes_in(folder_of(model.model, model.revision)))
        except (OSError, ValueError, BadSetting) as error:
            _log.warning("it cannot be told whether %s is for this model: %s", adapter, error)
            return ""

    @override
    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        asked = self._tier.asked(request.request_id)
        if asked is None:
            unknown: tuple[int | None, bool] = super().get_num_new_matched_tokens(request, num_computed_tokens)
            return unknown
        if asked.wish.fresh and not asked.wish.cold:
            # The engine's own cache was passed over already; what is outside it is wanted. vLLM looks at the flag again
            # when we return, so that it is set anew for the next step only once this one is scheduled.
            request.skip_reading_prefix_cache = False
            self._passing_over.append(request)
        if asked.loading:
            return None, False
        began_s = time.monotonic()
        self._tier.lookups.decide(asked, cached_tokens=num_computed_tokens)
        matched: int | None
        matched, later = super().get_num_new_matched_tokens(request, num_computed_tokens)
        asked.lookup_s += time.monotonic() - began_s
        asked.cached_tokens = num_computed_tokens
        return matched, later

    @override
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        for request in self._passing_over:
            request.skip_reading_prefix_cache = True
        self._passing_over.clear()
        self._steps.begins(scheduler_output.total_num_scheduled_tokens, time.monotonic())
        return super().build_connector_meta(scheduler_output)

    @override
    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        tokens, seconds = self._steps.ends(time.monotonic())
        self._tier.lookups.observe(prefill_tokens=tokens, prefill_s=seconds)
        super().update_connector_output(connector_output)

    @override
    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        asked = self._tier.asked(request.request_id)
        if asked is not None and num_external_tokens:
            asked.loaded_tokens = num_external_tokens
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    @override
    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        held, params = super().request_finished_all_groups(request, block_ids)
        return held, self._with_report(request, params)

    @override
    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        held, params = super().request_finished(request, block_ids)
        return held, self._with_report(request, params)

    def _with_report(self, request: Request, params: dict[str, Any] | None) -> dict[str, Any] | None:
        asked = self._tier.asked(request.request_id)
        if asked is None or not asked.wish.report:
            return params
        tier, rates = self._tier, self._tier.lookups.rates
        report = Report(
            signature=asked.signature,
            salt=asked.salt.hex(),
            block_tokens=tier.block_tokens,
            kv_bytes_per_token=tier.block_bytes // tier.block_tokens,
            engine_block_tokens=self._vllm_config.cache_config.block_size,
            cached=asked.cached_tokens,
            loaded=asked.loaded_tokens,
            found=(asked.found or 0) * tier.block_tokens,
            decision=asked.decision,
            restore_s=asked.restore_s,
            recompute_s=asked.recompute_s,
            bytes_per_s=rates.bytes_per_s,
            latency_s=rates.latency_s,
            tokens_per_s=rates.tokens_per_s,
            lookup_s=asked.lookup_s,
        )
        return {**(params or {}), NAME: msgspec.to_builtins(report)}


def _log_with_vllm() -> None:
    """Let our lines go where vLLM's go; it configures its own loggers only."""
    ours, theirs = logging.getLogger("nightfill"), logging.getLogger("vllm")
    if not ours.handlers:
        ours.handlers, ours.propagate = list(theirs.handlers), theirs.propagate
        ours.setLevel(theirs.getEffectiveLevel())
