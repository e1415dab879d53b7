"""Jobs and leases as they lie in the state file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nightfill.state.jobs import Job, JobKind, JobState, Lease
from nightfill.state.sqlite.turns import SKEW_S

if TYPE_CHECKING:
    from collections.abc import Callable

STATES: Final = {
    JobState.QUEUED: ("queued", "waiting"),
    JobState.LEASED: ("leased", "expired"),
    JobState.DONE: ("done",),
    JobState.DEAD: ("dead",),
    JobState.CANCELLED: ("cancelled",),
}
"""As they are in the file: see `sums`."""
_KIND_OF: Final = {str(kind): kind for kind in JobKind}
_STATE_OF: Final = {name: state for state, names in STATES.items() for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Leases are told by a steady clock that all processes of the host share and that no wall-clock jump moves
    (`CLOCK_BOOTTIME`), together with the id of the boot: after a reboot no holder is left, and every old lease is void.
    Only retries are set by the wall clock. A job written at a time that is still to come by more than `SKEW_S` shows
    that the clock was set back; it is due at once, instead of hours late.
    """

    wall: Callable[[], float]
    steady: Callable[[], float]
    boot: str

    def times(self) -> dict[str, object]:
        """Now, as statements want it."""
        return {"now_s": self.wall(), "steady_s": self.steady(), "boot": self.boot, "skew_s": SKEW_S}


def job_of(row: Any, clocks: Clocks) -> Job:
    """The `COLUMNS` of a row of `jobs`."""
    # By place: a row looks names up one after the other.
    (
        id_, kind, target, tenant, label, priority, state, attempts, failures, lost, not_before_s, done_tokens,
        total_tokens, worker, lease_boot, lease_until_s, error, created_at_s, updated_at_s, note, user, needs,
        reserved_tokens,
    ) = row  # fmt: skip
    expires_at_s = None
    if lease_until_s is not None:
        expires_at_s = clocks.wall() + (lease_until_s - clocks.steady() if lease_boot == clocks.boot else 0.0)
    return Job(
        id=id_,
        kind=_KIND_OF[kind],
        target=target,
        tenant=tenant,
        label=label,
        priority=priority,
        state=_STATE_OF[state],
        attempts=attempts,
        failures=failures,
        lost=lost,
        not_before_s=not_before_s,
        done_tokens=done_tokens,
        total_tokens=total_tokens,
        worker=worker,
        lease_expires_at_s=expires_at_s,
        error=error,
        created_at_s=created_at_s,
        updated_at_s=updated_at_s,
        note=note,
        user=user,
        needs=needs,
        reserved_tokens=reserved_tokens,
    )


def lease_of(row: Any, clocks: Clocks) -> Lease:
    """The `COLUMNS` of a row of `jobs` that somebody holds."""
    job = job_of(row, clocks)
    assert job.worker is not None
    assert job.lease_expires_at_s is not None
    return Lease(job=job, worker=job.worker, fence=job.attempts, expires_at_s=job.lease_expires_at_s)
