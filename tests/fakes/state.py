"""The shared state in memory, keeping the contracts of `nightfill.state`."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nightfill.contexts.context import (
    DEFAULT_OPTIONS,
    Content,
    Context,
    ContextName,
    ContextOptions,
    Fill,
    FillKey,
    FillState,
    Fingerprint,
    Form,
    Messages,
    Outline,
    Source,
    Tenant,
    Text,
)
from nightfill.errors import BudgetSpent, StateUnavailable
from nightfill.state.access import Access, Usage
from nightfill.state.answers import Answer, AnswerCounts, AnswerKey, AnswerNote, Asked, Origin
from nightfill.state.jobs import (
    ASKED,
    NO_WORK,
    Job,
    JobId,
    JobKind,
    JobState,
    Lease,
    QueueDepth,
    Trouble,
    Work,
    WorkerId,
)
from nightfill.state.load import Load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from nightfill.state.book import ContextBook


def _bytes_of(content: Content) -> int:
    match content:
        case Text(text=text):
            return len(text.encode())
        case Messages(messages=messages):
            return sum(len(m.content.encode()) for m in messages)


def outline(fill: Fill) -> Outline:
    return Outline(
        key=fill.key,
        state=fill.state,
        total_tokens=fill.total_tokens,
        stored_tokens=fill.stored_tokens,
        filled_at_s=fill.filled_at_s,
        fill_seconds=fill.fill_seconds,
        reason=fill.reason,
    )


async def told(book: ContextBook, *seen: int) -> int:
    """Its number of changes, once it can tell, and once that is none of these: others' may take a moment to be seen."""
    async with asyncio.timeout(5):
        while (number := book.changes()) < 0 or number in seen:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.002)
    return number


@dataclass
class FakeBook:
    """A `ContextBook`. `down`: every method that may fail raises StateUnavailable; `blind`: changes are untold."""

    down: bool = False
    blind: bool = False
    marks: list[tuple[FillKey, FillState, str]] = field(default_factory=list)
    _contexts: dict[tuple[Tenant, ContextName], Context] = field(default_factory=dict)
    _contents: dict[tuple[Tenant, Fingerprint], Content] = field(default_factory=dict)
    _fills: dict[FillKey, Fill] = field(default_factory=dict)
    _changes: int = 0
    _untold: int = 0

    def _up(self, *, change: bool = False) -> None:
        if self.down:
            raise StateUnavailable("the book is down")
        self._changes += change

    def _forget(self) -> None:
        contexts = self._contexts.values()
        used = {(context.tenant, version) for context in contexts for version in (context.current, context.distilled)}
        self._contents = {key: content for key, content in self._contents.items() if key in used}
        self._fills = {key: fill for key, fill in self._fills.items() if (key.tenant, key.fingerprint) in used}

    async def put(
        self,
        *,
        tenant: Tenant,
        name: ContextName,
        source: Source,
        content: Content,
        fingerprint: Fingerprint,
        forms: Sequence[Form],
        pinned: bool = False,
        ttl_s: float | None = None,
        user: str = "",
        options: ContextOptions | None = None,
    ) -> Context:
        self._up(change=True)
        now_s = time.time()
        old = self._contexts.get((tenant, name))
        same = old is not None and old.current == fingerprint
        context = Context(
            tenant=tenant,
            name=name,
            source=source,
            forms=tuple(forms),
            pinned=pinned,
            ttl_s=ttl_s,
            current=fingerprint,
            content_bytes=_bytes_of(content),
            created_at_s=old.created_at_s if old is not None else now_s,
            updated_at_s=old.updated_at_s if old is not None and same else now_s,
            checked_at_s=now_s,
            user=user,
            options=options or (old.options if old is not None else DEFAULT_OPTIONS),
            distilled=old.distilled if old is not None and same else None,
        )
        self._contexts[tenant, name] = context
        self._contents[tenant, fingerprint] = content
        self._forget()
        return context

    async def put_distilled(self, context: Context, *, content: Content, fingerprint: Fingerprint) -> bool:
        self._up(change=True)
        there = self._contexts.get((context.tenant, context.name))
        if there is None or there.current != context.current:
            return False
        self._contexts[context.tenant, context.name] = replace(there, distilled=fingerprint)
        self._contents[context.tenant, fingerprint] = content
        self._forget()
        return True

    async def get(self, tenant: Tenant, name: ContextName) -> Context | None:
        self._up()
        return self._contexts.get((tenant, name))

    async def is_empty(self) -> bool:
        self._up()
        return not self._contexts

    async def tenants(self) -> list[Tenant]:
        self._up()
        return sorted({tenant for tenant, _ in self._contexts})

    async def contexts(self, tenant: Tenant | None = None) -> list[Context]:
        self._up()
        rows = [context for context in self._contexts.values() if tenant in (None, context.tenant)]
        return sorted(rows, key=lambda context: (context.name, context.tenant))

    async def delete(self, tenant: Tenant, name: ContextName) -> bool:
        self._up(change=True)
        found = self._contexts.pop((tenant, name), None) is not None
        self._forget()
        return found

    async def content(self, tenant: Tenant, fingerprint: Fingerprint) -> Content | None:
        self._up()
        return self._contents.get((tenant, fingerprint))

    async def checked(self, tenant: Tenant, name: ContextName) -> None:
        self._up(change=True)
        context = self._contexts[tenant, name]
        self._contexts[tenant, name] = replace(context, checked_at_s=time.time())

    async def fill(self, key: FillKey) -> Fill | None:
        self._up()
        return self._fills.get(key)

    async def fills(self, tenant: Tenant | None = None) -> list[Fill]:
        self._up()
        return [fill for fill in self._fills.values() if tenant in (None, fill.key.tenant)]

    async def outlines(self) -> AsyncIterator[Sequence[Outline]]:
        self._up()
        yield [outline(fill) for fill in self._fills.values()]

    async def outlines_of(self, tenant: Tenant, *versions: Fingerprint) -> list[Outline]:
        self._up()
        fills = self._fills.values()
        return [outline(one) for one in fills if one.key.tenant == tenant and one.key.fingerprint in versions]

    async def put_fill(self, fill: Fill) -> bool:
        self._up(change=True)
        if (fill.key.tenant, fill.key.fingerprint) not in self._contents:
            return False
        self._fills[fill.key] = fill
        return True

    async def mark_fill(self, key: FillKey, *, state: FillState, reason: str, stored_tokens: int | None = None) -> bool:
        self._up(change=True)
        self.marks.append((key, state, reason))
        fill = self._fills.get(key)
        if fill is None:
            return False
        stored = fill.stored_tokens if stored_tokens is None else stored_tokens
        self._fills[key] = replace(fill, state=state, reason=reason, stored_tokens=stored)
        return True

    async def drop_fill(self, key: FillKey) -> bool:
        self._up(change=True)
        return self._fills.pop(key, None) is not None

    def changes(self) -> int:
        if not self.blind:
            return self._changes
        self._untold -= 1
        return self._untold


