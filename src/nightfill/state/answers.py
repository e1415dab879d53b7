"""Stored answers and the questions that were asked: what the answer layer remembers of each context."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NewType, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.contexts.context import ContextName, Fingerprint, Tenant


AnswerKey = NewType("AnswerKey", bytes)
"""32 bytes: a keyed hash over everything that shapes the reply, under the tenant's own key, so that no other tenant can
so much as guess at it.
"""
AnswerScope = NewType("AnswerScope", bytes)
"""32 bytes: the same without the words of the question itself. A near answer never crosses scopes."""


class Origin(enum.StrEnum):
    """Where an answer comes from."""

    LIVE = "live"
    """Given to a client before."""
    LOG = "log"
    """Foreseen: a question of the context's own log."""
    STRUCTURE = "structure"
    """Foreseen: from the context's headings, entries, docstrings."""
    MODEL = "model"
    """Foreseen: the engine was asked what will be asked."""
    DISTIL = "distil"
    """No answer: a section of a context on its way to the distilled version. No request has its key."""


FORESEEN: Final = (Origin.LOG, Origin.STRUCTURE, Origin.MODEL)
"""Of answers that were prepared before anybody asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole reply, as it was given to the request that it answers. Times are Unix seconds by the store's clock."""

    key: AnswerKey
    scope: AnswerScope
    tenant: Tenant
    context: ContextName | None
    fingerprint: Fingerprint | None
    """The version of the context that it rests on, whole or distilled; it goes with it. None when there is no context.
    """
    model: str
    question: str
    """Empty where a near request may not be answered by it."""
    body: bytes
    """The reply as JSON, not streamed, with the usage of its making."""
    origin: Origin
    at_s: float
    """When it was made; 0 for now, by the store's clock."""
    ttl_s: float
    """Not served when older."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerNote:
    """What an index of near answers needs of one."""

    serial: int
    """Grows with each answer that is put in."""
    key: AnswerKey
    scope: AnswerScope
    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCounts:
    """Of one context and origin, since it was made: answers stored ever, those that served at least once, and how often
    in all.
    """

    stored: int = 0
    used: int = 0
    uses: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerBounds:
    """What a store keeps at most."""

    answers: int = 1_000_000
    """Of all tenants together."""
    bytes: int = 4 << 30
    """Of all answers together: their sealed questions and bodies."""
    tenant_answers: int | None = None
    """Of any one tenant."""
    questions: int = 1000
    """Of each context."""


class AnswerBook(Protocol):
    """Stored answers. Each method is atomic; several processes may share one book. Raises StateUnavailable.

    Whatever removes a version from a context removes its answers in the same transition: `ContextBook.put` of another
    version, `delete`, a tenant's end. Questions and bodies lie sealed; what cannot be opened, damaged or sealed with
    another key, is not there.
    """

    async def put(self, answer: Answer) -> bool:
        """Keep it, in place of one of the same key. False, and nothing is written, when its context does not have its
        version any more. Beyond the bounds those used longest ago go first.
        """

    async def get(self, key: AnswerKey) -> Answer | None:
        """The answer, or None when there is none or it is too old. A miss costs at most 0.1 ms at the median."""

    async def served(self, keys: Sequence[AnswerKey]) -> None:
        """Note that these served once more each."""

    async def drop(self, tenant: Tenant, *, context: ContextName | None = None) -> int:
        """Remove the tenant's answers, or those of one context; how many."""

    async def after(self, serial: int, *, limit: int = 1000) -> list[AnswerNote]:
        """Those put in after `serial`, in order; the input of an index. What was removed since is not told: `get` of a
        near match finds out.
        """

    async def gone(self, keys: Sequence[AnswerKey]) -> list[AnswerKey]:
        """Those of `keys` that have no answer any more, so that an index can forget them."""

    async def counts(self, tenant: Tenant, context: ContextName) -> dict[Origin, AnswerCounts]:
        """How much was foreseen, and how much of it served."""

    async def prune(self) -> int:
        """Drop what is too old to be served; how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question that a client asked of a context."""

    text: str
    at_s: float


class QuestionLog(Protocol):
    """The newest questions of each context, sealed, a bounded number each. They outlive its versions, since what was
    asked of one is likely to be asked of the next, and go with the context. Raises StateUnavailable.
    """

    async def note(self, tenant: Tenant, context: ContextName, questions: Sequence[Asked]) -> None:
        """Append. Nothing is written for a context that is not there."""

    async def recent(self, tenant: Tenant, context: ContextName, *, limit: int = 1000) -> list[Asked]:
        """The newest first."""
