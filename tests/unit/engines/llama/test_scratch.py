from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from nightfill.engines.llama import scratch
from nightfill.errors import BadSetting

if TYPE_CHECKING:
    from pathlib import Path


def test_the_folder_is_private_and_each_is_another(tmp_path: Path) -> None:
    one, two = (scratch.make(str(tmp_path / "chosen"), data_dir=tmp_path, need_bytes=1) for _ in range(2))
    assert one != two
    assert {one.parent, two.parent} == {tmp_path / "chosen"}
    assert stat.S_IMODE(one.stat().st_mode) == 0o700


def test_memory_is_taken_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(scratch, "SHARED_MEMORY", memory)
    assert scratch.make("", data_dir=tmp_path, need_bytes=1).parent == memory
    assert scratch.make("", data_dir=tmp_path, need_bytes=1 << 60).parent == tmp_path / "scratch"


def test_without_shared_memory_the_data_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "SHARED_MEMORY", tmp_path / "none")
    assert scratch.make("", data_dir=tmp_path, need_bytes=1).parent == tmp_path / "scratch"


def test_what_dead_processes_left_goes_and_nothing_else(tmp_path: Path) -> None:
    dead = tmp_path / "nightfill-4194999-abc"
    living = tmp_path / f"nightfill-{os.getpid()}-abc"
    others = tmp_path / "nightfill-notes"
    for folder in (dead, living, others):
        folder.mkdir()
        (folder / "slot").write_bytes(b"x")
    assert scratch.clean(tmp_path) == 1
    assert not dead.exists()
    assert (living / "slot").exists()
    assert (others / "slot").exists()


def test_a_folder_that_cannot_be_made_is_a_bad_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSetting, match="scratch_dir"):
        scratch.make(str(tmp_path / "file"), data_dir=tmp_path, need_bytes=1)
