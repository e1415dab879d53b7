from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from fakes.engine import SIGNATURE
from fakes.state import FakeQueue
from nightfill.contexts import ContextName, FillKey, Fingerprint, Form, Tenant
from nightfill.engines.engine import Call
from nightfill.errors import BudgetSpent
from nightfill.gateway.audit import PRIORITY, Audits
from nightfill.gateway.layers import Plan
from nightfill.gateway.proof import Layer, Verdict
from nightfill.state.jobs import JobKind

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = FillKey(tenant=Tenant("one"), fingerprint=Fingerprint("f" * 64), form=Form.CHAT, signature=SIGNATURE)
PLAN = Plan(
    call=Call(path="/v1/chat/completions", body={"model": msgspec.Raw(b'"m"')}, stream=False),
    context=ContextName("repo"),
    fill=KEY,
    user="ann",
)
USED = Verdict(layer=Layer.FILL, proven=True, broken=False)


def drawing(*numbers: float) -> Callable[[], float]:
    left = list(numbers)
    return lambda: left.pop(0)


async def test_a_share_of_the_requests_has_its_fill_looked_over() -> None:
    queue = FakeQueue()
    audits = Audits(queue, share=0.25, draw=drawing(0.25, 0.9, 0.24))
    await audits.consider(PLAN, USED)
    await audits.consider(PLAN, USED)
    assert queue.rows == {}
    await audits.consider(PLAN, USED)
    (job,) = queue.rows.values()
    assert (job.kind, job.target, job.tenant, job.label, job.priority) == (
        JobKind.VERIFY,
        str(KEY),
        "one",
        "repo",
        PRIORITY,
    )
    assert (job.user, job.needs) == ("ann", SIGNATURE)


async def test_a_fill_waits_for_one_look_however_often_it_is_used() -> None:
    queue = FakeQueue()
    audits = Audits(queue, share=1.0)
    for _ in range(5):
        await audits.consider(PLAN, USED)
    assert len(queue.rows) == 1


@pytest.mark.parametrize(
    ("plan", "verdict"),
    [
        (PLAN, Verdict(layer=Layer.COLD, proven=True, broken=False)),
        (PLAN, Verdict(layer=Layer.PREFIX, proven=True, broken=False)),
        (PLAN, Verdict(layer=Layer.FILL, proven=False, broken=False)),
        (PLAN, Verdict(layer=Layer.FILL, proven=True, broken=True)),
        (Plan(call=PLAN.call), USED),
    ],
)
async def test_requests_that_no_fill_is_known_to_have_served_are_no_reason(plan: Plan, verdict: Verdict) -> None:
    queue = FakeQueue()
    await Audits(queue, share=1.0).consider(plan, verdict)
    assert queue.rows == {}


async def test_a_share_of_nothing_asks_nobody_and_a_queue_that_is_down_harms_nobody() -> None:
    queue = FakeQueue()
    await Audits(queue, share=0.0).consider(PLAN, USED)
    assert queue.rows == {}
    queue.down = True
    await Audits(queue, share=1.0).consider(PLAN, USED)


async def test_a_spent_budget_is_worth_no_audit_and_no_error() -> None:
    queue = FakeQueue(spent=BudgetSpent("nothing left", resets_at_s=1.0))
    await Audits(queue, share=1.0).consider(PLAN, USED)
    assert queue.rows == {}
