from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from nightfill.contexts import Form, Tenant, Text
from nightfill.contexts.discovery import quantile
from nightfill.contexts.discovery_prompt import Piece, Prompt
from nightfill.contexts.profile import BadLine, Contents, Measure, Profile
from nightfill.contexts.profile_log import Asked, Bad, Blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.profile_log import Line

MEMORY = 16 << 20


def synthetic(requests: int = 400) -> list[Blocks]:
    """Chats that grow, some for the first time: blocks of 512 tokens, the last one partial."""
    rng = random.Random(5)
    chats: list[list[int]] = []
    found = []
    for number in range(requests):
        ids = [*rng.choice(chats)[: rng.randrange(1, 20)]] if chats and rng.random() < 0.4 else []
        ids += [1000 * number + n for n in range(rng.randrange(1, 20))]
        chats.append(ids)
        found.append(Blocks(tuple(ids), 512 * len(ids) - rng.randrange(512), number * 3.0))
    return found


def profiled(lines: Sequence[Line], **measure: int) -> Profile:
    profile = Profile(Measure(**{"min_tokens": 4096, **measure}), max_bytes=MEMORY)
    for number, line in enumerate(lines, start=1):
        profile.add(line, file="log", number=number)
    profile.finish()
    return profile


def asked(text: str, *, tenant: str = "default", at_s: float | None = None, question: str = "") -> Asked:
    pieces = (Piece("system", text, plain=True), Piece("user", question, plain=True))
    return Asked(Prompt(Form.CHAT, "m", pieces), Tenant(tenant), at_s)


@pytest.mark.parametrize("min_tokens", [512, 4096, 5000])
def test_prefixes_of_a_trace_are_those_of_a_plain_count(min_tokens: int) -> None:
    trace = synthetic()
    blocks = -(-min_tokens // 512)
    times: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for request in trace:
        if len(request.ids) >= blocks:
            times[request.ids[:blocks]].append(request.at_s)
    gaps = [after - before for at in times.values() for before, after in pairwise(at)]
    profile = profiled(trace, min_tokens=min_tokens)
    totals = profile.sketch.totals
    assert profile.block_tokens == 512
    assert totals.distinct == len(times)
    assert totals.recurring == sum(len(at) > 1 for at in times.values())
    assert totals.recurrences == len(gaps)
    assert quantile(profile.sketch.gaps.values, 0.5) == quantile(gaps, 0.5)
    assert profile.prompt_tokens == sum(request.tokens for request in trace)
    assert (profile.first_s, profile.last_s) == (0.0, 3.0 * 399)


def test_a_trace_that_is_shorter_than_what_its_blocks_are_sized_by_is_counted_too() -> None:
    profile = profiled([Blocks((1, 2, 3), 140, 0.0), Blocks((1, 2, 3), 140, 5.0)], min_tokens=100)
    assert (profile.block_tokens, profile.sketch.totals.recurring) == (64, 1)


def test_the_size_of_blocks_may_be_given() -> None:
    profile = profiled([Blocks((1, 2), 100, 0.0)] * 2, min_tokens=100, block_tokens=50)
    assert [one.size for one in profile.sketch.findings()] == [100]


def test_lines_of_another_kind_and_bad_ones_are_counted_with_their_numbers() -> None:
    profile = Profile(Measure(min_tokens=10), max_bytes=MEMORY)
    lines: list[Line] = [asked("x"), Blocks((1,), 5, 0.0), Bad("no JSON object")]
    for number, line in enumerate(lines, start=1):
        profile.add(line, file="log", number=number)
    profile.finish()
    assert (profile.requests, profile.bad, profile.untimed) == (1, 2, 1)
    assert profile.bad_shown == [
        BadLine("log", 2, "of another kind than the first one"),
        BadLine("log", 3, "no JSON object"),
    ]


def test_few_bad_lines_are_remembered_of_many() -> None:
    profile = Profile(Measure(min_tokens=10), max_bytes=MEMORY)
    for number in range(1000):
        profile.add(Bad("no JSON object"), number=number)
    assert (profile.bad, len(profile.bad_shown)) == (1000, 10)


def test_tenants_share_no_prefix() -> None:
    profile = profiled([asked("long text " * 50, tenant=tenant) for tenant in ("a", "b", "a")], min_tokens=50)
    (found,) = profile.sketch.findings()
    assert (found.about.tenant, found.requests) == ("a", 2)


def test_texts_are_measured_by_bytes_per_token() -> None:
    profile = Profile(Measure(min_tokens=10, bytes_per_token=2.0), max_bytes=MEMORY)
    for question in ("a", "b"):
        profile.add(asked("x" * 100, question=question))
    (found,) = profile.sketch.findings()
    assert profile.tokens(found.size) == 50
    assert round(profile.prompt_tokens) == 101


def test_a_text_is_what_all_requests_of_a_finding_share() -> None:
    lines = [asked("The rules of the house.\n" * 20, question=question) for question in ("a?", "b?", "c?")]
    profile = profiled(lines, min_tokens=20)
    findings = profile.sketch.findings()
    contents = Contents(findings, Measure(min_tokens=20))
    (before,) = [contents.content(finding) for finding in findings]
    assert isinstance(before, str)
    assert "second time" in before
    for line in lines:
        contents.add(line)
    assert [contents.content(finding) for finding in findings] == [Text("The rules of the house.\n" * 20)]


def test_what_begins_with_a_piece_that_changes_is_spoiled() -> None:
    days = [
        asked(f"Today is 2024-05-{day:02}.\n" + "\n".join(f"Rule {n} of {n * 977} is kept." for n in range(40)))
        for day in (1, 1, 2, 2)
    ]
    others = [asked("\n".join(f"Other rule {n} of {n * 31} is kept by all." for n in range(40)))] * 2
    profile = profiled([*days, *others], min_tokens=100)
    assert sorted(profile.spoils(one.key) for one in profile.sketch.findings()) == [False, True, True]
