"""What `nightfill doctor` looks at in state and store: damage, dead jobs, promises not kept, a tier's errors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from nightfill.cli.checks import Finding, fail, ok, warn
from nightfill.cli.night import night_windows
from nightfill.cli.output import show_ago
from nightfill.cli.units import show_duration
from nightfill.errors import NightfillError, StateUnavailable
from nightfill.kv import BlockKey
from nightfill.sleep.description import seen_last
from nightfill.sleep.trigger import KINDS, Wait, decide
from nightfill.state.jobs import JobState
from nightfill.state.sqlite import damage

if TYPE_CHECKING:
    from pathlib import Path

    from nightfill.cli.workspace import Workspace
    from nightfill.config import SleepSettings
    from nightfill.kv import Store, StoreReport, TierReport
    from nightfill.state.state import State

_DAY_S: Final = 86400.0
_REQUESTS: Final = 10_000
_SHOWN: Final = 5
_SERVERS: Final = ("redis", "s3")
_NOBODYS: Final = BlockKey(bytes(32))
_COUNT_S: Final = 10.0
_LOOK_AT: Final = 64


def check_state_file(path: Path) -> Finding:
    """Whether SQLite finds the state file whole. Opens it for reading alone."""
    if not path.exists():
        return ok("state", f"{path}, made when it is needed")
    advice = "stop nightfill, move the file away, add the contexts again; stored KV is found again by what it is of"
    try:
        found = damage(path)
    except StateUnavailable as error:
        return fail("state", str(error), advice)
    if found:
        return fail("state", f"{path} is damaged: {'; '.join(found)}", advice)
    return ok("state", f"{path} is whole")


async def check_contents(workspace: Workspace) -> tuple[list[Finding], int]:
    """Findings about jobs and promises, and the most KV bytes per token of the engines seen last (0 when unknown)."""
    if not workspace.settings.state and not workspace.state_path.exists():
        return [], 0
    try:
        async with workspace.open_state() as state:
            engines = seen_last(await state.engines.notes())
            findings = [
                await _check_jobs(state),
                await _check_night(state, workspace.settings.sleep),
                await _check_promises(state),
                await _check_deletions(state),
            ]
            return findings, max((engine.kv_bytes_per_token for engine in engines), default=0)
    except NightfillError as error:
        return [fail("state", str(error), "see the line on the state file; with encryption, kv.key_file")], 0


async def _check_jobs(state: State) -> Finding:
    jobs = await state.jobs.jobs(states=(JobState.QUEUED, JobState.LEASED, JobState.DEAD))
    dead = [job for job in jobs if job.state is JobState.DEAD]
    failing = [job for job in jobs if job.state is not JobState.DEAD and job.failures]
    if dead:
        listed = "; ".join(f"{job.id} ({job.label}): {job.error}" for job in dead[:_SHOWN])
        return warn("jobs", f"{len(dead)} dead: {listed}", "mend the cause, then `nightfill jobs retry ID`")
    if failing:
        listed = "; ".join(f"{job.id} ({job.label}): {job.error}" for job in failing[:_SHOWN])
        return warn("jobs", f"{len(failing)} failing, tried again later: {listed}", "mend the cause")
    return ok("jobs", f"{len(jobs)} wait or run, none is failing")


async def _check_night(state: State, settings: SleepSettings) -> Finding:
    depth = await state.jobs.depth(kinds=KINDS)
    # Of the gateways' idleness and of what woke whom, each process knows for itself.
    decision = decide(
        time.time(), night_windows(settings), due=depth.due, idle_for_s=0.0, awake=False, settings=settings
    )
    idle_s = float(settings.wake_when_idle_s)
    idle = f"; or when nobody asked for {show_duration(idle_s)}" if idle_s and isinstance(decision, Wait) else ""
    return ok("background", f"{'waits' if isinstance(decision, Wait) else 'may run'}: {decision.why}{idle}")


async def _check_promises(state: State) -> Finding:
    since_s = time.time() - _DAY_S
    recent = [row for row in await state.access.recent(limit=_REQUESTS) if row.at_s >= since_s]
    broken = [row for row in recent if row.broken]
    promised = sum(row.promised_tokens > 0 for row in recent)
    detail = f"{len(broken)} of {promised} promises of reuse were broken in the last 24 h"
    if broken:
        names = sorted({row.context or "?" for row in broken})
        advice = (
            f"contexts {', '.join(names[:_SHOWN])}: those fills are made again; if it goes on, the model does not reuse"
        )
        return warn("proof", detail, advice)
    return ok("proof", detail)


async def _check_deletions(state: State) -> Finding:
    await state.deletions.keys(limit=1)
    owed = state.deletions.owed()
    if not owed.blocks:
        return ok("deletion", "nothing that was deleted is left in any tier")
    since = show_ago(owed.since_s)
    detail = f"{owed.blocks} blocks of what was deleted may still lie in a tier, the oldest since {since}"
    return warn("deletion", detail, "they go once all tiers can be reached and `nightfill serve` or `work` runs")


def check_store(workspace: Workspace) -> list[Finding]:
    """Whether the store opens, what its tiers say, and what a change of keys has left to do."""
    if not workspace.data_dir.is_dir():
        return [ok("store", "made when it is needed")]
    try:
        store = workspace.open_store()
    except NightfillError as error:
        return [fail("store", str(error), "see kv.tiers and kv.key_file in docs/settings.md")]
    try:
        store.has(_NOBODYS)  # a tier on a server is not asked before somebody wants something
        left = _old_keys(store) if workspace.settings.kv.old_key_files else []
        report = store.report()
    finally:
        store.close()
    return [_store(report), *(_server(tier) for tier in report.tiers if tier.kind in _SERVERS), *left]


def _store(report: StoreReport) -> Finding:
    ailing = [f"{one.name}: {one.last_error}" for one in report.tiers if one.last_error and one.kind not in _SERVERS]
    if ailing:
        return fail("store", "; ".join(ailing), "mend the device; serving goes on without it")
    durable = [tier for tier in report.tiers if tier.durable]
    if not durable:
        return warn("store", "no tier outlives the process", "add a disk tier to kv.tiers")
    blocks = "; ".join(f"{tier.blocks} blocks in {tier.name}" for tier in durable if tier.kind not in _SERVERS)
    return ok("store", f"{blocks or 'on servers alone'}, {'encrypted' if report.encrypted else 'not encrypted'}")


def _server(tier: TierReport) -> Finding:
    if tier.last_error:
        advice = "see that it runs and may be reached from here; until then serving goes on without it"
        return fail(f"tier {tier.name}", tier.last_error, advice)
    count = f", {tier.blocks} blocks" if tier.kind == "redis" else ""
    return ok(f"tier {tier.name}", f"answers{count}")


def _old_keys(store: Store) -> list[Finding]:
    """Without any salt, a pass over the tiers seals nothing anew and counts."""
    until_s = time.monotonic() + _COUNT_S
    while not (step := store.reseal((), limit=_LOOK_AT)).finished and time.monotonic() < until_s:
        pass
    counted = "" if step.finished else f" among those looked at in {_COUNT_S:g} s"
    found = "; ".join(f"{tier.old_keys} in {tier.name}" for tier in store.report().tiers if tier.durable)
    findings = []
    if step.left or not step.finished:
        advice = "the worker seals them anew while nobody asks; keep kv.old_key_files until none is left"
        findings.append(warn("key change", f"blocks under old keys: {found}{counted}", advice))
    else:
        findings.append(ok("key change", "no block is under an old key: kv.old_key_files can go"))
    if step.unknown:
        detail = f"{step.unknown} blocks are under a key that no key file here holds"
        findings.append(warn("keys", detail, "name that key in kv.old_key_files, or leave them to expire"))
    return findings
