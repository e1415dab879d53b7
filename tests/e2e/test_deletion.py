"""What is deleted is gone from every place, the engine's memory and its scratch folder among them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serving import eventually, source_text

if TYPE_CHECKING:
    from serving import Serve

pytestmark = pytest.mark.e2e


def scratch_files(serve: Serve) -> list[Path]:
    folders = [Path("/dev/shm"), serve.data_dir / "scratch"]
    return [file for folder in folders for file in folder.glob(f"nightfill-{serve.where['pid']}-*/*.slot")]


@pytest.mark.parametrize("by", ["http", "command"])
def test_a_deleted_context_leaves_store_scratch_and_slots(serve: Serve, by: str) -> None:
    text = source_text(11, functions=200)
    serve.put("gone", text)
    serve.put("kept", source_text(12, functions=40))
    serve.wait_ready("gone")
    serve.wait_ready("kept")
    filled = serve.ask(context="gone")
    assert filled.layer == "fill"
    assert serve.ask(context="kept").layer == "fill"
    assert scratch_files(serve)
    if by == "http":
        assert serve.request("DELETE", "/v1/nightfill/contexts/gone").status == 200
    else:
        assert serve.cli("context", "rm", "gone").returncode == 0
    eventually(lambda: not scratch_files(serve), within_s=10, what="the scratch folder is empty")
    # The same text comes back under another name. Whoever still had its KV would use it now.
    serve.put("again", text)
    assert serve.ask(context="again").reused < filled.reused / 4
    assert serve.ask(context="kept").layer == "fill"
