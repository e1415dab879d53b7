"""Starts a vLLM server and ends all of it: `python -m nightfill.engines.vllm.guard STOP_S PROGRAM ARGUMENT...`.

A server is a tree of processes, and some of them outlive a main process that is killed. This one stands between them
and nightfill: when its standard input closes, because nightfill stops the server or died by whatever signal, it tells
the main process alone to end, as vLLM wants it, and after STOP_S seconds kills what is left; when the main process ends
by itself, it kills what that leaves. A signal at the parent's death (PR_SET_PDEATHSIG) in place of it would reach one
process only, and asyncio cannot set it. Ends with the main process's status. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from typing import Final

from nightfill.engines.vllm.tree import SHARED_MEMORY, descendants, shared_memory

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_LOOK_S: Final = 0.01
_OF_SERVERS: Final = re.compile(r"psm_|sem\.|torch_|vllm|__KMP_REGISTERED_LIB_")
"""Files that vLLM and its libraries make there for one server; others that it has mapped, our own tier's among them,
are for several.
"""


def main() -> int:
    """Run until the server has ended."""
    stop_s, command = float(sys.argv[1]), sys.argv[2:]
    os.setpgid(0, 0)  # Ctrl-C in a terminal is for nightfill, which lets requests end first
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the server come to us
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # No other thread runs here. Should somebody kill us, the main process still ends in order.
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),
        )
    except OSError as error:
        sys.stderr.write(f"{command[0]}: cannot be started: {error.strerror}\n")
        return 127
    ended = os.pidfd_open(server.pid)
    held: set[int] = set()
    if ended not in select.select([0, ended, told], [], [])[0]:
        held = shared_memory(descendants(os.getpid()))
        server.terminate()
        select.select([ended], [], [], stop_s)
    held |= _kill_all()
    for file in SHARED_MEMORY.iterdir():
        with contextlib.suppress(OSError):  # somebody else's, or gone
            if _OF_SERVERS.match(file.name) and file.stat().st_ino in held:
                file.unlink()
    status = server.wait()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0):  # or the orphans that were killed stay zombies where nobody else reaps them
            pass
    return status if status >= 0 else 128 - status


def _kill_all() -> set[int]:
    """SIGKILL to all that is left below us, until nothing is; what it held in shared memory."""
    held = set()
    while left := descendants(os.getpid()):
        held |= shared_memory(left)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_S)
    return held


if __name__ == "__main__":
    sys.exit(main())
