"""The load board: a small file mapped by all processes of one host.

    offset 0     8 bytes   magic and version
    offset 8    16 bytes   boot id: pids and steady clocks of another boot mean nothing
    offset 24    8 bytes   u64 generation: moves whenever a slot changes hands
    offset 64              u64 pid[64], u64 start_ticks[64], u64 in_flight[64], f64 idle_since_s[64], f64 ttft_s[64]

Each gateway writes its own slot alone, one aligned 8-byte store per value, so no reader sees half a value. A slot whose
process is gone, or whose pid now belongs to another process, is ignored. What the file says is worth nothing after a
reboot, and little after a restart: it is not synced, and a damaged one is made anew.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from nightfill.errors import StateUnavailable
from nightfill.state.load import Load
from nightfill.state.process import boot_id, is_alive, start_ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SLOTS: Final = 64
_MAGIC: Final = b"NFboard1"
_HEADER_BYTES: Final = 64
_GENERATION: Final = 3
_PID, _START, _IN_FLIGHT, _IDLE, _TTFT = range(_HEADER_BYTES // 8, _HEADER_BYTES // 8 + 5 * SLOTS, SLOTS)
_FILE_BYTES: Final = _HEADER_BYTES + 5 * SLOTS * 8
_ALIVE_FOR_S: Final = 0.5
"""How long a process that was found alive is believed to be."""
_LOCK_WITHIN_S: Final = 2.0
_TTFT_WEIGHT: Final = 0.2
"""Of the newest time to first token, in the smoothed one."""


class MmapLoadBoard:
    """See `LoadBoard`. A gateway passes `writes`, and has a slot of its own until `close`; a worker only reads.

    Used from one thread. Raises StateUnavailable when the file cannot be had, or all slots belong to living processes.
    """

    def __init__(self, path: Path, *, writes: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: tuple[int, float, tuple[int, ...]] = (-1, -math.inf, ())
        self._slot: int | None = None
        self._in_flight = 0
        self._ttft_s = 0.0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                with _locked(self._file):
                    _repair(self._file)
                    self._map = mmap.mmap(self._file, _FILE_BYTES)
                    self._bytes = memoryview(self._map)
                    self._whole, self._real = self._bytes.cast("Q"), self._bytes.cast("d")
                    if writes:
                        self._claim()
            except BaseException:
                os.close(self._file)
                raise
        except (OSError, ValueError) as exc:
            raise StateUnavailable(f"load board {path}: {exc}") from exc

    def enter(self) -> None:
        """See `LoadBoard`."""
        assert self._slot is not None
        self._in_flight += 1
        self._whole[_IN_FLIGHT + self._slot] = self._in_flight

    def leave(self) -> None:
        """See `LoadBoard`."""
        assert self._slot is not None
        assert self._in_flight > 0
        self._in_flight -= 1
        if self._in_flight == 0:
            # First: a reader that sees no request must not see an old time with it.
            self._real[_IDLE + self._slot] = self._clock()
        self._whole[_IN_FLIGHT + self._slot] = self._in_flight

    def note_ttft(self, seconds: float) -> None:
        """See `LoadBoard`."""
        assert self._slot is not None
        old_s = self._ttft_s
        self._ttft_s = seconds if old_s == 0 else old_s + _TTFT_WEIGHT * (seconds - old_s)
        self._real[_TTFT + self._slot] = self._ttft_s

    def read(self) -> Load:
        """See `LoadBoard`. Of several gateways' times to first token it gives the shortest, the one to harm least."""
        whole, real = self._whole, self._real
        in_flight, idle_since_s, ttft_s = 0, 0.0, math.inf
        for slot in self._living():
            in_flight += whole[_IN_FLIGHT + slot]
            idle_since_s = max(idle_since_s, real[_IDLE + slot])
            ttft_s = min(ttft_s, real[_TTFT + slot] or math.inf)
        return Load(in_flight=in_flight, idle_since_s=idle_since_s, ttft_s=0.0 if math.isinf(ttft_s) else ttft_s)

    def close(self) -> None:
        """Free our slot and unmap the file. Idempotent."""
        if self._map.closed:
            return
        if self._slot is not None:
            self._whole[_IN_FLIGHT + self._slot] = 0
            self._whole[_PID + self._slot] = 0
            self._whole[_GENERATION] += 1
        for view in (self._whole, self._real, self._bytes):
            view.release()
        self._map.close()
        os.close(self._file)

    def _living(self) -> tuple[int, ...]:
        generation, seen_at_s, slots = self._seen
        now_s = self._clock()
        if generation != self._whole[_GENERATION] or not 0 <= now_s - seen_at_s < _ALIVE_FOR_S:
            generation = self._whole[_GENERATION]
            slots = tuple(slot for slot in range(SLOTS) if self._is_taken(slot))
            self._seen = (generation, now_s, slots)
        return slots

    def _is_taken(self, slot: int) -> bool:
        pid = self._whole[_PID + slot]
        return pid != 0 and is_alive(pid, self._whole[_START + slot])

    def _claim(self) -> None:
        slot = next((slot for slot in range(SLOTS) if not self._is_taken(slot)), None)
        if slot is None:
            raise StateUnavailable(f"all {SLOTS} slots of the load board belong to running gateways")
        self._whole[_PID + slot] = 0
        self._whole[_START + slot] = start_ticks(os.getpid()) or 0
        self._whole[_IN_FLIGHT + slot] = 0
        self._real[_IDLE + slot] = 0.0
        self._real[_TTFT + slot] = 0.0
        # Last: from here on readers look at the slot.
        self._whole[_PID + slot] = os.getpid()
        self._whole[_GENERATION] += 1
        self._slot = slot


def _repair(file: int) -> None:
    """Make the file new unless it is one of ours of this boot. In place: others may have it mapped."""
    head = os.pread(file, 24, 0)
    if os.fstat(file).st_size >= _FILE_BYTES and head == _MAGIC + bytes.fromhex(boot_id()):
        return
    # Never shorter than it is: who has it mapped would die of a bus error.
    fresh = _MAGIC + bytes.fromhex(boot_id())
    if os.pwrite(file, fresh.ljust(_FILE_BYTES, b"\0"), 0) != _FILE_BYTES:
        raise OSError("short write")


@contextmanager
def _locked(file: int) -> Iterator[None]:
    deadline_s = time.monotonic() + _LOCK_WITHIN_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.005)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
