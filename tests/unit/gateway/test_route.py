from __future__ import annotations

from collections import Counter
from typing import Final

import pytest

from nightfill.errors import BadRequest, NotFound
from nightfill.gateway.route import Candidate, Health, Reason, order, serving

LEAD: Final = 1000
SESSION: Final = b"a" * 32
"""Its own order of the engines is c, a, b."""
HOLDER, TIER, LOAD, STUCK = Reason.HOLDER, Reason.TIER, Reason.LOAD, Reason.SESSION


def one(name: str, tokens: int = 0, distance: int | None = None, *, ejected: bool = False) -> Candidate:
    return Candidate(name=name, tokens=tokens, distance=distance, ejected=ejected)


def out(name: str, tokens: int = 0, distance: int | None = None) -> Candidate:
    return one(name, tokens, distance, ejected=True)


@pytest.mark.parametrize(
    ("candidates", "expected", "reason"),
    [
        # alone
        ([one("a")], "a", LOAD),
        ([one("a", 9 * LEAD)], "a", LOAD),
        ([out("a")], "a", LOAD),
        ([one("a", 0, 0)], "a", HOLDER),
        # ties: the name
        ([one("b"), one("a")], "ab", LOAD),
        ([one("b", 7), one("c", 7), one("a", 7)], "abc", LOAD),
        ([one("b", 7, 0), one("a", 7, 0)], "ab", HOLDER),
        ([one("b", 7, 2), one("a", 7, 2)], "ab", TIER),
        # tokens in flight
        ([one("a", 2), one("b", 1), one("c", 3)], "bac", LOAD),
        ([one("a", 2, 1), one("b", 1, 1)], "ba", TIER),
        # who holds the KV, then the nearest tier, then nobody
        ([one("a"), one("b", 0, 2), one("c", 0, 0)], "cba", HOLDER),
        ([one("a", 0, 2), one("b", 0, 1)], "ba", TIER),
        ([one("a", 0, 3), one("b")], "ab", TIER),
        ([one("a"), one("b", 500, 0)], "ba", HOLDER),
        ([one("a", 500, 1), one("b", 0, 2)], "ab", TIER),
        ([one("a", 3, 0), one("b", 2, 0), one("c", 0, 1)], "bac", HOLDER),
        # a holder that has much to do
        ([one("a", LEAD, 0), one("b")], "ab", HOLDER),
        ([one("a", LEAD + 1, 0), one("b")], "ba", LOAD),
        ([one("a", LEAD + 1, 0), one("b", 0, 2)], "ba", TIER),
        ([one("a", 2 * LEAD, 0), one("b", LEAD, 1)], "ab", HOLDER),
        ([one("a", 2 * LEAD + 1, 0), one("b", LEAD, 1), one("c", 0)], "bca", TIER),
        ([one("a", 5 * LEAD, 0), one("b", 5 * LEAD)], "ab", HOLDER),
        # ejected ones come last, whatever they hold
        ([out("a"), one("b", 900)], "ba", LOAD),
        ([out("a", 0, 0), one("b", 0)], "ba", LOAD),
        ([out("a", 0, 0), one("b", 9 * LEAD, 2)], "ba", TIER),
        ([out("a"), out("b"), one("c")], "cab", LOAD),
        ([out("c", 0, 0), out("a"), out("b", 0, 1)], "cba", HOLDER),
        ([out("b", 3), out("a", 4)], "ba", LOAD),
        # what an ejected one has to do says nothing of the others
        ([out("a", 0), one("b", 5 * LEAD, 0), one("c", 5 * LEAD - 1)], "bca", HOLDER),
    ],
)
def test_health_then_kv_then_load_then_name(candidates: list[Candidate], expected: str, reason: Reason) -> None:
    turns = order(candidates, session=None, lead_tokens=LEAD)
    assert "".join(candidates[turn.index].name for turn in turns) == expected
    assert turns[0].reason is reason


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([one("a"), one("b"), one("c")], "cab"),
        ([one("c"), one("b"), one("a")], "cab"),
        # it stays, whoever holds the context's KV and whoever has less to do
        ([one("a", 0, 0), one("b", 0, 1), one("c", 900)], "cab"),
        # unless its engine is ejected, or has much more to do
        ([one("a"), one("b"), out("c")], "abc"),
        ([one("a"), one("b"), one("c", LEAD + 1)], "abc"),
        ([one("a", LEAD + 1), one("b"), one("c", LEAD + 1)], "bca"),
        ([one("a"), one("b"), one("c", LEAD)], "cab"),
        ([out("a"), one("b"), out("c")], "bca"),
        ([out("a"), out("b"), out("c")], "cab"),
        # all have much to do: nobody much more
        ([one("a", 9 * LEAD), one("b", 9 * LEAD), one("c", 9 * LEAD + 1)], "cab"),
        # an engine that comes or goes moves no session but its own
        ([one("a"), one("c")], "ca"),
        ([one("a"), one("b")], "ab"),
    ],
)
def test_a_session_has_an_order_of_its_own(candidates: list[Candidate], expected: str) -> None:
    turns = order(candidates, session=SESSION, lead_tokens=LEAD)
    assert "".join(candidates[turn.index].name for turn in turns) == expected
    assert {turn.reason for turn in turns} == {STUCK}


def test_sessions_spread_evenly_and_only_those_of_a_lost_engine_move() -> None:
    engines = [one(name) for name in ("a", "b", "c", "d")]
    sessions = [n.to_bytes(32, "big") for n in range(4000)]

    def first(session: bytes, among: list[Candidate]) -> str:
        return among[order(among, session=session, lead_tokens=LEAD)[0].index].name

    before = {session: first(session, engines) for session in sessions}
    assert all(850 < count < 1150 for count in Counter(before.values()).values())
    assert len(set(before.values())) == 4
    for session in sessions:
        now = first(session, engines[:3])
        assert now == before[session] or before[session] == "d"


@pytest.mark.parametrize(
    ("model", "models", "expected"),
    [
        ("a", ["a"], (0,)),
        (None, ["a"], (0,)),
        (None, ["a", "a"], (0, 1)),
        ("b", ["a", "b", "b"], (1, 2)),
    ],
)
def test_who_serves_a_model(model: str | None, models: list[str], expected: tuple[int, ...]) -> None:
    assert serving(model, models) == expected


def test_an_unknown_model_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(NotFound, match="'c' is not served here; there are: a, b"):
        serving("c", ["b", "a", "b"])


def test_a_name_is_needed_where_there_are_several_models() -> None:
    with pytest.raises(BadRequest, match="model is required; there are a, b"):
        serving(None, ["b", "a"])


def test_one_failure_ejects_and_one_answer_readmits() -> None:
    health = Health()
    assert not health.ejected
    for _ in range(3):
        health = health.after(answered=False)
        assert health.ejected
    assert health.failures == 3
    assert health.after(answered=True) == Health()


def test_who_fails_again_and_again_is_probed_less_often_but_always_again() -> None:
    waits = [Health(failures).probe_in_s(check_s=10) for failures in (0, 1, 2, 3, 6, 7, 5000)]
    assert waits == [10, 0.5, 1, 2, 16, 30, 30]
