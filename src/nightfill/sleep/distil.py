"""Distilling in idle time: when a context is to have a distilled version, and how a worker makes it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from nightfill.contexts.context import ContextName, Messages, Tenant, Text
from nightfill.contexts.fingerprint import content_bytes, fingerprint_of
from nightfill.errors import BudgetSpent
from nightfill.sleep.distil_writer import Stop, Writer
from nightfill.sleep.duty import Done
from nightfill.sleep.fill import Gone, Stopped
from nightfill.sleep.priority import case_of, value
from nightfill.sleep.retry import Failure, FailureKind
from nightfill.state.jobs import JobKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.config import DistilSettings
    from nightfill.contexts.context import Content, Context
    from nightfill.contexts.distil_score import Floats
    from nightfill.engines.engine import Description
    from nightfill.sleep.distil_writer import Embed
    from nightfill.sleep.duty import Desk
    from nightfill.sleep.lease import HeldLease
    from nightfill.sleep.priority import Policy
    from nightfill.state.agenda import Agenda, Due
    from nightfill.state.answers import AnswerBook
    from nightfill.state.book import ContextBook
    from nightfill.state.jobs import JobQueue

_log = logging.getLogger(__name__)

WHOLE_BYTES: Final = 1000
"""Messages of a context up to this size stay as they are: instructions, not matter."""
_BYTES_PER_TOKEN: Final = 4
STEP: Final = 500
"""Contexts that are looked at in one go."""
EVERY_S: Final = 10.0
"""How often a walk through all contexts begins, when something has changed."""
_NOT_SHORTER: Final = 0.8
"""A version that is longer than so much of the text is of no use."""


class Books(Protocol):
    """What distilling reads and writes."""

    @property
    def jobs(self) -> JobQueue:
        """What is to be done."""

    @property
    def book(self) -> ContextBook:
        """What is long-lived."""

    @property
    def agenda(self) -> Agenda:
        """All of it, in steps."""

    @property
    def answers(self) -> AnswerBook:
        """Where sections that are written lie until all are."""


def wanted(context: Context, settings: DistilSettings) -> bool:
    """Whether the context is to have a distilled version."""
    asked = settings.enabled if context.options.distil is None else context.options.distil
    return asked and context.chat is None and context.content_bytes >= settings.min_tokens * _BYTES_PER_TOKEN


class DistilDuty:
    """The `distil` jobs of one worker. `embed` loads what makes vectors, when it is first needed; in a thread."""

    kind: Final = JobKind.DISTIL

    def __init__(
        self,
        state: Books,
        settings: DistilSettings,
        *,
        embed: Callable[[], Embed],
        by_model: bool,
        clock: Callable[[], float],
        default_ttl_s: float,
        policy: Policy = value,
    ) -> None:
        self._state = state
        self._settings = settings
        self._load = embed
        self._embed: Embed | None = None
        self.by_model = by_model
        """An engine writes; otherwise sentences are chosen, and no engine is needed."""
        self._clock = clock
        self._default_ttl_s = default_ttl_s
        self._policy = policy
        self._place = ""
        """In the walk through all contexts; empty between two of them."""
        self._walked_s = float("-inf")
        self._seen: int | None = None
        """How the book stood when that began."""
        self._spent = False

    async def plan(self, descriptions: Sequence[Description]) -> None:
        """See `Duty`."""
        changes = self._state.book.changes()
        if not self._place:
            if changes == self._seen or self._clock() - self._walked_s < EVERY_S:
                return
            self._walked_s, self._seen, self._spent = self._clock(), changes, False
        found, self._place = await self._state.agenda.after(self._place, limit=STEP)
        for due in found:
            if wanted(due.context, self._settings) and due.context.distilled is None:
                self._spent |= not await self._enqueue(due, descriptions)
        if self._spent and not self._place:
            self._seen = None  # what a budget has no room for is looked at again

    async def _enqueue(self, due: Due, descriptions: Sequence[Description]) -> bool:
        context, needs, tokens = due.context, "", 0
        if self.by_model:
            writer = next((one for one in descriptions if self._settings.engine in ("", one.engine)), None)
            if writer is None:
                return False
            needs = writer.signature
            # It reads all of it, and writes a part; instructions included.
            tokens = int(context.content_bytes / _BYTES_PER_TOKEN * (1.2 + 1 / self._settings.ratio))
        case = case_of(context, due.usage, now_s=self._clock(), default_ttl_s=self._default_ttl_s)
        try:
            await self._state.jobs.enqueue(
                kind=JobKind.DISTIL,
                target=target_of(context),
                tenant=context.tenant,
                label=context.name,
                priority=self._policy(case).score,
                user=context.user,
                needs=needs,
                reserve_tokens=tokens,
            )
        except BudgetSpent as exc:
            _log.info("context %s: not distilled yet: %s", context.name, exc)
            return False
        return True

    async def run(self, held: HeldLease, desk: Desk) -> Done | Stopped | Gone | Failure:
        """See `Duty`."""
        context = await self._context(held.job.target)
        if context is None:
            return Gone("its version was replaced")
        if context.distilled is not None:
            return Gone("it is distilled already")
        content = await self._state.book.content(context.tenant, context.current)
        if content is None:
            return Gone("its version was replaced")
        writer = Writer(context, self._state.answers, held, desk, embed=self._vectors, ratio=self._settings.ratio)
        try:
            made = await self._made(content, writer)
        except Stop:
            return Stopped()
        before, after = content_bytes(content), content_bytes(made)
        if after > _NOT_SHORTER * before:
            return Failure(FailureKind.IMPOSSIBLE, f"not shorter: {after:,} of {before:,} bytes")
        if not await self._state.book.put_distilled(context, content=made, fingerprint=fingerprint_of(made)):
            return Gone("its version was replaced")
        return Done(outcome=writer.method, note=f"{writer.told}; {after:,} of {before:,} bytes")

    def _vectors(self, pieces: Sequence[str]) -> Floats:
        """In a thread. Loads what it needs the first time."""
        if self._embed is None:
            self._embed = self._load()
        return self._embed(pieces)

    async def _context(self, target: str) -> Context | None:
        """The context of a job, while it still has the version that the job is for."""
        tenant, _, name = target.split("/")
        context = await self._state.book.get(Tenant(tenant), ContextName(name))
        return context if context is not None and target_of(context) == target else None

    async def _made(self, content: Content, writer: Writer) -> Content:
        if isinstance(content, Text):
            return Text(await writer.shortened(content.text))
        messages = []
        for message in content.messages:
            long = len(message.content.encode()) > WHOLE_BYTES
            short = await writer.shortened(message.content) if long else message.content
            messages.append(msgspec.structs.replace(message, content=short))
        return Messages(tuple(messages))


def target_of(context: Context) -> str:
    """What the job for the context's current version is called; as the targets of fills, it begins with the version."""
    return f"{context.tenant}/{context.current}/{context.name}"
