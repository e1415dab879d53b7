"""`nightfill simulate` of a block trace, as it is typed."""

from __future__ import annotations

from pathlib import Path

from fakes.cli import Cli

TRACE = Path(__file__).parents[1] / "simulate" / "data" / "mooncake_conversation_first_1000.jsonl.gz"
SIZES = ("--sizes", "128GiB,2TiB", "--bytes-per-token", "128KiB")


def test_the_result_is_one_json_object_with_each_policy_and_size(tmp_path: Path) -> None:
    found = Cli(tmp_path).json("simulate", TRACE, *SIZES)
    assert (found["kind"], found["requests"], found["prompt_blocks"]) == ("blocks", 1000, 27_305)
    assert (found["block_tokens"], found["bytes_per_token"], found["engines"]["count"]) == (512, 131_072, 8)
    kept = {(one["policy"], one["capacity_blocks"]): one for one in found["results"]}
    assert {policy for policy, _ in kept} == {"value", "lru", "lfu", "perfect_lfu", "min", "unlimited"}
    assert {capacity for _, capacity in kept} == {2048, 32_768}
    assert {"policy", "saved_tokens", "bound_tokens", "hit_ratio", "background_tokens"} <= kept["lru", 2048].keys()
    assert kept["lru", 2048]["hit_ratio"] < kept["value", 2048]["hit_ratio"] < kept["min", 2048]["hit_ratio"]


def test_the_table_names_sizes_as_they_were_given_and_the_machines_assumed(tmp_path: Path) -> None:
    text = Cli(tmp_path).ok("simulate", TRACE, *SIZES, "--engines", "3")
    assert text.count("128GiB") == text.count("2TiB") == 6
    assert "LRU to MIN" in text
    assert "3 engines, 8,000 tokens/s of prefill" in text


def test_a_chart_is_drawn_where_it_is_asked_for(tmp_path: Path) -> None:
    Cli(tmp_path).ok("simulate", TRACE, *SIZES, "--chart", tmp_path / "hits.png")
    assert (tmp_path / "hits.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_sizes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    assert "is not above 0" in cli.refused("simulate", TRACE, "--sizes", "1TiB,0")
    assert "must be a size" in cli.refused("simulate", TRACE, "--sizes", "1TiB,,2TiB")
    assert "hold no block" in cli.refused("simulate", TRACE, "--sizes", "1KiB")
    assert "cannot read" in cli.refused("simulate", tmp_path / "none.jsonl")
