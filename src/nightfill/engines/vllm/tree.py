"""The processes below another one, as /proc shows them. Standard library only: a server's guard is small."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - nothing is made there


def descendants(root: int) -> list[int]:
    """All running processes below `root`, without it; parents before their children. No zombies."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended since
                state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    children[int(parent)].append(int(folder.name))
    found, left = [], [root]
    while left:
        below = children[left.pop()]
        found += below
        left += below
    return found


def shared_memory(pids: list[int]) -> set[int]:
    """Inodes of the files in /dev/shm that these processes have mapped.

    Inodes, as a file may be mapped under the name of a draft that it does not have any more.
    """
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
                fields = line.split(maxsplit=5)
                if len(fields) == 6 and Path(fields[5]).parent == SHARED_MEMORY:
                    found.add(int(fields[4]))
    return found
