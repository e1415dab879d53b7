"""What follows a failure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from nightfill.errors import BadInput, EngineError, KvError, NightfillError, StateError, TierFull

NO_ROOM: Final = "no room in the store: "
"""Begins the message of a failure of kind FULL, by which a plan tells it from others."""


class FailureKind(enum.StrEnum):
    """What failed."""

    ENGINE = "engine"
    STORE = "store"
    FULL = "full"
    """The store has no room that this may take. It waits for some, however long."""
    STATE = "state"
    UNPROVEN = "unproven"
    """The engine took the stored KV and computed the prefix all the same."""
    IMPOSSIBLE = "impossible"
    """It would fail in the same way again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt. The message holds no text of a context."""

    kind: FailureKind
    message: str

    @property
    def retryable(self) -> bool:
        """Whether another attempt may go better."""
        return self.kind is not FailureKind.IMPOSSIBLE


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential backoff: `base_s`, doubled per failure, at most `cap_s`; dead at `max_failures`."""

    max_failures: int
    base_s: float
    cap_s: float


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again, not before so many seconds from now."""

    in_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job is dead until somebody looks at it."""


def after_failure(failures: int, failure: Failure, policy: RetryPolicy) -> Retry | GiveUp:
    """`failures` is how many there were in a row, this one included; at least 1."""
    waits = failure.kind is FailureKind.FULL
    if not failure.retryable or (failures >= policy.max_failures and not waits):
        return GiveUp()
    doublings = min(failures - 1, 60)
    return Retry(in_s=min(policy.base_s * 2.0**doublings, policy.cap_s))


def failure_of(error: NightfillError) -> Failure:
    """Which kind of failure an error is."""
    match error:
        case EngineError():
            return Failure(FailureKind.ENGINE, str(error))
        case TierFull():
            return Failure(FailureKind.FULL, f"{NO_ROOM}{error}")
        case KvError():
            return Failure(FailureKind.STORE, str(error))
        case StateError():
            return Failure(FailureKind.STATE, str(error))
        case BadInput():
            return Failure(FailureKind.IMPOSSIBLE, str(error))
        case _:
            return Failure(FailureKind.ENGINE, str(error))
