"""Jobs that prepare answers to foreseen questions: a batch of one context's, one after the other."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from nightfill.answers.reply import Unfit
from nightfill.sleep.answer_request import answered
from nightfill.sleep.duty import Done
from nightfill.sleep.fill import Gone, Stopped
from nightfill.state.jobs import JobKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nightfill.engines.engine import Description
    from nightfill.sleep.duty import Desk
    from nightfill.sleep.lease import HeldLease
    from nightfill.sleep.predict_context import Foresight, Target
    from nightfill.state.answers import AnswerKey

_log = logging.getLogger(__name__)

BATCH: Final = 16
"""Questions that one job answers; then other work has its turn."""
_MOST_UNFIT: Final = 10_000


class Answering:
    """The duty of kind `answer`. What is stored already is not answered again, so a job may begin anew at any time."""

    kind: Final = JobKind.ANSWER

    def __init__(self, foresight: Foresight, *, again: Callable[[Target], None]) -> None:
        """`again` is told of a context that has more to be answered."""
        self._foresight = foresight
        self._again = again
        self._unfit: dict[AnswerKey, None] = {}
        """Questions whose replies cannot be stored."""

    async def plan(self, descriptions: Sequence[Description]) -> None:
        """See `Duty`. Its jobs are queued by predictions."""

    async def run(self, held: HeldLease, desk: Desk) -> Done | Stopped | Gone:
        """See `Duty`."""
        assert desk.engine is not None
        foresight = self._foresight
        found = await foresight.standing(held.job)
        if isinstance(found, Gone):
            return found
        known = await desk.engine.describe()
        if known.signature != found.target.key.signature:
            return Gone("the engine computes another model or version now")
        foreseen = await foresight.foreseen(found.context, found.content, known, gate=desk.gate)
        if foreseen is None:
            return Stopped()
        missing = [one for one in foreseen if not one.prepared and one.question.key not in self._unfit]
        stored = 0
        for one in missing[:BATCH]:
            call = foresight.requests.call(found.context, found.content, found.fill, one.candidate.text, known.model)
            kept = await answered(held, desk, call, max_bytes=foresight.answers.max_answer_bytes)
            if kept is None and desk.gate.stopping:
                return Stopped()
            if kept is None:
                self._again(found.target)
                return Done(outcome="crowded", note=f"{stored} answers prepared, live requests left no room for more")
            if isinstance(kept, Unfit):
                self._remember(one.question.key)
                continue
            answer = foresight.answer(found.context, one.question, kept, known, origin=one.candidate.origin)
            if not await foresight.state.answers.put(answer):
                return Gone("its version was replaced")
            await foresight.state.jobs.count(JobKind.ANSWER, one.candidate.origin)
            stored += 1
            # An answer outlives the worker: what failed before it is forgiven.
            held.done_tokens = held.kept_tokens = held.work.tokens
        if len(missing) > BATCH:
            self._again(found.target)
        return Done(outcome="answered", note=f"{stored} answers prepared, {len(missing) - stored} left")

    def _remember(self, key: AnswerKey) -> None:
        self._unfit[key] = None
        while len(self._unfit) > _MOST_UNFIT:
            del self._unfit[next(iter(self._unfit))]
