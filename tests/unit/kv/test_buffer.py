from __future__ import annotations

import ctypes
import gc
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.errors import TierUnavailable
from nightfill.kv.buffer import ALIGNMENT, Buffers, capacity_for, padded


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 4097, 10_000, 1 << 20, (8 << 20) + 1])
def test_a_buffer_is_aligned_writable_and_as_long_as_asked(nbytes: int) -> None:
    view = Buffers().take(nbytes)
    assert len(view) == nbytes
    assert not view.readonly
    if nbytes:
        address = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
        assert address % ALIGNMENT == 0


def test_a_buffer_comes_back_only_when_the_last_slice_of_it_is_gone() -> None:
    buffers = Buffers()
    view = buffers.take(5000)
    part = view[100:200].toreadonly()
    del view
    gc.collect()
    assert buffers.idle_bytes == 0
    del part
    assert buffers.idle_bytes == capacity_for(5000)


def test_two_living_buffers_never_share_memory() -> None:
    buffers = Buffers()
    del (first := [buffers.take(4096) for _ in range(3)])[1]
    second = [buffers.take(4096) for _ in range(3)]
    for number, view in enumerate(first + second):
        view[:] = bytes([number]) * 4096
    for number, view in enumerate(first + second):
        assert bytes(view) == bytes([number]) * 4096


def test_a_buffer_is_used_again_for_a_like_length() -> None:
    buffers = Buffers()
    del (view := [buffers.take(1 << 20)])[0]
    again = buffers.take((1 << 20) - 5)
    assert buffers.idle_bytes == 0
    assert len(again) == (1 << 20) - 5
    assert not view


def test_idle_memory_is_bounded() -> None:
    buffers = Buffers(max_idle_bytes=3 * 4096)
    views = [buffers.take(4096) for _ in range(10)]
    del views
    assert buffers.idle_bytes == 3 * 4096


def test_threads_share_a_pool() -> None:
    buffers = Buffers(max_idle_bytes=1 << 20)
    wrong: list[int] = []

    def churn(number: int) -> None:
        for _ in range(300):
            view = buffers.take(4096)
            view[:] = bytes([number]) * 4096
            if bytes(view) != bytes([number]) * 4096:
                wrong.append(number)

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert 0 < buffers.idle_bytes <= 4 * 4096


def test_no_memory_is_an_unavailable_tier() -> None:
    with pytest.raises(TierUnavailable, match="no memory"):
        Buffers().take(1 << 60)


@given(st.integers(1, 1 << 40))
def test_a_size_class_holds_its_length_in_whole_pages_and_wastes_little(nbytes: int) -> None:
    capacity = capacity_for(nbytes)
    assert capacity >= nbytes
    assert capacity % ALIGNMENT == 0
    assert capacity <= max(padded(nbytes), nbytes * 9 // 8 + 1)


def test_a_large_buffer_begins_where_a_huge_page_does() -> None:
    kept = [Buffers().take(nbytes) for nbytes in (2 << 20, (4 << 20) + 4096, 9 << 20)]
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(view)) for view in kept]
    assert [address % (2 << 20) for address in addresses] == [0, 0, 0]
    for view in kept:
        view[:] = bytes(len(view))  # all of it is there