@dataclass
class FakeAccessLog:
    """An `AccessLog`."""

    down: bool = False
    rows: list[Access] = field(default_factory=list)

    def _up(self) -> None:
        if self.down:
            raise StateUnavailable("the log is down")

    async def append(self, rows: Sequence[Access]) -> None:
        self._up()
        self.rows.extend(rows)

    async def usage(self, tenant: Tenant, context: ContextName, *, now_s: float) -> Usage:
        self._up()
        rows = [row for row in self.rows if (row.tenant, row.context) == (tenant, context)]
        return Usage(
            last_access_s=max((row.at_s for row in rows), default=None),
            accesses_7d=sum(row.at_s > now_s - 7 * 86400 for row in rows),
            broken_7d=sum(row.reused_tokens < row.promised_tokens - 8 for row in rows),
            hours=Counter(int(row.at_s // 3600) for row in rows),
        )

    async def model_hours(self, model: str, *, now_s: float) -> Mapping[int, int]:
        self._up()
        return Counter(int(row.at_s // 3600) for row in self.rows if row.model == model and row.layer != "answer")

    async def recent(
        self, *, tenant: Tenant | None = None, context: ContextName | None = None, limit: int = 100
    ) -> list[Access]:
        self._up()
        rows = [row for row in self.rows if tenant in (None, row.tenant) and context in (None, row.context)]
        return rows[::-1][:limit]

    async def prune(self, *, older_than_s: float) -> int:
        self._up()
        kept = [row for row in self.rows if row.at_s >= time.time() - older_than_s]
        dropped, self.rows = len(self.rows) - len(kept), kept
        return dropped


@dataclass
class FakeAnswerBook:
    """An `AnswerBook` without bounds. It forgets what rests on versions that `book`, if given, has no more."""

    down: bool = False
    book: FakeBook | None = None
    rows: dict[AnswerKey, Answer] = field(default_factory=dict)
    uses: Counter[AnswerKey] = field(default_factory=Counter)
    _serials: dict[AnswerKey, int] = field(default_factory=dict)
    _counts: dict[tuple[Tenant, ContextName, Origin], AnswerCounts] = field(default_factory=dict)
    _next: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def _up(self) -> None:
        if self.down:
            raise StateUnavailable("the answers are down")
        self.rows = {key: answer for key, answer in self.rows.items() if self._rests(answer)}

    def _rests(self, answer: Answer) -> bool:
        if self.book is None or answer.context is None:
            return True
        context = self.book._contexts.get((answer.tenant, answer.context))
        return context is not None and answer.fingerprint in (context.current, context.distilled)

    def _count(self, answer: Answer, *, stored: int = 0, used: int = 0, uses: int = 0) -> None:
        if answer.context is not None:
            where = (answer.tenant, answer.context, answer.origin)
            old = self._counts.get(where, AnswerCounts())
            self._counts[where] = AnswerCounts(stored=old.stored + stored, used=old.used + used, uses=old.uses + uses)

    async def put(self, answer: Answer) -> bool:
        self._up()
        if not self._rests(answer):
            return False
        self.rows[answer.key] = replace(answer, at_s=answer.at_s or time.time())
        self.uses.pop(answer.key, None)
        self._serials[answer.key] = next(self._next)
        self._count(answer, stored=1)
        return True

    async def get(self, key: AnswerKey) -> Answer | None:
        self._up()
        answer = self.rows.get(key)
        return None if answer is None or time.time() - answer.at_s > answer.ttl_s else answer

    async def served(self, keys: Sequence[AnswerKey]) -> None:
        self._up()
        for key in keys:
            if key in self.rows:
                self.uses[key] += 1
                self._count(self.rows[key], used=int(self.uses[key] == 1), uses=1)

    async def drop(self, tenant: Tenant, *, context: ContextName | None = None) -> int:
        self._up()
        gone = [key for key, row in self.rows.items() if row.tenant == tenant and context in (None, row.context)]
        for key in gone:
            del self.rows[key]
        return len(gone)

    async def after(self, serial: int, *, limit: int = 1000) -> list[AnswerNote]:
        self._up()
        notes = [
            AnswerNote(serial=self._serials[key], key=key, scope=row.scope, question=row.question)
            for key, row in self.rows.items()
            if row.question and self._serials[key] > serial
        ]
        return sorted(notes, key=lambda note: note.serial)[:limit]

    async def gone(self, keys: Sequence[AnswerKey]) -> list[AnswerKey]:
        self._up()
        return [key for key in keys if key not in self.rows]

    async def counts(self, tenant: Tenant, context: ContextName) -> dict[Origin, AnswerCounts]:
        self._up()
        return {where[2]: counts for where, counts in self._counts.items() if where[:2] == (tenant, context)}

    async def prune(self) -> int:
        self._up()
        old = [key for key, row in self.rows.items() if time.time() - row.at_s > row.ttl_s]
        for key in old:
            del self.rows[key]
        return len(old)


@dataclass
class FakeQuestionLog:
    """A `QuestionLog` without bounds, of contexts that are all there."""

    down: bool = False
    rows: dict[tuple[Tenant, ContextName], list[Asked]] = field(default_factory=dict)

    async def note(self, tenant: Tenant, context: ContextName, questions: Sequence[Asked]) -> None:
        if self.down:
            raise StateUnavailable("the questions are down")
        self.rows.setdefault((tenant, context), []).extend(questions)

    async def recent(self, tenant: Tenant, context: ContextName, *, limit: int = 1000) -> list[Asked]:
        if self.down:
            raise StateUnavailable("the questions are down")
        return self.rows.get((tenant, context), [])[::-1][:limit]


@dataclass
class FakeBoard:
    """A `LoadBoard`."""

    in_flight: int = 0
    entered: int = 0
    ttfts: list[float] = field(default_factory=list)
    idle_since_s: float = 0.0

    def enter(self) -> None:
        self.in_flight += 1
        self.entered += 1

    def leave(self) -> None:
        self.in_flight -= 1
        assert self.in_flight >= 0
        if self.in_flight == 0:
            self.idle_since_s = time.monotonic()

    def note_ttft(self, seconds: float) -> None:
        self.ttfts.append(seconds)

    def read(self) -> Load:
        return Load(
            in_flight=self.in_flight, idle_since_s=self.idle_since_s, ttft_s=self.ttfts[-1] if self.ttfts else 0
        )


@dataclass
class FakeQueue:
    """The part of a `JobQueue` that those who queue work use; leasing belongs to the real ones' tests."""

    down: bool = False
    spent: BudgetSpent | None = None
    """Raised for each new job."""
    rows: dict[JobId, Job] = field(default_factory=dict)
    counted: dict[tuple[JobKind, str], int] = field(default_factory=dict)
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def _up(self) -> None:
        if self.down:
            raise StateUnavailable("the queue is down")

    def _unfinished(self) -> list[Job]:
        return [job for job in self.rows.values() if job.state in (JobState.QUEUED, JobState.LEASED)]

    async def enqueue(
        self,
        *,
        kind: JobKind,
        target: str,
        tenant: str,
        label: str,
        priority: float,
        total_tokens: int = 0,
        user: str = "",
        needs: str = "",
        reserve_tokens: int = 0,
    ) -> Job:
        self._up()
        for job in self.rows.values():
            if (job.kind, job.target) == (kind, target) and job.state in (
                JobState.QUEUED,
                JobState.LEASED,
                JobState.DEAD,
            ):
                if job.state is not JobState.DEAD and job.priority != ASKED:
                    job = self.rows[job.id] = replace(job, priority=priority)
                return job
        if self.spent is not None:
            raise self.spent
        now_s = time.time()
        job = Job(
            id=JobId(next(self._ids)),
            kind=kind,
            target=target,
            tenant=tenant,
            label=label,
            priority=priority,
            state=JobState.QUEUED,
            attempts=0,
            failures=0,
            lost=0,
            not_before_s=0,
            done_tokens=0,
            total_tokens=total_tokens,
            worker=None,
            lease_expires_at_s=None,
            error="",
            created_at_s=now_s,
            updated_at_s=now_s,
            user=user,
            needs=needs,
            reserved_tokens=reserve_tokens,
        )
        self.rows[job.id] = job
        return job

    async def lease(
        self,
        worker: WorkerId,
        *,
        kinds: Sequence[JobKind],
        lease_s: float,
        needs: Sequence[str] | None = None,
        max_tokens: int | None = None,
        min_priority: float | None = None,
    ) -> Lease | None:
        raise NotImplementedError

    async def renew(
        self,
        lease: Lease,
        *,
        lease_s: float,
        done_tokens: int,
        total_tokens: int,
        kept_tokens: int = 0,
        work: Work = NO_WORK,
    ) -> Lease:
        raise NotImplementedError

    async def complete(self, lease: Lease, *, outcome: str = "", note: str = "", work: Work = NO_WORK) -> None:
        raise NotImplementedError

    async def count(self, kind: JobKind, outcome: str) -> None:
        self.counted[kind, outcome] = self.counted.get((kind, outcome), 0) + 1

    async def outcomes(self, kind: JobKind) -> dict[str, int]:
        self._up()
        return {outcome: count for (one, outcome), count in self.counted.items() if one is kind}

    async def release(self, lease: Lease, *, work: Work = NO_WORK) -> None:
        raise NotImplementedError

    async def fail(self, lease: Lease, *, error: str, retry_in_s: float | None, work: Work = NO_WORK) -> None:
        raise NotImplementedError

    async def cancel(self, job_id: JobId) -> bool:
        self._up()
        job = self.rows.get(job_id)
        if job is None or job not in self._unfinished():
            return False
        self.rows[job_id] = replace(job, state=JobState.CANCELLED)
        return True

    async def cancel_target(self, *, kind: JobKind, target_prefix: str) -> int:
        self._up()
        found = [job for job in self._unfinished() if job.kind is kind and job.target.startswith(target_prefix)]
        for job in found:
            self.rows[job.id] = replace(job, state=JobState.CANCELLED)
        return len(found)

    async def retry(self, job_id: JobId) -> bool:
        self._up()
        job = self.rows.get(job_id)
        if job is None or job.state is not JobState.DEAD:
            return False
        self.rows[job_id] = replace(job, state=JobState.QUEUED, failures=0, lost=0)
        return True

    async def depth(self, *, kinds: Sequence[JobKind] | None = None) -> QueueDepth:
        self._up()
        states = [job.state for job in self._unfinished() if kinds is None or job.kind in kinds]
        return QueueDepth(
            due=states.count(JobState.QUEUED),
            later=0,
            leased=states.count(JobState.LEASED),
            tokens=sum(job.total_tokens - job.done_tokens for job in self._unfinished()),
        )

    async def trouble(self) -> Trouble:
        self._up()
        failing = sum(job.failures > 0 for job in self._unfinished())
        return Trouble(failing=failing, dead=sum(job.state is JobState.DEAD for job in self.rows.values()))

    async def holders(self) -> list[WorkerId]:
        raise NotImplementedError

    async def reclaim(self, worker: WorkerId) -> int:
        raise NotImplementedError

    async def get(self, job_id: JobId) -> Job | None:
        self._up()
        return self.rows.get(job_id)

    async def jobs(self, *, states: Sequence[JobState] | None = None, limit: int = 1000) -> list[Job]:
        self._up()
        rows = [job for job in self.rows.values() if states is None or job.state in states]
        return sorted(rows, key=lambda job: (-job.priority, job.id))[:limit]

    async def prune(self, *, older_than_s: float) -> int:
        self._up()
        return 0
