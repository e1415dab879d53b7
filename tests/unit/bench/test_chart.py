import struct
import sys
from pathlib import Path

import pytest

from nightfill.bench import chart
from nightfill.errors import BadSetting


def test_a_chart_is_a_png_with_room_for_each_arm(tmp_path: Path) -> None:
    sizes = []
    for arms in ({"cold": [9.0]}, {"cold": [9.0, 9.1], "filled": [0.2], "restarted": [0.25, 0.3]}):
        path = tmp_path / f"{len(arms)}.png"
        chart.draw(arms, path, title="Sooner", subtitle="repo")
        head = path.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        sizes.append(struct.unpack(">II", head[16:24]))
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1]


def test_drawing_leaves_the_global_state_of_matplotlib_alone(tmp_path: Path) -> None:
    chart.draw({"cold": [1.0]}, tmp_path / "a.png", title="t")
    assert "matplotlib.pyplot" not in sys.modules


def test_a_missing_matplotlib_is_told_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadSetting, match=r"nightfill\[chart\]"):
        chart.require_matplotlib()


def test_a_chart_that_cannot_be_written_is_a_bad_setting(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="cannot write the chart"):
        chart.draw({"cold": [1.0]}, tmp_path / "none" / "a.png", title="t")


def test_phases_are_drawn_one_behind_the_other(tmp_path: Path) -> None:
    path = tmp_path / "phases.png"
    names = ("stop", "process", "load", "warm", "prompt", "rest")
    chart.draw_phases({"reload": dict.fromkeys(names, 0.5), "sleep": {"load": 0.2}}, path, title="Sooner")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(BadSetting, match="cannot write the chart"):
        chart.draw_phases({"sleep": {"load": 0.2}}, tmp_path / "gone" / "a.png", title="Sooner")
