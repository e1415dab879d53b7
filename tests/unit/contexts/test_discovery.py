from __future__ import annotations

import math
import sys
import tracemalloc
from collections import defaultdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightfill.contexts.discovery import (
    NODE_BYTES,
    Finding,
    Gaps,
    Key,
    Sketch,
    Step,
    quantile,
    short_name,
    worth_showing,
)

PROMPTS = st.lists(st.text("ab", max_size=6), max_size=40)


def key_of(prefix: str) -> bytes:
    return prefix.encode()


def steps(prompt: str) -> list[Step]:
    """Of each prefix of a text, one character the step."""
    return [Step(key_of(prompt[:size]), size) for size in range(1, len(prompt) + 1)]


def sketched(prompts: list[str], *, max_nodes: int = 10_000) -> Sketch[str]:
    sketch: Sketch[str] = Sketch(max_nodes=max_nodes)
    for at_s, prompt in enumerate(prompts):
        sketch.add(steps(prompt), "about", float(at_s))
    return sketch


def plain_times(prompts: list[str]) -> dict[str, list[float]]:
    """When each prefix was met, as one would count it with all memory in the world."""
    times: dict[str, list[float]] = defaultdict(list)
    for at_s, prompt in enumerate(prompts):
        for size in range(1, len(prompt) + 1):
            times[prompt[:size]].append(float(at_s))
    return times


@given(PROMPTS)
def test_prefixes_that_recur_are_those_of_a_plain_count(prompts: list[str]) -> None:
    times = plain_times(prompts)
    expected = {
        key_of(prefix): (len(at), at[0], at[-1], sorted(after - before for before, after in pairwise(at)))
        for prefix, at in times.items()
        # At the longest at which no use has left it yet.
        if len(at) > 1 and all(len(times.get(prefix + next_one, ())) < len(at) for next_one in "ab")
    }
    found = {one.key: (one.requests, one.first_s, one.last_s, list(one.gaps)) for one in sketched(prompts).findings()}
    assert found == {key: (count, *rest, gaps[:]) for key, (count, *rest, gaps) in expected.items()}


@given(PROMPTS)
def test_totals_are_those_of_a_plain_count(prompts: list[str]) -> None:
    totals = sketched(prompts).totals
    shortest = {prefix: at for prefix, at in plain_times(prompts).items() if len(prefix) == 1}
    assert totals.distinct == len(shortest)
    assert totals.recurring == sum(len(at) > 1 for at in shortest.values())
    assert totals.recurrences == sum(len(at) - 1 for at in shortest.values())
    known = 0
    for index, prompt in enumerate(prompts):
        earlier = {other[:size] for other in prompts[:index] for size in range(1, len(other) + 1)}
        known += max((size for size in range(1, len(prompt) + 1) if prompt[:size] in earlier), default=0)
    assert totals.known_size == known


@given(PROMPTS)
def test_a_finding_lies_within_the_longest_shorter_one(prompts: list[str]) -> None:
    found = {one.key: one for one in sketched(prompts).findings()}
    for one in found.values():
        assert isinstance(one.key, bytes)
        shorter = [key for key in found if isinstance(key, bytes) and key != one.key and one.key.startswith(key)]
        assert one.within == max(shorter, key=len, default=None)


@given(PROMPTS, st.integers(1, 12))
def test_a_full_sketch_stays_within_its_bound_counts_nothing_too_much_and_says_what_may_be_missing(
    prompts: list[str], max_nodes: int
) -> None:
    sketch: Sketch[str] = Sketch(max_nodes=max_nodes)
    for at_s, prompt in enumerate(prompts):
        sketch.add(steps(prompt), "about", float(at_s))
        assert len(sketch) <= max_nodes
    times = plain_times(prompts)
    for one in sketch.findings():
        assert isinstance(one.key, bytes)
        assert one.requests <= len(times[one.key.decode()])
    shortest = [at for prefix, at in times.items() if len(prefix) == 1]
    totals = sketch.totals
    assert len(shortest) <= totals.distinct <= len(shortest) + totals.evicted_shortest
    true = sum(len(at) - 1 for at in shortest)
    assert true - totals.evicted_shortest <= totals.recurrences <= true
    # What came again within the horizon is counted.
    certain = sum(after - before < totals.complete_s for at in shortest for before, after in pairwise(at))
    assert totals.recurrences >= certain


