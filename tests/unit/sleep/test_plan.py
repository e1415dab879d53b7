from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nightfill.contexts.context import (
    Context,
    ContextName,
    Fill,
    FillKey,
    FillState,
    Fingerprint,
    Form,
    Signature,
    Tenant,
    TextSource,
)
from nightfill.engines.engine import Description, Reuse
from nightfill.sleep.description import description_of, note_of
from nightfill.sleep.plan import Verdict, obsolete, plan, span
from nightfill.sleep.priority import recency_frequency, value
from nightfill.state.access import Usage
from nightfill.state.jobs import Job, JobId, JobKind, JobState

if TYPE_CHECKING:
    from nightfill.sleep.plan import PlanLine
    from nightfill.sleep.priority import Policy

T, REPO = Tenant("default"), ContextName("repo")
NOW_S = 1e9
DESCRIPTION = Description(
    engine="local",
    model="m",
    signature=Signature("5" * 64),
    context_length=32_768,
    kv_bytes_per_token=4112,
    slots=2,
    reuse=Reuse.TRIM,
    embeddings=False,
    version="v",
)
KEY = FillKey(tenant=T, fingerprint=Fingerprint("f" * 64), form=Form.CHAT, signature=DESCRIPTION.signature)


def context(name: str = "repo", *, fingerprint: str = "f" * 64, pinned: bool = False, age_s: float = 0.0) -> Context:
    return Context(
        tenant=T,
        name=ContextName(name),
        source=TextSource(),
        forms=(Form.CHAT,),
        pinned=pinned,
        ttl_s=None,
        current=Fingerprint(fingerprint),
        content_bytes=10,
        created_at_s=NOW_S - age_s,
        updated_at_s=NOW_S - age_s,
        checked_at_s=NOW_S,
    )


def fill(state: FillState, *, tokens: int = 900, stored: int = 900, reason: str = "") -> Fill:
    return Fill(
        key=KEY,
        state=state,
        tokens=tuple(range(tokens)),
        stored_tokens=stored,
        filled_at_s=NOW_S - 7300,
        fill_seconds=3.0,
        reason=reason,
    )


def job(state: JobState, *, failures: int = 0, error: str = "", not_before_s: float = 0.0, target: str = "") -> Job:
    return Job(
        id=JobId(1),
        kind=JobKind.FILL,
        target=target or str(KEY),
        tenant=T,
        label=REPO,
        priority=0.5,
        state=state,
        attempts=1,
        failures=failures,
        lost=0,
        not_before_s=not_before_s,
        done_tokens=512,
        total_tokens=900,
        worker=None,
        lease_expires_at_s=None,
        error=error,
        created_at_s=NOW_S,
        updated_at_s=NOW_S,
    )


def only(
    fills: list[Fill],
    jobs: list[Job] | None = None,
    *,
    usage: Usage | None = None,
    pinned: bool = False,
    description: Description | None = DESCRIPTION,
    policy: Policy = recency_frequency,
) -> PlanLine:
    usages = {(T, REPO): usage} if usage else {}
    (line,) = plan([context(pinned=pinned)], fills, usages, jobs or [], description, now_s=NOW_S, policy=policy)
    return line


def test_how_long_each_is_filled_if_nobody_uses_it() -> None:
    week_s, used = 7 * 86400.0, Usage(last_access_s=NOW_S - 60, accesses_7d=1, broken_7d=0)
    ready = fill(FillState.READY)
    assert only([ready]).lasts_until_s == ready.filled_at_s + week_s
    assert only([ready], usage=used).lasts_until_s == NOW_S - 60 + week_s
    assert only([]).lasts_until_s == only([fill(FillState.EVICTED)]).lasts_until_s == NOW_S
    for state in (JobState.QUEUED, JobState.LEASED):
        assert only([], [job(state)]).lasts_until_s == NOW_S + week_s, "its tokens are set aside"
    assert only([], [job(JobState.DEAD)]).lasts_until_s is None
    assert only([fill(FillState.FILLING, tokens=40_000)]).lasts_until_s is None, "too long"
    assert only([], description=replace(DESCRIPTION, reuse=Reuse.NONE)).lasts_until_s is None
    assert only([], description=None).lasts_until_s is None


