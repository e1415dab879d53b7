from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from nightfill.errors import StateUnavailable
from nightfill.state.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Sequence


class Book:
    """What is to be written, and what was; with `failures` left, a write fails."""

    def __init__(self, failures: Sequence[Exception] = ()) -> None:
        self.failures = list(failures)
        self.waiting: list[int] = []
        self.written: list[list[int]] = []
        self.writes = 0
        self.wrote = asyncio.Event()

    async def write(self) -> None:
        self.writes += 1
        self.wrote.set()
        if self.failures:
            raise self.failures.pop(0)
        some, self.waiting = self.waiting, []
        if some:
            self.written.append(some)


async def test_what_is_noted_together_is_written_together_and_the_rest_at_the_end() -> None:
    book = Book()
    async with Writer(book.write, name="a book", every_s=0.01) as writer:
        for number in (1, 2):
            book.waiting.append(number)
            writer.note()
        await writer.flush()
        assert book.written == [[1, 2]]
        book.waiting.append(3)
    assert book.written == [[1, 2], [3]]


async def test_without_a_note_it_writes_now_and_then() -> None:
    book = Book()
    async with Writer(book.write, name="a book", idle_s=0.001):
        await asyncio.wait_for(book.wrote.wait(), 5)


@pytest.mark.parametrize("failure", [StateUnavailable("away"), TimeoutError()])
async def test_a_failure_of_the_state_is_told_once_and_tried_again(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    book = Book([failure, failure])
    book.waiting = [1]
    async with Writer(book.write, name="a book", retry_s=0.001) as writer:
        writer.note()
        await asyncio.wait_for(writer.flush(), 5)
        assert book.written == [[1]]
    assert caplog.text.count("a book: ") == 1


async def test_a_failure_at_the_end_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    book = Book([StateUnavailable("away"), StateUnavailable("away")])
    async with asyncio.timeout(5):
        async with Writer(book.write, name="a book", retry_s=60):
            pass
    assert book.writes == 1
    assert "a book: away" in caplog.text


async def test_a_defect_is_raised_at_the_end_and_nobody_waits_for_what_is_never_written() -> None:
    writer = await Writer(Book([ValueError("a defect")]).write, name="a book").__aenter__()
    writer.note()
    await asyncio.wait_for(writer.flush(), 5)
    with pytest.raises(ValueError, match="a defect"):
        await writer.__aexit__()
