from __future__ import annotations

import msgspec
import pytest

from nightfill.contexts import Form, Tenant, Text
from nightfill.contexts.discovery_mind import Candidate, Mind

RULES = "".join(f"Rule {number}: what is numbered {number * 7919} comes first.\n" for number in range(40))


def mind(tenant: str = "ann", *, most_bytes: int = 1 << 20, max_bytes: int = 1 << 20) -> Mind:
    return Mind(Tenant(tenant), max_bytes=max_bytes, least_bytes=1024, requests=3, most_bytes=most_bytes)


def look(mind: Mind, text: str, *questions: str) -> list[Candidate | None]:
    found = []
    for at_s, question in enumerate(questions):
        messages = [{"role": "system", "content": text}, {"role": "user", "content": question}]
        found.append(mind.look({"messages": msgspec.Raw(msgspec.json.encode(messages))}, float(at_s)))
    return found


def test_a_prefix_is_a_candidate_from_so_many_requests_on_until_it_is_decided_about() -> None:
    one = mind()
    first, second, third, fourth = look(one, RULES, "a", "b", "c", "d")
    assert (first, second) == (None, None)
    assert third is not None
    assert (third.content, third.form, third.requests) == (Text(RULES), Form.CHAT, 3)
    assert fourth is not None
    assert fourth.name == third.name
    one.decide(fourth)
    assert look(one, RULES, "e") == [None]
    one.reconsider()
    assert look(one, RULES, "f") != [None]


def test_what_recurs_is_shown_without_text() -> None:
    one = mind()
    look(one, RULES, "a", "b", "c")
    (row,) = one.prefixes()
    assert (row["requests"], row["interval_p50_s"], row["last_at"], row["form"]) == (3, 1.0, 2.0, "chat")
    assert row["stake_tokens"] == pytest.approx(2 * len(RULES) / 4, abs=2)
    assert "Rule" not in str(row)


def test_texts_that_are_too_long_or_no_prompts_are_no_candidates() -> None:
    assert look(mind(most_bytes=1000), RULES, "a", "b", "c")[-1] is None
    assert mind().look({"prompt": msgspec.Raw(b"[1,2]")}, 0.0) is None


def test_memory_is_bounded() -> None:
    one = mind(max_bytes=100_000)
    for number in range(300):
        look(one, f"{number} {RULES}", "a")
    assert len(one) * 640 <= 100_000


def test_two_minds_have_secrets_of_their_own() -> None:
    found = [look(mind(tenant), RULES, "a", "b", "c")[-1] for tenant in ("ann", "bob")]
    keys = {one.key for one in found if one is not None}
    assert len(keys) == 2
