"""The end of a process is watched from outside."""

from __future__ import annotations

import subprocess
import sys
import time

HANGING = """
import asyncio, threading
from nightfill.cli.leaving import end_within

async def run():
    stop = asyncio.Event()
    ending = asyncio.create_task(end_within(2.0, stop))
    threading.Thread(target=threading.Event().wait).start()
    print("up", flush=True)
    await asyncio.to_thread(input)
    stop.set()
    await ending
    {then}

asyncio.run(run())
"""


def ends_after_s(then: str) -> tuple[int, float]:
    """Status, and seconds from the stop to the end."""
    script = HANGING.format(then=then)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "up\n"
            began_s = time.monotonic()
            child.stdin.write("\n")
            child.stdin.flush()
            return child.wait(30), time.monotonic() - began_s
        finally:
            child.kill()


def test_a_thread_that_never_ends_does_not_keep_a_worker() -> None:
    status, took_s = ends_after_s("pass")
    assert status == 0
    assert took_s < 2.0


def test_neither_does_a_loop_that_stands_still() -> None:
    status, took_s = ends_after_s("import time; time.sleep(60)")
    assert status == 0
    assert took_s < 2.0