@pytest.mark.parametrize(
    ("fills", "jobs", "verdict", "why"),
    [
        ([], [], Verdict.FILL, "never filled, not used yet, priority 0.70"),
        ([fill(FillState.READY)], [], Verdict.SKIP, "ready: 900 tokens, filled 2 h ago"),
        (
            [fill(FillState.FILLING, stored=512)],
            [],
            Verdict.FILL,
            "goes on at 512 of 900 tokens, not used yet, priority 0.70",
        ),
        (
            [fill(FillState.STALE, reason="a promise was broken")],
            [],
            Verdict.REFILL,
            "fill again: a promise was broken, not used yet, priority 0.70",
        ),
        (
            [fill(FillState.READY, stored=256)],
            [],
            Verdict.REFILL,
            "fill again: ready, not used yet, priority 0.70",
        ),
        (
            [fill(FillState.EVICTED, stored=0, reason="its bytes left the store")],
            [],
            Verdict.SKIP,
            "not filled again before its next use: its bytes left the store, not used yet, priority 0.70",
        ),
        (
            [fill(FillState.FILLING, tokens=70_000, stored=0)],
            [],
            Verdict.SKIP,
            "not filled: longer than the model's context (70,000 > 32,768 tokens)",
        ),
        ([], [job(JobState.LEASED)], Verdict.FILL, "filling now: 512 of 900 tokens"),
        (
            [],
            [job(JobState.QUEUED, failures=2, error="engine local: died", not_before_s=NOW_S + 8)],
            Verdict.FILL,
            "again in 8 s after 2 failures: engine local: died",
        ),
        ([], [job(JobState.DEAD, failures=5, error="disk full")], Verdict.SKIP, "dead after 5 failures: disk full"),
        (
            [],
            [job(JobState.DEAD, failures=1, error="longer than the model's context (70,000 > 32,768 tokens)")],
            Verdict.SKIP,
            "not filled: longer than the model's context (70,000 > 32,768 tokens)",
        ),
        ([fill(FillState.READY)], [job(JobState.DONE)], Verdict.SKIP, "ready: 900 tokens, filled 2 h ago"),
    ],
)
def test_each_line_says_what_happens_and_why(fills: list[Fill], jobs: list[Job], verdict: Verdict, why: str) -> None:
    line = only(fills, jobs)
    assert (line.verdict, line.why, line.key) == (verdict, why, KEY)


def test_what_was_evicted_is_filled_again_once_it_is_pinned_or_used() -> None:
    evicted = [fill(FillState.EVICTED, stored=0)]
    assert only(evicted, pinned=True).verdict is Verdict.REFILL
    used = Usage(last_access_s=NOW_S - 60, accesses_7d=1, broken_7d=0)
    assert only(evicted, usage=used).verdict is Verdict.REFILL
    used_long_ago = Usage(last_access_s=NOW_S - 30 * 86400, accesses_7d=0, broken_7d=0)
    assert only(evicted, usage=used_long_ago).verdict is Verdict.SKIP


