"""The store's counters among vLLM's own metrics, by tier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import OffloadingCounterMetadata

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata

    from nightfill.kv import StoreReport

_COUNTERS: Final = {
    "hits": "Blocks read from a tier.",
    "misses": "Blocks asked of a tier that it did not have.",
    "corrupt": "Blocks that did not verify, and were dropped.",
    "errors": "Calls that a tier failed.",
    "written_bytes": "Bytes written to a tier.",
    "read_bytes": "Bytes read from a tier.",
}


def _metric(counter: str) -> str:
    return f"nightfill_kv_{counter}"


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """What vLLM has to know of the metrics beforehand."""
    return {
        _metric(counter): OffloadingCounterMetadata(documentation=text, labelnames=("tier",))
        for counter, text in _COUNTERS.items()
    }


class StoreStats:
    """Turns the store's running totals into what was added since the last call. For one thread."""

    def __init__(self) -> None:
        self._before: dict[tuple[str, str], int] = {}

    def since(self, report: StoreReport) -> OffloadingConnectorStats | None:
        """None when nothing was added."""
        stats = OffloadingConnectorStats()
        for tier in report.tiers:
            for counter in _COUNTERS:
                now = getattr(tier, counter)
                added = now - self._before.get((tier.name, counter), 0)
                if added:
                    self._before[tier.name, counter] = now
                    stats.increase_counter(_metric(counter), added, (tier.name,))
        return None if stats.is_empty() else stats
