from __future__ import annotations

import asyncio
import os
import sys

import pytest

from nightfill.state.jobs import WorkerId
from nightfill.state.process import boot_id, host_tag, is_alive, is_gone, start_ticks, this_worker


def test_this_process_is_alive_and_itself() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    assert is_alive(os.getpid(), ticks)
    assert not is_alive(os.getpid(), ticks + 1), "a recycled pid"
    assert len(boot_id()) == 32
    assert not is_gone(this_worker())


async def test_a_process_that_ended_is_gone() -> None:
    script = "from nightfill.state.process import this_worker; print(this_worker())"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    assert is_gone(WorkerId(out.decode().strip()))


def test_a_zombie_is_gone() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert start_ticks(pid) is None
    os.waitpid(pid, 0)


@pytest.mark.parametrize("worker", ["", "w", "elsewhere:0123456789ab:1:2", f"here:{host_tag()}:x:2"])
def test_what_cannot_be_known_is_not_called_gone(worker: str) -> None:
    assert not is_gone(WorkerId(worker))