HOUR = int(NOW_S // 3600)


def test_by_value_what_was_evicted_is_filled_again_when_uses_are_expected_that_pay() -> None:
    evicted = [fill(FillState.EVICTED, stored=0, reason="its bytes left the store")]
    busy = Usage(last_access_s=NOW_S - 60, accesses_7d=90, broken_7d=0, hours={HOUR: 40, HOUR - 1: 50})
    line = only(evicted, usage=busy, policy=value)
    assert line.verdict is Verdict.REFILL
    assert "used 90 times in 7 days" in line.why
    assert "s saved per s of filling" in line.why
    assert only(evicted, policy=value).verdict is Verdict.SKIP


def test_by_value_what_is_new_is_filled_at_once_and_what_is_half_done_before_what_is_not_begun() -> None:
    assert only([], policy=value).verdict is Verdict.FILL
    half, none = (only([fill(FillState.FILLING, stored=stored)], policy=value) for stored in (450, 0))
    assert half.priority == pytest.approx(2 * none.priority)


def test_a_model_that_does_not_use_what_is_restored_is_not_filled() -> None:
    line = only([], description=replace(DESCRIPTION, reuse=Reuse.NONE))
    assert (line.verdict, "kept warm by replay" in line.why) == (Verdict.SKIP, True)


def test_before_any_engine_has_run_the_plan_says_so() -> None:
    line = only([], description=None)
    assert (line.verdict, line.key, line.why) == (Verdict.SKIP, None, "waits for the first start of an engine")


def test_what_is_worth_most_comes_first_and_what_is_skipped_last() -> None:
    contexts = [
        context("old", fingerprint="1" * 64, age_s=7200),
        context("ready"),
        context("new", fingerprint="2" * 64),
    ]
    lines = plan(contexts, [fill(FillState.READY)], {}, [], DESCRIPTION, now_s=NOW_S)
    assert [(line.context, line.verdict) for line in lines] == [
        ("new", Verdict.FILL),
        ("old", Verdict.FILL),
        ("ready", Verdict.SKIP),
    ]


def test_jobs_of_gone_versions_and_forms_are_obsolete() -> None:
    current = job(JobState.QUEUED)
    gone = [
        job(JobState.QUEUED, target=str(replace(KEY, fingerprint=Fingerprint("0" * 64)))),
        job(JobState.LEASED, target=str(replace(KEY, form=Form.COMPLETION))),
        job(JobState.QUEUED, target="nonsense"),
    ]
    kept = [current, job(JobState.DONE, target="nonsense")]
    assert obsolete([*kept, *gone], [context()], {KEY.signature}) == gone
    assert obsolete(kept, [context()], {"another"}) == [current], "no engine computes it any more"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (7300, "2 h"), (86400, "1 day"), (1e6, "11 days")],
)
def test_spans_are_told_in_one_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_description_survives_being_noted() -> None:
    assert description_of(note_of(DESCRIPTION)) == DESCRIPTION


@pytest.mark.parametrize("change", [{"reuse": "PERHAPS"}, {"slots": "two"}, {"context_length": 1.5}])
def test_a_note_of_another_shape_is_no_description(change: dict[str, str | int | bool]) -> None:
    assert description_of({**note_of(DESCRIPTION), **change}) is None
    assert description_of({}) is None


def test_a_distilled_version_is_filled_beside_the_full_one_and_its_jobs_stay() -> None:
    distilled = replace(context(), distilled=Fingerprint("d" * 64), content_bytes=6000)
    lines = plan([distilled], [], {}, [], DESCRIPTION, now_s=NOW_S)
    assert [(line.key and line.key.fingerprint[:1], line.verdict, line.why[:10]) for line in lines] == [
        ("f", Verdict.FILL, "never fill"),
        ("d", Verdict.FILL, "distilled:"),
    ]
    assert [line.missing_tokens for line in lines] == [2000, 1000], "it is at most half as long"
    wanted = job(JobState.QUEUED, target=str(replace(KEY, fingerprint=Fingerprint("d" * 64))))
    assert obsolete([wanted], [distilled], {KEY.signature}) == []
    assert obsolete([wanted], [context()], {KEY.signature}) == [wanted]


def test_slots_that_are_kept_warm_by_replay_are_for_full_texts() -> None:
    distilled = replace(context(), distilled=Fingerprint("d" * 64))
    lines = plan([distilled], [], {}, [], replace(DESCRIPTION, reuse=Reuse.NONE), now_s=NOW_S)
    assert [line.key and line.key.fingerprint[:1] for line in lines] == ["f"]
