"""Look-ups for the requests of a vLLM server: what is stored of each prompt, and whether loading it pays.

The scheduler asks again at every step, and must never wait: whatever goes over a network happens in threads.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Final

from nightfill.kv.worth import LOAD_ANYWAY_AFTER, Rates, worth_loading

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from nightfill.engines.vllm.asked import Asked
    from nightfill.kv import Span

LOOK_AGAIN_S: Final = 0.005
"""Between two look-ups of a request that waits for blocks which somebody is about to store."""
LOOK_WITHIN_S: Final = 0.5
"""A store that takes longer to say what it has, has nothing: computing begins."""
_INLINE_S: Final = 0.001
"""So long the scheduler's thread waits for a look-up at most; a later step takes the result else."""


class Lookups:
    """All methods are for the scheduler's thread, but for `observe`."""

    def __init__(
        self,
        leading: Callable[[Sequence[Span]], int],
        *,
        block_tokens: int,
        block_bytes: int,
        always: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`leading` tells how many spans, from the front, are stored, and may be slow. `always`: load what there is."""
        self._leading = leading
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes
        self._always = always
        self._clock = clock
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="nightfill-look")
        self._lock = threading.Lock()
        self._rates = Rates()
        self._recomputed = 0

    def begin(self, asked: Asked) -> None:
        """Look up a new request's blocks. Waits for a result that is there at once."""
        self._look(asked)
        if asked.looking is not None:
            wait([asked.looking], timeout=_INLINE_S)
        self.settle(asked)

    def settle(self, asked: Asked) -> None:
        """Take the result of a look-up that is done; begin another while what is awaited is not there."""
        if asked.found is not None:
            return
        now_s = self._clock()
        if asked.looking is None:
            if now_s - asked.looked_s >= LOOK_AGAIN_S:
                self._look(asked)
            return
        awaits = now_s - asked.arrived_s < asked.wish.await_s
        if not asked.looking.done():
            if not awaits and now_s - asked.looked_s >= LOOK_WITHIN_S:
                asked.found = 0
            return
        found = asked.looking.result()
        asked.looking = None
        awaited = min(asked.wish.await_tokens // self._block_tokens, len(asked.spans))
        if found < awaited and awaits:
            return
        asked.found = asked.usable = found

    def decide(self, asked: Asked, *, cached_tokens: int) -> None:
        """Weigh loading what was found, beyond what the engine has, against computing it. Once per request, for what is
        loaded meanwhile must not be thrown away.
        """
        self.settle(asked)
        if asked.found is None or asked.decided:
            return
        asked.decided = True
        tokens = asked.found * self._block_tokens - cached_tokens
        if tokens <= 0:
            asked.decision = "restore" if asked.found else asked.decision
            return
        estimate = worth_loading(tokens, tokens * self._block_bytes // self._block_tokens, self.rates)
        asked.restore_s, asked.recompute_s = estimate.restore_s or 0.0, estimate.recompute_s or 0.0
        restore = asked.wish.load
        if restore is None:
            # Who passes over the engine's own cache wants to see what is stored, whatever it takes.
            restore = estimate.restore or self._always or asked.wish.fresh or self._recomputed >= LOAD_ANYWAY_AFTER
            self._recomputed = 0 if restore else self._recomputed + 1
        asked.decision = "restore" if restore else "recompute"
        asked.usable = asked.found if restore else 0

    def observe(
        self, *, load_bytes: int = 0, load_s: float = 0.0, prefill_tokens: int = 0, prefill_s: float = 0.0
    ) -> None:
        """Learn how quick loading and computing are here. From any thread."""
        with self._lock:
            self._rates = self._rates.after(
                load_bytes=load_bytes, load_s=load_s, prefill_tokens=prefill_tokens, prefill_s=prefill_s
            )

    @property
    def rates(self) -> Rates:
        """How quick loading and computing were so far."""
        with self._lock:
            return self._rates

    def close(self) -> None:
        """Wait for the look-ups under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _look(self, asked: Asked) -> None:
        asked.looked_s = self._clock()
        looking: Future[int] = self._pool.submit(self._leading, asked.spans)
        asked.looking = looking
