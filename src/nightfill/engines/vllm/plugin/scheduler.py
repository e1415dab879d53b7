"""A scheduler that computes background requests only in steps that no live request wants. Optional, off by default.

vLLM's own priorities do not make a running prefill yield: it takes the whole step before anything waiting is looked
at. Here a background request (`priority` of `BACKGROUND` or more; lower is earlier) is left out of each step that a
live one is running or waiting in, and steps without live ones compute a slice of it at most, for the next live request
waits until the step under way has ended.

The interface is not public: `--scheduler-cls nightfill.engines.vllm.plugin.scheduler.IdleScheduler`, or
`AsyncIdleScheduler` where vLLM schedules asynchronously. With it goes `--scheduling-policy priority`, and the slice, if
it is to be another: `--additional-config '{"nightfill": {"slice_tokens": 256}}'`.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from nightfill.engines.vllm.wire import BACKGROUND_PRIORITY as BACKGROUND
from nightfill.engines.vllm.wire import NAME

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

SLICE_TOKENS: Final = 256
_CROWDED: Final = 0.9
"""Beyond this share of KV blocks in use nothing is hidden: vLLM must be able to preempt background requests."""


class IdleScheduler(Scheduler):
    """See the module."""

    running: list[Request]
    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        additional = self.vllm_config.additional_config
        ours = additional.get(NAME, {}) if isinstance(additional, dict) else {}
        slice_tokens = ours.get("slice_tokens", SLICE_TOKENS)
        if not isinstance(slice_tokens, int) or slice_tokens < 1:
            raise ValueError(f"additional_config.{NAME}.slice_tokens = {slice_tokens!r}: must be a positive integer")
        self._slice_tokens: int = slice_tokens

    @override
    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        if any(map(_is_background, itertools.chain(self.running, self.waiting))):
            return self._with_background(throttle_prefills)
        return super().schedule(throttle_prefills)

    def _with_background(self, throttle_prefills: bool) -> SchedulerOutput:
        live = not all(map(_is_background, itertools.chain(self.running, self.waiting)))
        if live and self.kv_cache_manager.usage < _CROWDED:
            return self._without_background(throttle_prefills)
        whole_step = self.max_num_scheduled_tokens
        if not live:
            self.max_num_scheduled_tokens = min(whole_step, self._slice_tokens)
        try:
            return super().schedule(throttle_prefills)
        finally:
            self.max_num_scheduled_tokens = whole_step

    def _without_background(self, throttle_prefills: bool) -> SchedulerOutput:
        hidden = [request for request in self.running if _is_background(request)]
        later = [request for request in self.waiting if _is_background(request)]
        self.running = [request for request in self.running if not _is_background(request)]
        self.waiting.remove_requests(later)
        try:
            return super().schedule(throttle_prefills)
        finally:
            self.running.extend(hidden)
            for request in later:
                self.waiting.add_request(request)


class AsyncIdleScheduler(IdleScheduler, AsyncScheduler):
    """The same, where vLLM schedules a step while the one before it runs."""


def _is_background(request: Request) -> bool:
    priority: int = request.priority
    return priority >= BACKGROUND
