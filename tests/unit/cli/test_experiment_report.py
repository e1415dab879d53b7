from __future__ import annotations

from typing import Any

from nightfill.cli.experiment_report import compared, table_of, times_of


def arm(engine: str, **values: list[float]) -> dict[str, Any]:
    return {
        "engine": engine,
        "requests": 4,
        "failures": 1,
        "drafted_tokens": 0,
        "accepted_tokens": 0,
        "acceptance": 0.75 if engine == "two" else None,
        "measures": {
            name: {"n": len(found), "mean": sum(found) / len(found), "p50": found[0], "values": found}
            for name, found in values.items()
        },
    }


def found() -> dict[str, Any]:
    return {
        "name": "x",
        "arms": {
            "a": arm("one", ttft_s=[0.2, 0.2, 0.2], inter_token_s=[0.01, 0.03], tokens_per_s=[50.0]),
            "b": arm("two", ttft_s=[0.1, 0.1, 0.1], inter_token_s=[0.01, 0.0]),
        },
    }


def test_means_are_compared_with_an_interval() -> None:
    report = compared(found())
    assert report["ratios"]["ttft_s"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
    token = report["ratios"]["inter_token_s"]
    assert token["low"] < token["estimate"] == 0.25 < token["high"]
    assert "tokens_per_s" not in report["ratios"]
    assert "values" not in report["arms"]["a"]["measures"]["ttft_s"]
    assert report == compared(found())


def test_the_table_has_a_row_for_each_measure_that_an_arm_has() -> None:
    rows = {str(row[0]): row[1:] for row in table_of(compared(found()))}
    assert rows["time to first token"] == ["200 ms", "100 ms", "0.50", "0.50 - 0.50"]
    assert rows["guessed tokens taken"] == ["-", "75%", "", ""]
    assert rows["tokens per second"] == ["50", "-", "", ""]
    assert "engine seconds per request" not in rows


def test_only_times_above_0_are_drawn() -> None:
    times = times_of(found())
    assert times["arm b: per token"] == [0.01]
    assert list(times) == ["arm a: first token", "arm b: first token", "arm a: per token", "arm b: per token"]
