"""A state file without a thread, so that virtual time does not run ahead of it."""

from __future__ import annotations

import pytest

from nightfill.state.sqlite.database import Database


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def hand_over(self: Database) -> None:
        asked, self._asked = self._asked, []
        for write in asked:
            self._do([write])
            write.tell()

    monkeypatch.setattr(Database, "_hand_over", hand_over)
