"""Launched servers for the tests in this folder, on a stand-in for the program."""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nightfill.config import Duration, EngineSettings, LaunchSettings, Settings
from nightfill.engines.backoff import BackoffPolicy
from nightfill.engines.vllm.server import VllmServer

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAM = Path(__file__).with_name("vllm_process.py")
QUICK = BackoffPolicy(base_s=0.01, cap_s=0.02, max_start_failures=2)
MARK = uuid.uuid4().hex


def engine_of(mood: str, folder: Path, *, start_timeout_s: float = 30, **launch: Any) -> EngineSettings:
    return EngineSettings(
        name="v1",
        kind="vllm",
        model=f"/models/{mood}",
        start_timeout_s=Duration(start_timeout_s),
        launch=LaunchSettings(
            command=(sys.executable, "-S", str(PROGRAM)),
            env={"FAKE_DIR": str(folder), "FAKE_MARK": MARK},
            cpu=True,
            **launch,
        ),
    )


def server_of(mood: str, folder: Path, *, stop_s: float = 10, again: bool = True, **given: Any) -> VllmServer:
    engine = engine_of(mood, folder, **given)
    return VllmServer(Settings(engines=(engine,)), engine, data_dir=folder, policy=QUICK, again=again, stop_s=stop_s)


def noted(folder: Path, file: str) -> list[Any]:
    path = folder / file
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


async def gone(pids: Sequence[int], within_s: float = 20) -> bool:
    """Whether all of them end in time."""
    return await asyncio.to_thread(_gone, pids, within_s)


def _gone(pids: Sequence[int], within_s: float) -> bool:
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([handle], [], [], within_s)[0]:
                return False
        finally:
            os.close(handle)
    return True
