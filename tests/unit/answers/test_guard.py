"""The guard on its table of pairs, and rule by rule.

Rounds 1 to 4 of `pairs.csv` were written without looking at the rules, and each was measured before they were touched
again (docs/results.md has how they did at first sight); round 5 was written against the rules.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from nightfill.answers.embed import Embedder, load_embedder
from nightfill.answers.guard import MAX_WORDS, Refusal, agree
from nightfill.config import AnswerSettings

TABLE: Final = Path(__file__).with_name("pairs.csv")
with TABLE.open(encoding="utf-8", newline="") as _file:
    ROWS: Final = list(csv.DictReader(_file))
DIFFERENT: Final = [(row["question_1"], row["question_2"]) for row in ROWS if row["similar"] == "0"]
SAME: Final = [(row["question_1"], row["question_2"]) for row in ROWS if row["similar"] == "1"]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return load_embedder()


def test_the_table_is_large_and_of_many_kinds() -> None:
    kinds = Counter(row["kind"] for row in ROWS if row["similar"] == "0")
    assert len(DIFFERENT) >= 150
    assert len(SAME) >= 60
    assert len(kinds) >= 15
    assert min(kinds.values()) >= 5
    assert len({frozenset(pair) for pair in DIFFERENT + SAME}) == len(ROWS)


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in ROWS if row["similar"] == "0"}))
def test_no_adversarial_pair_passes_either_way_round(kind: str) -> None:
    pairs = [(row["question_1"], row["question_2"]) for row in ROWS if row["kind"] == kind]
    passed = [(one, other) for one, other in pairs if agree(one, other) is None or agree(other, one) is None]
    assert not passed


def test_most_true_paraphrases_pass_at_the_default_setting(embedder: Embedder) -> None:
    asked, stored = zip(*SAME, strict=True)
    near = (embedder.embed(asked) * embedder.embed(stored)).sum(axis=1) >= AnswerSettings().min_similarity
    passed = [ok and agree(*pair) is None for ok, pair in zip(near, SAME, strict=True)]
    assert sum(passed) >= 0.75 * len(SAME)


def test_a_threshold_alone_would_serve_most_of_the_adversarial_pairs(embedder: Embedder) -> None:
    asked, stored = zip(*DIFFERENT, strict=True)
    near = (embedder.embed(asked) * embedder.embed(stored)).sum(axis=1) >= 0.9
    assert near.mean() > 0.5


def test_a_question_agrees_with_itself() -> None:
    for question in {text for pair in SAME for text in pair}:
        assert agree(question, question) is None
        assert agree(question, question.rstrip("?") + " ?") is None
        assert agree(f"Hi, {question[0].lower()}{question[1:]}", question) is None


@pytest.mark.parametrize(
    ("asked", "stored", "reason"),
    [
        ("Can I take 2 pills?", "Can I take two pills?", None),
        ("Can I take 2 pills?", "Can I take twelve pills?", Refusal.NUMBER),
        ("Is $1,500 enough?", "Is 1500 dollars enough?", None),
        ("Is $1,500 enough?", "Is $15,00 enough?", Refusal.NUMBER),
        ("Who was the 2nd mayor?", "Who was the second mayor?", None),
        ("What is due on 2024-05-03?", "What is due on May 3rd, 2024?", None),
        ("What is due on 2024-05-03?", "What is due on March 5, 2024?", Refusal.DATE),
        ("Do you open at 8 am?", "Do you open at 08:00?", None),
        ("Do you open at noon?", "Do you open at midnight?", Refusal.DATE),
        ("Why isn't the lamp on?", "Why is the lamp not on?", None),
        ("Why isn't the lamp on?", "Why is the lamp on?", Refusal.NEGATION),
        ("Does IT pay for laptops?", "Does it pay for laptops?", Refusal.NAME),
        ("Is the visa for the US free?", "Is the visa for the USA free?", None),
        ("What does `a_b` do?", "What does `a_c` do?", Refusal.QUOTED),
        ("What does os.path do?", "What does os.walk do?", Refusal.CODE),
        ("Do all rooms have wifi?", "Do most rooms have wifi?", Refusal.QUANTITY),
        ("When do you open?", "Where do you open?", Refusal.QUESTION),
        ("Who wins the race?", "Who won the race?", Refusal.TENSE),
        ("Should the tank be full?", "Must the tank be full?", Refusal.TENSE),
        ("How does he vote?", "How does she vote?", Refusal.PERSON),
        ("Is my train late?", "Is your train late?", Refusal.PERSON),
        ("Is the way to Rome closed?", "Is the way from Rome closed?", Refusal.ROLE),
        ("Do dogs chase cats?", "Do cats chase dogs?", Refusal.ORDER),
        ("Does the fee cover tax?", "Is tax covered by the fee?", None),
        ("Does the fee cover tax?", "Is the fee covered by tax?", Refusal.ORDER),
        ("Are cats and dogs allowed?", "Are dogs and cats allowed?", None),
        ("What is the price of the plan?", "What is the plan's price?", None),
        ("My card is stolen. What should I do?", "What should I do if my card is stolen?", None),
        ("My card was declined, why?", "Why was my card declined?", None),
        ("Who fired?", "Who was fired?", Refusal.ROLE),
        ("Who do I call?", "Who calls me?", Refusal.PERSON),
        ("Why doesn't a man who smokes cough?", "Why does a man who doesn't smoke cough?", Refusal.NEGATION),
        ("Does A imply not B?", "Does not A imply B?", Refusal.NEGATION),
        ("What is vitamin A?", "What is a vitamin?", Refusal.NAME),
        ("How Do I Reset A Password?", "How do I reset a password?", None),
        ("Is 5 MB big?", "Is 5 Mb big?", Refusal.NAME),
        ("How big is it in Rome?", "How large is it in Rome?", None),
        ("Where is the lost property?", "Where can I find the lost property?", None),
        ("What is rust?", "What is moss?", Refusal.WORD),
        ("?", "?", Refusal.LENGTH),
        ("is it the", "is it the", Refusal.LENGTH),
    ],
)
def test_each_rule_says_why(asked: str, stored: str, reason: Refusal | None) -> None:
    assert agree(asked, stored) == reason
    assert agree(stored, asked) == reason


@pytest.mark.parametrize(
    "question",
    [
        "Is jo@example.org blocked?",
        "Why does +44 20 7946 0958 call me?",
        "Is DE89 3704 0044 0532 0130 00 a valid IBAN?",
        "Was 4111 1111 1111 1111 charged twice?",
        "What is my balance?",
        "What's my account number?",
        "Where do I see my social security number?",
        "My name is Jo, which plan do I have?",
        "Is order number A-1234 shipped?",
        "I am 34 years old, what does it cost?",
        "Who uses 192.168.0.17?",
        "Is 555-0123 the right line?",
        "Is the card ending in 4242 blocked?",
        "What do my test results mean?",
    ],
)
def test_nothing_that_looks_personal_is_answered_by_another_answer(question: str) -> None:
    assert agree(question, question) is Refusal.PERSONAL


def test_long_questions_are_answered_anew() -> None:
    question = "Does this " + "very long " * MAX_WORDS + "text end?"
    assert agree(question, question) is Refusal.LENGTH


@pytest.mark.parametrize(
    "text", ["", " ", "\0", "‹0›", "‹7› what?", "((((", "'s 's", "\ud800", "a" * 5000, "1" * 5000 + "?", "¿Qué?"]
)
def test_no_text_breaks_it(text: str) -> None:
    agree(text, "What is rust?")
    agree("What is rust?", text)
    agree(text, text)
