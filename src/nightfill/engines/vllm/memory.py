"""How much memory a server's processes take: of the host by /proc, of NVIDIA devices by nvidia-smi."""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nightfill.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_COMMAND: Final = ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
_WITHIN_S: Final = 20.0
_MIB: Final = 1 << 20
_ROW: Final = re.compile(r"\s*(\d+)\s*,\s*(\d+)(?:\s*MiB)?\s*")


def host_bytes(pids: Iterable[int]) -> int:
    """Proportional set size of these processes: what they share counts once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, StopIteration, ValueError):  # it has ended since
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
    return total


def device_bytes(listing: str, pids: Collection[int], *, engine: str) -> int:
    """Of these processes, over all devices, as nvidia-smi lists them.

    Lines in another shape are passed over: a driver without the figure says `[N/A]`. Raises EngineError, for `engine`,
    when there is nothing of these processes: inside a container they may be listed by their ids outside.
    """
    rows = [_ROW.fullmatch(line) for line in listing.splitlines()]
    found = [int(row[2]) * _MIB for row in rows if row is not None and int(row[1]) in pids]
    if not found:
        raise EngineError(f"cannot be measured: {_COMMAND[0]} does not say what its processes take", engine=engine)
    return sum(found)


async def device_listing(engine: str) -> str:
    """What nvidia-smi says of all processes. Raises EngineError, for `engine`."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*_COMMAND, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    except OSError as exc:
        raise EngineError(f"cannot be measured: {_COMMAND[0]}: {exc.strerror}", engine=engine) from exc
    try:
        async with asyncio.timeout(_WITHIN_S):
            output, _ = await process.communicate()
    except TimeoutError as exc:
        raise EngineError(f"cannot be measured: {_COMMAND[0]} is silent for {_WITHIN_S:g} s", engine=engine) from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise EngineError(f"cannot be measured: {_COMMAND[0]} ended with status {process.returncode}", engine=engine)
    return output.decode(errors="replace")