def test_a_prefix_outlives_the_longer_ones_that_begin_with_it() -> None:
    sketch = sketched(["aaaa", "b"], max_nodes=4)
    assert sketch.get(b"a") is not None
    assert sketch.get(b"aaaa") is None
    assert sketch.totals.evicted_shortest == 0


def test_a_node_takes_no_more_memory_than_is_stated() -> None:
    count = 2000
    tracemalloc.start()
    try:
        sketch: Sketch[str] = Sketch(max_nodes=count)
        before, _ = tracemalloc.get_traced_memory()
        for at_s in range(40):  # more often than gaps are kept
            for path in range(count // 10):
                keys = [Step(f"{path}/{depth}".encode().ljust(16), depth) for depth in range(1, 11)]
                sketch.add(keys, "about", at_s * 1000.0 + path)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(sketch) == count
    assert sys.getsizeof(sketch) < NODE_BYTES
    assert (after - before) / count < NODE_BYTES


def test_requests_without_a_time_are_counted_without_gaps() -> None:
    sketch: Sketch[str] = Sketch(max_nodes=10)
    for at_s in (None, 5.0, None, 7.0):
        sketch.add(steps("a"), "about", at_s)
    (found,) = sketch.findings()
    assert (found.requests, found.gaps, found.last_s) == (4, (2.0,), 7.0)


def test_a_request_that_comes_late_to_the_log_makes_no_gap_below_zero() -> None:
    sketch: Sketch[str] = Sketch(max_nodes=10)
    for at_s in (5.0, 3.0):
        sketch.add(steps("a"), "about", at_s)
    assert sketch.findings()[0].gaps == (0.0,)


def test_gaps_are_a_sample_of_bounded_size() -> None:
    import random

    gaps = Gaps(8)
    for value in range(10_000):
        gaps.add(float(value), random.Random(value))
    assert len(gaps.values) == 8
    assert max(gaps.values) > 1000, "late ones come in too"


def finding(key: bytes, within: bytes | None, size: int, requests: int) -> Finding[str]:
    return Finding(
        key=key, within=within, about="about", size=size, requests=requests, first_s=None, last_s=None, gaps=()
    )


@pytest.mark.parametrize(
    ("findings", "shown"),
    [
        ([finding(b"a", None, 100, 10), finding(b"b", b"a", 200, 10)], ["b"]),  # nearly all go on to b
        ([finding(b"a", None, 100, 10), finding(b"b", b"a", 200, 5)], ["a", "b"]),
        ([finding(b"a", None, 100, 10), finding(b"b", b"a", 105, 5)], ["a"]),  # adds next to nothing
        ([finding(b"a", None, 100, 2), finding(b"b", None, 100, 9)], ["b", "a"]),
        (
            [finding(b"a", None, 9, 20), finding(b"b", b"a", 90, 10), finding(b"c", None, 90, 11)],
            ["c", "a", "b"],
        ),
    ],
)
def test_nested_findings_are_shown_where_each_has_something_of_its_own(
    findings: list[Finding[str]], shown: list[str]
) -> None:
    assert [short(one.key) for one in worth_showing(findings, top=9)] == shown


def test_the_bound_keeps_what_is_most_at_stake_and_mends_the_tree() -> None:
    found = [finding(b"a", None, 10, 90), finding(b"b", b"a", 100, 50), finding(b"c", b"b", 9000, 40)]
    assert [(short(one.key), one.within) for one in worth_showing(found, top=2)] == [("b", None), ("c", b"b")]
    assert [(short(one.key), one.within) for one in worth_showing(found, top=1)] == [("c", None)]


def short(key: Key) -> str:
    assert isinstance(key, bytes)
    return key.decode()


def test_a_short_name_is_hex_or_the_traces_own_number() -> None:
    assert short_name(bytes(range(16))) == "00010203"
    assert short_name(77) == "77"


def test_a_quantile_lies_between_its_neighbours() -> None:
    assert quantile([], 0.5) is None
    assert quantile([3.0], 0.9) == 3.0
    assert quantile([1.0, 2.0, 4.0, 3.0], 0.5) == 2.5
    assert math.isclose(quantile([0.0, 10.0], 0.9) or 0.0, 9.0)
