"""A deadline that is moved by writing down when something was heard, so that a chunk costs no timer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAST_LOOK_S: Final = 0.02


class Deadline:
    """Calls what `guard` was given once nothing was heard for `limit_s` seconds of `clock`. Used by one event loop.

    `clock` may stand still while time passes; then so does the deadline. Whoever makes it calls `stop` in the end.
    """

    __slots__ = ("_clock", "_loop", "_next_limit_s", "_on_expiry", "_timer", "expired", "heard_at", "limit_s")

    def __init__(self, limit_s: float, clock: Callable[[], float], *, next_limit_s: float | None = None) -> None:
        """`next_limit_s`: the least that `restart` will be given. It looks often enough for that from the start."""
        self.limit_s = limit_s
        self._next_limit_s = limit_s if next_limit_s is None else next_limit_s
        self.expired = False
        self.heard_at = clock()
        """Set it to the clock's time whenever something is heard."""
        self._on_expiry: Callable[[], object] = lambda: None
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._look()

    def guard(self, on_expiry: Callable[[], object]) -> None:
        """What to do on expiry from now on; done at once if the deadline has passed."""
        self._on_expiry = on_expiry
        if self.expired:
            on_expiry()

    def restart(self, limit_s: float) -> None:
        """Another limit from now on."""
        assert limit_s >= self._next_limit_s
        self.limit_s, self.heard_at = limit_s, self._clock()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        left_s = self.heard_at + self.limit_s - self._clock()
        if left_s > 0:
            look_s = max(min(left_s, self._next_limit_s), _LEAST_LOOK_S)
            self._timer = self._loop.call_later(look_s, self._look)
        else:
            self._timer = None
            self.expired = True
            self._on_expiry()
