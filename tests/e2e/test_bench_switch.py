"""`nightfill bench switch` as it is typed, on the smallest models: that it measures what it says, not how quick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.cli import Cli

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

MODELS = ("--model-a", "demo:tiny", "--model-b", "demo:tiny:1")


def test_each_arm_switches_and_only_kept_kv_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cli, chart = Cli(tmp_path), tmp_path / "switch.png"
    shown = cli.json("bench", "switch", *MODELS, "--tokens", "1024", "--rounds", "1", "--chart", chart)
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert shown["reused_tokens_after_wake"] == [1024, 1024]
    assert shown["reused_tokens_not_kept"] == [0, 0]
    arms = shown["arms"]
    assert all(arm["switches"] == 2 for arm in arms.values())
    assert {"stop", "process", "load", "prompt"} <= set(arms["reload"]["phases_s"])
    assert {"sleep", "load", "prompt"} <= set(arms["sleep"]["phases_s"])
    assert "warm" not in arms["sleep"]["phases_s"]
    for arm in ("sleep, warm-up", "sleep, warm-up, KV kept", "the same, KV not kept"):
        assert {"keep", "sleep", "load", "warm", "prompt"} <= set(arms[arm]["phases_s"])
    for arm in arms.values():
        assert sum(arm["phases_s"].values()) == pytest.approx(arm["total_s"], rel=0.02)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_model_that_is_none_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    assert "'huge' is unknown" in Cli(tmp_path).refused("bench", "switch", "--model-a", "demo:huge")
