"""Real servers for the tests in this folder; see `tests/serving.py` for what one can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from serving import Serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def serve_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with a cache that all servers of the session share, so that a demo model is made once."""
    return tmp_path_factory.mktemp("serve-home")


@pytest.fixture
def new_serve(serve_home: Path, tmp_path: Path) -> Iterator[Callable[..., Serve]]:
    """Makes servers, not started yet; takes the keyword arguments of `Serve`. All are closed after the test."""
    made: list[Serve] = []

    def make(name: str = "", **given: Any) -> Serve:
        serve = Serve(tmp_path / (name or f"serve-{len(made)}"), home=serve_home, **given)
        made.append(serve)
        return serve

    yield make
    failure: BaseException | None = None
    for serve in made:
        try:
            serve.close()
        except (AssertionError, OSError) as exc:
            failure = failure or exc
    if failure is not None:
        raise failure


@pytest.fixture
def serve(new_serve: Callable[..., Serve]) -> Serve:
    """A running server on the smallest demo model, for one test."""
    return new_serve("serve").start()


@pytest.fixture(scope="module")
def shared_serve(serve_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A running server on the smallest demo model, for all tests of a module that leave it as they found it."""
    serve = Serve(tmp_path_factory.mktemp("shared"), home=serve_home)
    try:
        yield serve.start()
    finally:
        serve.close()
