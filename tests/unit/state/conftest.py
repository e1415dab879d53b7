"""One set of tests for every store behind the protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.stores import STORES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fakes.stores import HostClock, Store
    from nightfill.state.access import AccessLog
    from nightfill.state.book import SourceBook
    from nightfill.state.jobs import JobQueue
    from nightfill.state.state import State


@pytest.fixture(params=sorted(STORES))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made = STORES[request.param](tmp_path)
    yield made
    await made.aclose()


@pytest.fixture
def state(store: Store) -> State:
    return store.open()


@pytest.fixture
def clock(store: Store) -> HostClock:
    return store.clock


@pytest.fixture
def jobs(state: State) -> JobQueue:
    return state.jobs


@pytest.fixture
def book(state: State) -> SourceBook:
    return state.book


@pytest.fixture
def access(state: State) -> AccessLog:
    return state.access
