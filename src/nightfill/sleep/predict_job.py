"""Jobs that foresee: which context's questions are due, the model's list of them, and what is to be answered."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from nightfill.answers.reply import Kept
from nightfill.contexts import FillKey, FillState, Form, Signature
from nightfill.engines.engine import Reuse
from nightfill.errors import BudgetSpent
from nightfill.sleep.answer_job import BATCH
from nightfill.sleep.answer_request import answered
from nightfill.sleep.duty import Done
from nightfill.sleep.fill import Gone, Stopped
from nightfill.sleep.predict_context import Target
from nightfill.state.answers import Origin
from nightfill.state.jobs import JobKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.contexts import Context
    from nightfill.engines.engine import Description
    from nightfill.sleep.duty import Desk
    from nightfill.sleep.lease import HeldLease
    from nightfill.sleep.predict_context import Foreseen, Foresight, Standing
    from nightfill.state.jobs import Job

_log = logging.getLogger(__name__)

STEP: Final = 200
"""Contexts that one look passes."""
PRIORITY: Final = -0.5
"""Below every fill's, above audits."""


class Predicting:
    """The duty of kind `predict`, which queues jobs of kind `answer`."""

    kind: Final = JobKind.PREDICT

    def __init__(self, foresight: Foresight, *, clock: Callable[[], float] = time.time) -> None:
        self._foresight = foresight
        self._clock = clock
        self._place = ""
        """In the walk through all contexts; empty between two of them."""
        self._walked_s = float("-inf")
        self._marks: dict[Target, tuple[object, ...]] = {}
        """What each was last predicted from."""
        self._met: set[Target] = set()
        """On this walk."""
        self._known: dict[Signature, Description] = {}

    async def plan(self, descriptions: Sequence[Description]) -> None:
        """See `Duty`."""
        self._known = {one.signature: one for one in descriptions if one.reuse is not Reuse.NONE}
        now_s, foresight = self._clock(), self._foresight
        if not self._place:
            if now_s - self._walked_s < foresight.settings.every_s:
                return
            self._walked_s = now_s
        found, self._place = await foresight.state.agenda.after(self._place, limit=STEP)
        for due in found:
            filled = {fill.key for fill in due.fills if fill.state is FillState.READY}
            for signature in self._known if foresight.wanted(due.context) else ():
                target = target_of(due.context, signature)
                if target.key in filled:
                    self._met.add(target)
                    await self._look(target, due.context, now_s)
        if not self._place:
            self._marks = {target: mark for target, mark in self._marks.items() if target in self._met}
            self._met.clear()

    def again(self, target: Target) -> None:
        """There is more to do than was done."""
        self._marks.pop(target, None)

    async def _look(self, target: Target, context: Context, now_s: float) -> None:
        foresight = self._foresight
        limits = await foresight.limits(context)
        newest = await foresight.state.questions.recent(context.tenant, context.name, limit=1)
        # Answers grow old together, and are made again then.
        age = now_s // max(float(foresight.answers.ttl_s), 1.0)
        mark = (*newest, age)
        if not any(limits.values()) or self._marks.get(target) == mark:
            return
        try:
            await queue_prediction(foresight, context, self._known[target.key.signature], priority=PRIORITY)
        except BudgetSpent as exc:
            _log.debug("nothing is foreseen for %s: %s", context.name, exc)
        else:
            self._marks[target] = mark

    async def run(self, held: HeldLease, desk: Desk) -> Done | Stopped | Gone:
        """See `Duty`."""
        foresight = self._foresight
        found = await foresight.standing(held.job)
        if isinstance(found, Gone):
            return found
        signature = found.target.key.signature
        known = self._known.get(signature) if desk.engine is None else await desk.engine.describe()
        if known is None or known.signature != signature:
            return Gone("the engine computes another model or version now")
        if desk.engine is not None and not await self._listed(held, desk, known, found):
            return Stopped()
        foreseen = await foresight.foreseen(found.context, found.content, known, gate=desk.gate)
        if foreseen is None:
            return Stopped()
        missing = [one for one in foreseen if not one.prepared]
        note = f"{len(foreseen)} questions foreseen, {len(missing)} to be answered"
        if missing:
            try:
                await self._queue_answers(found, missing, priority=held.job.priority)
            except BudgetSpent as exc:
                self.again(found.target)
                return Done(outcome="budget", note=f"{note}: {exc}")
        return Done(outcome="predicted", note=note)

    async def _queue_answers(self, found: Standing, missing: Sequence[Foreseen], *, priority: float) -> None:
        requests, context = self._foresight.requests, found.context
        await self._foresight.state.jobs.enqueue(
            kind=JobKind.ANSWER,
            target=str(found.target),
            tenant=context.tenant,
            label=context.name,
            priority=priority,
            user=context.user,
            needs=found.target.key.signature,
            reserve_tokens=sum(requests.tokens(one.candidate.text) for one in missing[:BATCH]),
        )

    async def _listed(self, held: HeldLease, desk: Desk, known: Description, found: Standing) -> bool:
        """Have the model write its list, unless one is stored. False when the worker is to stop."""
        foresight, context, bound = self._foresight, found.context, self._foresight.list_tokens
        question = foresight.list_question(context, known)
        if question is None or await foresight.state.answers.get(question.key) is not None:
            return True
        call = foresight.requests.call(
            context, found.content, found.fill, foresight.list_prompt, known.model, max_tokens=bound
        )
        kept = await answered(held, desk, call, max_bytes=foresight.answers.max_answer_bytes)
        if isinstance(kept, Kept):
            answer = foresight.answer(context, question, kept, known, origin=Origin.LIVE)
            # Near to no question of anybody's.
            await foresight.state.answers.put(replace(answer, question=""))
        return kept is not None or not desk.gate.stopping


async def queue_prediction(foresight: Foresight, context: Context, engine: Description, *, priority: float) -> Job:
    """Queue the job that foresees a context's questions. Raises BudgetSpent, QueueFull, StateUnavailable."""
    listed = foresight.list_question(context, engine)
    asks = listed is not None and await foresight.state.answers.get(listed.key) is None
    tokens = foresight.requests.tokens(foresight.list_prompt, max_tokens=foresight.list_tokens)
    return await foresight.state.jobs.enqueue(
        kind=JobKind.PREDICT,
        target=str(target_of(context, engine.signature)),
        tenant=context.tenant,
        label=context.name,
        priority=priority,
        user=context.user,
        needs=engine.signature if asks else "",
        reserve_tokens=tokens if asks else 0,
    )


def target_of(context: Context, signature: Signature) -> Target:
    """What jobs of foreseeing a context work on: its chats."""
    key = FillKey(tenant=context.tenant, fingerprint=context.current, form=Form.CHAT, signature=signature)
    return Target(key=key, context=context.name)
