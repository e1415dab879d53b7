from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fakes.state import FakeAccessLog
from nightfill.contexts import DEFAULT_TENANT, Form
from nightfill.gateway.journal import Journal
from nightfill.state.access import Access

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest


def row(number: int) -> Access:
    return Access(
        at_s=number,
        tenant=DEFAULT_TENANT,
        context=None,
        fingerprint=None,
        form=Form.CHAT,
        model="demo",
        layer="cold",
        prompt_tokens=0,
        promised_tokens=0,
        reused_tokens=0,
        output_tokens=0,
        ttft_s=0,
        total_s=0,
        restore_s=0,
        status=200,
    )


async def test_rows_are_written_in_batches_in_their_order() -> None:
    log = FakeAccessLog()
    sizes: list[int] = []
    plain = log.append

    async def append(rows: Sequence[Access]) -> None:
        sizes.append(len(rows))
        await plain(rows)

    log.append = append  # type: ignore[method-assign]
    async with Journal(log, on_drop=lambda _: None) as journal:
        for number in range(1200):
            journal.note(row(number))
    assert [r.at_s for r in log.rows] == list(range(1200))
    assert sizes == [500, 500, 200]


async def test_rows_wait_while_the_log_is_down_and_each_is_written_once() -> None:
    log = FakeAccessLog(down=True)
    failed = asyncio.Event()
    plain = log.append

    async def append(rows: Sequence[Access]) -> None:
        try:
            await plain(rows)
        except Exception:
            failed.set()
            raise

    log.append = append  # type: ignore[method-assign]
    async with Journal(log, on_drop=lambda _: None, every_s=0.001, retry_s=0.001) as journal:
        journal.note(row(1))
        await asyncio.wait_for(failed.wait(), 2)
        log.down = False
        journal.note(row(2))
    assert [r.at_s for r in log.rows] == [1, 2]


async def test_what_does_not_fit_the_buffer_is_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    dropped: list[int] = []
    async with Journal(FakeAccessLog(down=True), on_drop=dropped.append, capacity=3) as journal:
        for number in range(5):
            journal.note(row(number))
        assert dropped == [1, 1]
    assert sum(dropped) == 5  # the rest could not be written at the end either


async def test_a_log_that_hangs_does_not_hold_the_end_up(caplog: pytest.LogCaptureFixture) -> None:
    log = FakeAccessLog()
    dropped: list[int] = []

    async def append(rows: Sequence[Access]) -> None:
        await asyncio.Event().wait()

    log.append = append  # type: ignore[method-assign]
    async with asyncio.timeout(2):
        async with Journal(log, on_drop=dropped.append, close_s=0.05) as journal:
            journal.note(row(1))
    assert dropped == [1]
