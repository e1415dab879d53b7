"""How many jobs a second one core of a worker leases and completes, with a million others in the queue.

    python benchmarks/queue.py [--jobs 1000000] [--cycles 20000] [--clients 32] [--rounds 3] [--store sqlite]

A cycle is a lease and its completion, which returns what was set aside in the budgets of a user, a tenant and all; with
work, it also charges that to these budgets and to the ledger. One process does them, `--clients` at a time. The figures
are for one core: cycles over the seconds passed, or over the CPU seconds of the process where those are more (it has a
thread that writes). The server's own CPU seconds are not in them. `cycles_per_cpu_s` are over the CPU seconds
alone: what a busy machine, where a process waits for its turn and for the disk, tells of a quiet one.

The last line is one JSON object: `sqlite_cycles_per_s` (with `synchronous=NORMAL`) and `redis_cycles_per_s`, the
medians of the rounds; `jobs_present`; and in `stores` for each the rounds, those with work (`charged_cycles_per_s`),
`bytes_per_job`, `bytes_per_context` (but for its text and its tokens) and `poll_s`, a look that finds nothing to do.
"""
# ruff: noqa: A005 - the folder of a script comes first on the path, so this file stands for the standard library's
# `queue`, here and in each benchmark beside it. So the other one is put in its place before anybody misses it.

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a type checker finds this file as well
    from _queue import Empty as Empty
    from _queue import SimpleQueue as SimpleQueue

_path = sys.path[:]
sys.path[:] = [folder for folder in _path if Path(folder).resolve() != Path(__file__).resolve().parent]
sys.modules.pop("queue", None)
importlib.import_module("queue")
sys.path[:] = _path

if __name__ == "__main__":
    from _queue_cycles import main

    main(__doc__ or "")
