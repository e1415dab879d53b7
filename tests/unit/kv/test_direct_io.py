from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

import pytest

from nightfill.kv.direct_io import probe, read_all, write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


def test_a_write_goes_on_after_a_short_one_and_a_read_too(
    tmp_path: Path, page: Callable[[int], memoryview], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_write, whole_read = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, at: whole_write(fd, [parts[0][:4096]], at))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: whole_read(fd, [parts[0][:4096]], at))
    data, back = page(5), page(5)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        write_all(fd, data)
        assert os.fstat(fd).st_size == 5 * 4096
        read_all(fd, back)
    finally:
        os.close(fd)
    assert back == data


def test_a_file_that_ends_early_is_refused(tmp_path: Path, page: Callable[[int], memoryview]) -> None:
    (tmp_path / "file").write_bytes(bytes(5000))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(EOFError, match="after 5000 of 8192 bytes"):
            read_all(fd, page(2))
    finally:
        os.close(fd)


def test_a_device_that_takes_nothing_is_refused(
    tmp_path: Path, page: Callable[[int], memoryview], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(fd: int, parts: Sequence[memoryview], at: int) -> int:
        return 0

    monkeypatch.setattr(os, "pwritev", nothing)
    with pytest.raises(EOFError, match="took 0 of 4096"):
        write_all(0, page(1))


def test_a_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    probe(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_open_means_no_direct_io_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain_open = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return plain_open(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with caplog.at_level(logging.WARNING):
        assert probe(tmp_path) is False
    assert "no O_DIRECT" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_file_is_an_error_not_a_lack_of_direct_io(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "none")
