"""The examples of the documents that need a server, run as they stand against one with the smallest demo model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from documents import PAGES, clean_environment, examples_of, name, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

ADDRESS: Final = "http://127.0.0.1:8700"
"""Of the documents; the test's own is put in its place."""
SOURCE: Final = "".join(f"def limit_{n}(value: int) -> int:\n    return min(value, {n})\n\n\n" for n in range(200))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    program = str(Path(sys.executable).with_name("nightfill"))
    with subprocess.Popen(
        [program, "serve", "--model", "demo:tiny", "--port", "0", "--json"],
        env=clean_environment(home),
        stdout=subprocess.PIPE,
        text=True,
    ) as serving:
        assert serving.stdout is not None
        try:
            yield json.loads(serving.stdout.readline())["url"]
        finally:
            serving.send_signal(signal.SIGTERM)
            assert serving.wait(60) == 0


@pytest.mark.parametrize("page", [page for page in PAGES if examples_of(page, "tested with a server")], ids=name)
def test_examples_run_against_a_server(page: Path, address: str, home: Path, tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "limits.py").write_text(SOURCE, encoding="utf-8")
    for example in examples_of(page, "tested with a server"):
        here = replace(example, body=example.body.replace(ADDRESS, address))
        run(here, tmp_path, clean_environment(home))
