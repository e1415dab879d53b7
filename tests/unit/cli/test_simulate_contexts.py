from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from nightfill.cli.root import root
from nightfill.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

POLICIES = [
    "none", "lru", "lru_evenly", "recency_frequency", "recency_frequency_evenly", "value_at_once", "value",
    "clairvoyant", "unlimited",
]  # fmt: skip


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """Two days of ten clients, each ten times as busy as the one before, the odd ones by day only."""
    path = tmp_path / "rates.csv"
    rows = [
        f"m,{number},{day * 86400 + window * 600},{10 ** (number / 2) / 600}"
        for number in range(10)
        for day in range(2)
        for window in (range(48, 120) if number % 2 else range(144))
    ]
    path.write_text("\n".join(["model,client,t_s,rate_rps", *rows]))
    return path


def simulate(*args: str, tmp_path: Path) -> str:
    result = CliRunner().invoke(
        root, ["--data-dir", str(tmp_path), "simulate", *args], catch_exceptions=False, standalone_mode=False
    )
    assert result.exit_code == 0
    return result.output


def found(*args: str, tmp_path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(simulate(*args, "--json", tmp_path=tmp_path))
    return value


def test_every_policy_is_reported_for_every_seed_beside_the_bound(rates: Path, tmp_path: Path) -> None:
    report = found(str(rates), "--seeds", "1,2", tmp_path=tmp_path)
    assert [(one["seed"], one["policy"]) for one in report["results"]] == [
        (seed, policy) for seed in (1, 2) for policy in POLICIES
    ]
    for one in report["results"]:
        assert 0 <= one["hit_ratio"] <= 1
        if one["policy"] != "unlimited":
            assert one["saved_tokens"] <= one["bound_tokens"]
    budgets = {one["seed"]: one["day_tokens"] * one["days"] for one in report["seeds"]}
    assert all(
        one["background_tokens"] <= budgets[one["seed"]]
        for one in report["results"][:-1]
        if one["policy"] != "unlimited"
    )


def test_value_saves_more_than_the_references(rates: Path, tmp_path: Path) -> None:
    report = found(str(rates), "--seeds", "1,2", tmp_path=tmp_path)
    for seed in (1, 2):
        saved = {one["policy"]: one["saved_tokens"] for one in report["results"] if one["seed"] == seed}
        assert saved["value"] > max(saved[policy] for policy in POLICIES[:6])


def test_the_same_command_prints_the_same(rates: Path, tmp_path: Path) -> None:
    args = (str(rates), "--seeds", "4", "--clients", "12")
    assert found(*args, tmp_path=tmp_path) == found(*args, tmp_path=tmp_path)
    assert found(*args, tmp_path=tmp_path)["seeds"][0]["clients"] == 12


def test_people_get_a_table_with_the_seed_and_the_budget(rates: Path, tmp_path: Path) -> None:
    shown = simulate(str(rates), "--ttl", "2h", tmp_path=tmp_path)
    assert "seed 1: 10 contexts" in shown
    assert "a fill lasts 2 h" in shown
    assert [line.split()[0] for line in shown.splitlines() if line][2:] == POLICIES


def test_a_chart_is_drawn(rates: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    simulate(str(rates), "--chart", str(tmp_path / "chart.png"), tmp_path=tmp_path)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(BadInput, match=r"other\.csv is no trace"):
        simulate(str(other), tmp_path=tmp_path)
