from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.answers.look import Kind, Look, Result, report
from nightfill.answers.shadow import shadow_word
from nightfill.contexts import DEFAULT_TENANT, ContextName, Form
from nightfill.state.access import Access
from nightfill.state.answers import Answer, AnswerKey, AnswerScope, Origin

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.cli import Cli
    from nightfill.state.sqlite import SqliteState


def looked(*looks: Look, alike: float | None = None, kind: Kind | None = None) -> str:
    return f"{report(looks)} {shadow_word(kind, alike)}"


MISS = Look(kind=Kind.EXACT, result=Result.MISS, seconds=0.0002)
NEAR = Look(kind=Kind.NEAR, result=Result.HIT, seconds=0.004)


async def note(state: SqliteState, *words: str, age_s: float = 0, context: str | None = None) -> None:
    await state.access.append(
        [
            Access(
                at_s=time.time() - age_s,
                tenant=DEFAULT_TENANT,
                context=ContextName(context) if context else None,
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
                looked=one,
            )
            for one in words
        ]
    )


async def store(state: SqliteState, context: str | None) -> None:
    found = await state.book.get(DEFAULT_TENANT, ContextName(context)) if context else None
    assert await state.answers.put(
        Answer(
            key=AnswerKey((context or "-").encode().ljust(32, b".")),
            scope=AnswerScope(b"s" * 32),
            tenant=DEFAULT_TENANT,
            context=found.name if found is not None else None,
            fingerprint=found.current if found is not None else None,
            model="m",
            question="",
            body=b"{}",
            origin=Origin.LIVE,
            at_s=0,
            ttl_s=60,
        )
    )


def test_stored_answers_are_listed_by_context_and_cleared(cli: Cli, folder: Path) -> None:
    assert "no contexts yet" in cli.ok("answers", "ls")
    cli.ok("context", "add", "repo", folder, "--answers", "exact")
    cli.ok("context", "add", "other", folder / "a.py")
    cli.state(lambda state: store(state, "repo"))
    cli.state(lambda state: store(state, "other"))
    cli.state(lambda state: store(state, None))
    rows = {row["context"]: row for row in cli.json("answers", "ls")}
    assert rows["repo"] == {"context": "repo", "mode": "exact", "origin": "live", "stored": 1, "used": 0, "uses": 0}
    assert rows["other"]["mode"] == "off"
    assert "repo     exact  live" in cli.ok("answers", "ls")
    assert cli.json("answers", "clear", "--context", "repo") == {"removed": 1}
    assert cli.ok("answers", "clear") == "removed 2 answers\n"


def test_a_report_tells_what_shadows_would_have_served_and_how_often_wrongly(cli: Cli) -> None:
    cli.data.mkdir()
    near = [looked(MISS, NEAR, kind=Kind.NEAR, alike=alike) for alike in (0.99, 0.9, 0.8, None)]
    cli.state(lambda state: note(state, *near, *[looked(MISS)] * 6, ""))
    cli.state(lambda state: note(state, near[2], age_s=8 * 86400))
    cli.state(lambda state: note(state, near[2], context="repo"))
    view = cli.json("answers", "report")
    assert view["requests"] == 12
    shadow = view["shadow"]
    assert (shadow["requests"], shadow["hit_rate"]) == (11, pytest.approx(5 / 11))
    assert (shadow["near"]["same"], shadow["near"]["different"], shadow["near"]["unknown"]) == (2, 2, 1)
    assert shadow["near"]["false_hit_rate"] == 0.5
    assert shadow["exact"]["false_hit_rate"] is None
    assert view["seconds"]["exact"]["p50"] == pytest.approx(0.0002)
    assert cli.json("answers", "report", "--alike", "0.75")["shadow"]["near"]["different"] == 0
    assert cli.json("answers", "report", "--since", "30d")["shadow"]["near"]["different"] == 3
    assert cli.json("answers", "report", "--context", "repo")["requests"] == 1
    text = cli.ok("answers", "report")
    assert "in shadow mode 11, of which 45.5% would have been served" in text
    assert "near:   5; 50.00% of these wrongly (at most" in text
    assert "near: 4.00 ms at the median" in text


def test_a_report_on_what_nobody_knows_is_refused(cli: Cli) -> None:
    assert "no context 'typo'" in cli.refused("answers", "report", "--context", "typo")


def test_a_report_of_nothing_says_how_to_begin(cli: Cli) -> None:
    cli.data.mkdir()
    assert "--answers shadow" in cli.ok("answers", "report")
    assert cli.json("answers", "report")["shadow"]["hit_rate"] is None


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["report", "--since", "soon"], "--since"),
        (["report", "--alike", "2"], "2"),
        (["clear", "--context", "A B"], "A B"),
        (["clear", "--context", "repoo"], "no context 'repoo' of tenant 'default'"),
    ],
)
def test_what_makes_no_sense_is_refused(cli: Cli, arguments: list[Any], why: str) -> None:
    cli.data.mkdir()
    assert why in cli.refused("answers", *arguments)
