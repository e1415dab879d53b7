from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from nightfill.errors import StateUnavailable
from nightfill.state import board as board_module
from nightfill.state.board import MmapLoadBoard
from nightfill.state.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "board"


@pytest.fixture
def opened(path: Path, clock: Clock) -> Iterator[Callable[..., MmapLoadBoard]]:
    boards: list[MmapLoadBoard] = []

    def open_board(*, writes: bool = True) -> MmapLoadBoard:
        boards.append(MmapLoadBoard(path, writes=writes, clock=clock))
        return boards[-1]

    yield open_board
    for board in boards:
        board.close()


def test_without_gateways_there_is_no_load(opened: Callable[..., MmapLoadBoard]) -> None:
    assert opened(writes=False).read() == Load(in_flight=0, idle_since_s=0.0, ttft_s=0.0)


def test_a_reader_sees_what_gateways_take_in_and_let_go(opened: Callable[..., MmapLoadBoard], clock: Clock) -> None:
    reader, one, two = opened(writes=False), opened(), opened()
    one.enter()
    one.enter()
    two.enter()
    assert reader.read().in_flight == 3
    clock.now_s = 1001.0
    one.leave()
    one.leave()
    clock.now_s = 1002.0
    two.leave()
    assert reader.read() == Load(in_flight=0, idle_since_s=1002.0, ttft_s=0.0)


def test_a_gateway_that_comes_later_is_seen_at_once(opened: Callable[..., MmapLoadBoard]) -> None:
    reader = opened(writes=False)
    assert reader.read().in_flight == 0
    opened().enter()
    assert reader.read().in_flight == 1


def test_what_a_closed_gateway_had_in_flight_is_gone_and_its_slot_free(
    opened: Callable[..., MmapLoadBoard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "SLOTS", 1)
    reader, gateway = opened(writes=False), opened()
    gateway.enter()
    assert reader.read().in_flight == 1
    with pytest.raises(StateUnavailable, match="all 1 slots"):
        opened()
    gateway.close()
    gateway.close()
    assert reader.read().in_flight == 0
    assert opened().read().in_flight == 0


def test_the_time_to_first_token_is_smoothed_and_the_shortest_counts(opened: Callable[..., MmapLoadBoard]) -> None:
    one, two = opened(), opened()
    one.note_ttft(1.0)
    one.note_ttft(2.0)
    assert two.read().ttft_s == pytest.approx(1.2)
    two.note_ttft(0.5)
    assert one.read().ttft_s == 0.5


KILLED = """
import os, signal, sys
from pathlib import Path
from nightfill.state.board import MmapLoadBoard
board = MmapLoadBoard(Path(sys.argv[1]))
board.enter()
print("in", flush=True)
sys.stdin.read()
"""


async def test_the_load_of_a_killed_gateway_is_ignored(
    path: Path, opened: Callable[..., MmapLoadBoard], clock: Clock
) -> None:
    pipe = asyncio.subprocess.PIPE
    gateway = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(path), stdin=pipe, stdout=pipe)
    assert gateway.stdout is not None
    assert await gateway.stdout.readline() == b"in\n"
    reader = opened(writes=False)
    assert reader.read().in_flight == 1
    gateway.kill()
    await gateway.wait()
    clock.now_s += 1
    assert reader.read().in_flight == 0


def test_a_pid_that_belongs_to_another_process_by_now_is_ignored(
    opened: Callable[..., MmapLoadBoard], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "start_ticks", lambda _: 1)
    opened().enter()
    assert opened(writes=False).read().in_flight == 0


@pytest.mark.parametrize("garbage", [b"", b"NFboard1", b"\xff" * 8192, os.urandom(2624)])
def test_a_damaged_file_is_made_anew(path: Path, opened: Callable[..., MmapLoadBoard], garbage: bytes) -> None:
    path.write_bytes(garbage)
    reader, gateway = opened(writes=False), opened()
    assert reader.read() == Load(in_flight=0, idle_since_s=0.0, ttft_s=0.0)
    gateway.enter()
    assert reader.read().in_flight == 1


def test_a_file_of_an_earlier_boot_is_made_anew(
    path: Path, opened: Callable[..., MmapLoadBoard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "boot_id", lambda: "ab" * 16)
    opened().enter()
    monkeypatch.undo()
    assert opened(writes=False).read().in_flight == 0


def test_a_path_that_cannot_be_had_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateUnavailable, match="load board"):
        MmapLoadBoard(tmp_path / "no" / "such" / "folder")
