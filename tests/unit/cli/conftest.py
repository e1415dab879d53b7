from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.cli import Cli
from nightfill.contexts import Signature
from nightfill.engines.engine import Description, Reuse

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.delenv("NIGHTFILL_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return Cli(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder of sources."""
    path = tmp_path / "src"
    path.mkdir()
    (path / "a.py").write_text("print(1)\n")
    (path / "b.md").write_text("words\n")
    (path / "c.bin").write_bytes(b"\0")
    return path


@pytest.fixture
def description() -> Description:
    return Description(
        engine="local",
        model="m",
        signature=Signature("5" * 64),
        context_length=4096,
        kv_bytes_per_token=1024,
        slots=2,
        reuse=Reuse.TRIM,
        embeddings=False,
        version="1",
    )
