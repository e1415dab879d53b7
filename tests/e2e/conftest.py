"""Real servers for the tests in this folder; see `tests/serving.py` and `tests/vllm_server.py` for what one can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from serving import Serve
from vllm_server import TINY, VllmServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
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


@pytest.fixture
def new_vllm(tmp_path: Path) -> Iterator[Callable[..., VllmServer]]:
    """Makes vLLM servers, not started yet; takes the keyword arguments of `VllmServer`. Closes them after the test."""
    made: list[VllmServer] = []

    def make(folder: str = "", **given: Any) -> VllmServer:
        server = VllmServer(tmp_path / (folder or f"vllm-{len(made)}"), **given)
        made.append(server)
        return server

    yield make
    _close(made)


@pytest.fixture(scope="session")
def shared_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., VllmServer]]:
    """Running vLLM servers, for all tests that leave them as they found them: one for each model, flags, environment.

    Use prompts of your own: another test's are in the prefix cache.
    """
    made: dict[object, VllmServer] = {}

    def get(*flags: str, model: Path = TINY, environment: Mapping[str, str] | None = None) -> VllmServer:
        key = (flags, model, *sorted((environment or {}).items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("vllm")
            made[key] = VllmServer(folder, model=model, flags=flags, environment=environment).start()
        return made[key]

    yield get
    _close(list(made.values()))


def _close(servers: list[VllmServer]) -> None:
    """Close all, whatever one of them says; then say it."""
    failure: BaseException | None = None
    for server in servers:
        try:
            server.close()
        except (AssertionError, OSError) as exc:
            failure = failure or exc
    if failure is not None:
        raise failure
