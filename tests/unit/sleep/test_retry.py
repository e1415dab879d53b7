from __future__ import annotations

import pytest

from nightfill.errors import BadSource, EngineTimeout, LeaseLost, NightfillError, TierFull, TierUnavailable
from nightfill.sleep.retry import Failure, FailureKind, GiveUp, Retry, RetryPolicy, after_failure, failure_of

POLICY = RetryPolicy(max_failures=5, base_s=2, cap_s=10)


@pytest.mark.parametrize(
    ("failures", "kind", "expected"),
    [
        (1, FailureKind.ENGINE, Retry(2.0)),
        (2, FailureKind.STORE, Retry(4.0)),
        (3, FailureKind.UNPROVEN, Retry(8.0)),
        (4, FailureKind.STATE, Retry(10.0)),
        (5, FailureKind.ENGINE, GiveUp()),
        (1, FailureKind.IMPOSSIBLE, GiveUp()),
    ],
)
def test_failures_are_retried_ever_later_and_given_up_at_last(
    failures: int, kind: FailureKind, expected: Retry | GiveUp
) -> None:
    assert after_failure(failures, Failure(kind, "x"), POLICY) == expected


def test_a_great_many_failures_do_not_overflow() -> None:
    patient = RetryPolicy(max_failures=10**6, base_s=2, cap_s=10)
    assert after_failure(5000, Failure(FailureKind.ENGINE, "x"), patient) == Retry(10.0)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineTimeout("silent", engine="e"), FailureKind.ENGINE),
        (TierUnavailable("disk: gone"), FailureKind.STORE),
        (LeaseLost("x"), FailureKind.STATE),
        (BadSource("x"), FailureKind.IMPOSSIBLE),
        (NightfillError("x"), FailureKind.ENGINE),
    ],
)
def test_each_error_is_of_one_kind_and_keeps_its_words(error: NightfillError, kind: FailureKind) -> None:
    assert failure_of(error) == Failure(kind, str(error))


def test_a_full_store_is_waited_for_however_often_it_was_full() -> None:
    full = failure_of(TierFull("disk: no space"))
    assert full == Failure(FailureKind.FULL, "no room in the store: disk: no space")
    assert after_failure(POLICY.max_failures + 100, full, POLICY) == Retry(POLICY.cap_s)
