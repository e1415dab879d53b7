"""What every long-running command opens first: data folder, state, KV store."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nightfill.cli.root import environment
from nightfill.cli.settings import cache_dir
from nightfill.errors import BadSetting
from nightfill.state.board import MmapLoadBoard
from nightfill.state.fleet_board import FleetBoard, FleetState
from nightfill.state.process import host_tag

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from nightfill.cli.workspace import Workspace
    from nightfill.config import Settings
    from nightfill.kv import Store
    from nightfill.state.load import LoadBoard
    from nightfill.state.state import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """The parts that serving and background work share."""

    settings: Settings
    data_dir: Path
    cache_dir: Path
    state: State
    store: Store

    @property
    def board_path(self) -> Path:
        """The load board's file."""
        return self.data_dir / "load.board"


@contextlib.asynccontextmanager
async def open_board(rooms: Rooms, *, serves: bool, shared_engines: bool) -> AsyncIterator[LoadBoard]:
    """The load board: of this host, and of the fleet where hosts share the state and `shared_engines`, which other
    hosts' gateways send requests to. Raises StateUnavailable.
    """
    with contextlib.closing(MmapLoadBoard(rooms.board_path, writes=serves)) as local:
        if not shared_engines or not isinstance(rooms.state, FleetState):
            yield local
            return
        me = hashlib.sha256(f"{host_tag()}/{rooms.board_path.resolve()}".encode()).hexdigest()[:16]
        async with FleetBoard(local, rooms.state.loads, me=me, publishes=serves) as board:
            yield board


@contextlib.asynccontextmanager
async def open_rooms(workspace: Workspace) -> AsyncIterator[Rooms]:
    """Open everything, and close it again in reverse. Raises BadSetting, StateUnavailable."""
    folder = workspace.data_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise BadSetting(f"data_dir {str(folder)!r} cannot be made: {exc.strerror}", param="data_dir") from exc
    store = workspace.open_store()
    try:
        async with workspace.open_state() as state:
            yield Rooms(
                settings=workspace.settings,
                data_dir=folder,
                cache_dir=cache_dir(environment()),
                state=state,
                store=store,
            )
    finally:
        store.close()


@contextlib.contextmanager
def sole(path: Path, what: str) -> Iterator[None]:
    """Be the only process that does `what` with the folder of `path`, while inside. Raises BadSetting.

    The lock goes with the process, however it ends.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            other = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise BadSetting(
                f"process {other} already {what} with {path.parent}; give another --data-dir", param="data_dir"
            ) from exc
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
