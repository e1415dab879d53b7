from __future__ import annotations

from dataclasses import replace

import pytest

from nightfill.answers.look import Kind, Look, Result, report
from nightfill.answers.shadow import Judged, outcome, shadow_report, shadow_word
from nightfill.contexts.context import DEFAULT_TENANT, Form
from nightfill.state.access import Access

ROW = Access(
    at_s=0,
    tenant=DEFAULT_TENANT,
    context=None,
    fingerprint=None,
    form=Form.CHAT,
    model="m",
    layer="cold",
    prompt_tokens=9,
    promised_tokens=0,
    reused_tokens=0,
    output_tokens=3,
    ttft_s=0.1,
    total_s=0.2,
    restore_s=0,
    status=200,
)


def row(*looks: Look, shadow: str = "", layer: str = "cold") -> Access:
    return replace(ROW, looked=f"{report(looks)} {shadow}".strip(), layer=layer)


def look(kind: Kind, result: Result, detail: str = "", *, seconds: float = 0.001) -> Look:
    return Look(kind=kind, result=result, seconds=seconds, detail=detail)


MISSED = (look(Kind.EXACT, Result.MISS), look(Kind.NEAR, Result.MISS))


def test_would_be_hits_are_told_apart_by_what_the_model_said() -> None:
    found = shadow_report(
        [
            row(*MISSED, shadow=shadow_word(None, None)),
            row(look(Kind.EXACT, Result.HIT), shadow=shadow_word(Kind.EXACT, 1.0)),
            *[row(MISSED[0], look(Kind.NEAR, Result.HIT), shadow=shadow_word(Kind.NEAR, 0.9))] * 3,
            row(MISSED[0], look(Kind.NEAR, Result.HIT), shadow=shadow_word(Kind.NEAR, 0.3)),
            row(MISSED[0], look(Kind.NEAR, Result.HIT), shadow=shadow_word(Kind.NEAR, None)),
            row(MISSED[0], look(Kind.NEAR, Result.GUARD, "number"), shadow=shadow_word(None, None)),
        ]
    )
    assert found.requests == 8
    assert found.judged == {Kind.EXACT: Judged(same=1), Kind.NEAR: Judged(same=3, different=1, unknown=1)}
    assert found.hit_rate == 6 / 8
    assert found.judged[Kind.NEAR].false_rate == 1 / 4
    assert found.judged[Kind.EXACT].false_rate == 0
    assert found.looked["near:guard/number"] == 1
    assert found.served == {}


def test_what_a_stored_answer_did_serve_is_counted_apart() -> None:
    found = shadow_report([row(look(Kind.EXACT, Result.HIT, seconds=0.00025), layer="answer"), row(*MISSED)])
    assert (found.requests, found.hit_rate) == (0, None)
    assert found.served == {Kind.EXACT: 1}
    assert found.seconds[Kind.EXACT] == pytest.approx([0.00025, 0.001])


def test_few_cases_prove_little() -> None:
    few, many = Judged(same=10).false_rate_bound, Judged(same=2000, different=2).false_rate_bound
    assert few is not None
    assert many is not None
    assert few == pytest.approx(0.2775, abs=1e-4)
    assert many == pytest.approx(0.00364, abs=1e-5)
    assert Judged(unknown=3).false_rate is Judged().false_rate_bound is None


def test_rows_that_say_nothing_or_something_of_tomorrow_are_left_aside() -> None:
    odd = ["", "shadow", "shadow:later:0.5", "exact", "later:hit:0.2", "a:b:c:d"]
    found = shadow_report([replace(ROW, looked=words) for words in odd])
    assert (found.requests, found.looked) == (0, {})


def test_how_alike_is_alike_is_for_the_reader_to_say() -> None:
    assert [outcome(alike) for alike in (1.0, 0.85, 0.849, None)] == ["same", "same", "different", "unknown"]
    assert outcome(0.8, least=0.7) == "same"
