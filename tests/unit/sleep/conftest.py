"""A state file without a thread, so that virtual time does not run ahead of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest

from fakes.virtual_time import done_by
from nightfill.errors import StateUnavailable
from nightfill.state.sqlite.database import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from concurrent.futures import Future

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(
        self: Database, act: Callable[[sqlite3.Connection], T], *, durable: bool = False, scrub: bool = False
    ) -> Future[T]:
        if self._closed:
            raise StateUnavailable("closed")
        return done_by(lambda: self._transact(act, durable, scrub))

    monkeypatch.setattr(Database, "submit", submit)
