"""Which process a record belongs to, and whether it is still alive. Linux; elsewhere only the pid is compared."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import uuid
from pathlib import Path

from nightfill.state.jobs import WorkerId

_PROC = Path("/proc")


@functools.cache
def boot_id() -> str:
    """Identifies this boot of this host; 32 hex digits. Steady clocks of two boots cannot be compared."""
    try:
        return uuid.UUID((_PROC / "sys/kernel/random/boot_id").read_text().strip()).hex
    except (OSError, ValueError):
        return uuid.uuid5(uuid.NAMESPACE_DNS, platform.node()).hex


@functools.cache
def host_tag() -> str:
    """12 hex digits, equal for processes whose pids can be compared: one host, one boot, one pid namespace."""
    try:
        namespace = str((_PROC / "self/ns/pid").readlink())
    except OSError:
        namespace = ""
    return hashlib.sha256(f"{platform.node()}\0{boot_id()}\0{namespace}".encode()).hexdigest()[:12]


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is none, or only its zombie is left.

    0 where the system does not tell: a recycled pid cannot be told apart there.
    """
    if not (_PROC / "self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            return 0
        return 0
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The command's name comes second, in parentheses, and may itself hold blanks and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def is_alive(pid: int, ticks: int) -> bool:
    """Whether the process that had this pid and start time still runs."""
    return start_ticks(pid) == ticks


def this_worker() -> WorkerId:
    """An id of the calling process that no other process of any host has, before or after it."""
    pid = os.getpid()
    return WorkerId(f"{platform.node()}:{host_tag()}:{pid}:{start_ticks(pid)}")


def is_gone(worker: WorkerId) -> bool:
    """Whether the worker's process certainly runs no more. False for ids of other hosts or of another making."""
    match worker.rsplit(":", 3):
        case [_, tag, pid, ticks] if tag == host_tag() and pid.isdigit() and ticks.isdigit():
            return not is_alive(int(pid), int(ticks))
        case _:
            return False
