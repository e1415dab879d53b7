import json
from dataclasses import asdict

import pytest
from rich.console import Console

from nightfill.bench import COLD, FILLED, Prices, Sample, Setting, compare, this_machine, to_json, to_table


def samples(count: int, ttft_s: float, **rest: object) -> list[Sample]:
    return [
        Sample(index=n, due_s=20.0 * n, ttft_s=ttft_s, total_s=ttft_s + 0.1, **rest)  # type: ignore[arg-type]
        for n in range(count)
    ]


def setting() -> Setting:
    return Setting(
        command="nightfill bench",
        url="http://127.0.0.1:8700",
        model="tiny",
        context="repo",
        load="closed loop, 1 at a time",
        max_tokens=8,
        version="0",
        commit="abc",
        at="2026-01-01T00:00:00+00:00",
        machine=this_machine(),
    )


def good_run() -> dict[str, list[Sample]]:
    return {
        COLD: samples(20, 9.0, prompt_tokens=1000, cached_tokens=0, layer="cold"),
        FILLED: samples(100, 0.2, prompt_tokens=1000, cached_tokens=990, layer="fill"),
    }


def test_the_record_is_json_and_says_what_was_run_where() -> None:
    record = json.loads(json.dumps(to_json(compare(good_run()), setting())))
    assert (record["cold_ttft_s"], record["filled_ttft_s"]) == pytest.approx((9.0, 0.2))
    assert record["filled_speedup"]["estimate"] == pytest.approx(45.0)
    assert "cold_speedup" not in record
    assert record["filled"]["layers"] == {"fill": 100}
    assert record["machine"] == asdict(this_machine())
    assert record["machine"]["cores"] >= 1
    assert {"command", "commit", "load", "version", "percentile_method", "interval_method"} <= record.keys()
    assert (record["failed"], record["notes"]) == (0, [])


def test_prices_give_the_cost_of_a_query_and_when_the_fill_has_paid() -> None:
    report = compare(good_run(), prices=Prices(serving_per_hour=3600, background_per_hour=3600, background_s=8.8))
    assert report.costs[COLD].total_per_query == pytest.approx(9.1)
    assert report.costs[FILLED].total_per_query == pytest.approx(0.3 + 0.088)
    assert report.break_even_queries == pytest.approx(1.0)


def test_without_a_cold_arm_nothing_is_compared() -> None:
    report = compare({FILLED: good_run()[FILLED]}, prices=Prices(serving_per_hour=1))
    assert (dict(report.ratios), report.break_even_queries) == ({}, None)


@pytest.mark.parametrize(
    ("arms", "note"),
    [
        ({COLD: samples(20, 1.0, prompt_tokens=100, cached_tokens=60)}, "cold: not wholly cold, the server reused 60%"),
        ({FILLED: samples(20, 1.0, prompt_tokens=100, cached_tokens=60)}, "filled: the server reused only 60%"),
        ({FILLED: samples(15, 1.0, layer="fill") + samples(5, 1.0, layer="cold")}, "several layers: fill 15, cold 5"),
        ({COLD: samples(5, 1.0)}, "cold: p95 and p99 of 5 queries are little more than their maximum"),
        (
            {COLD: samples(20, 1.0) + samples(2, 1.0, error="HTTP 500: x")},
            "cold: 2 of 22 queries failed: 2 x HTTP 500: x",
        ),
    ],
)
def test_what_makes_figures_doubtful_is_said(arms: dict[str, list[Sample]], note: str) -> None:
    (found,) = compare(arms).notes
    assert note in found


def test_a_run_in_which_everything_failed_still_gives_a_record() -> None:
    report = compare({COLD: samples(2, 1.0, error="x"), FILLED: samples(3, 1.0, error="x")})
    record = json.loads(json.dumps(to_json(report, setting())))
    assert (record["failed"], record["cold_ttft_s"], record["filled"]["ttft_s"]) == (5, None, None)
    assert report.failed == 5


def test_the_table_shows_each_arm_with_its_figures_and_fits_a_terminal() -> None:
    console = Console(width=80)
    prices = Prices(serving_per_hour=3600, background_per_hour=3600, background_s=8.8)
    with console.capture() as capture:
        console.print(to_table(compare(good_run(), prices=prices)))
    lines = [line.strip() for line in capture.get().splitlines()]
    cold, filled, *_ = [line.split() for line in lines if line.startswith((COLD, FILLED))]
    assert cold == f"{COLD} 20/20 9 s 9 s 9 s 9 s 0/1000 - cold".split()
    assert filled == f"{FILLED} 100/100 200 ms 200 ms 200 ms 200 ms 990/1000 45x fill".split()
    assert "filled: first token 45 times sooner than cold (95 % interval 45 to 45)" in lines
    assert "filled: a query costs 0.388, 0.088 of it for the fill" in lines
    assert "the fill has paid for itself after 1.0 queries" in lines
