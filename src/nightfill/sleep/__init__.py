"""When background work runs, and what it does."""

from nightfill.sleep.description import description_of, note_of
from nightfill.sleep.duty import Desk, Done, Duty
from nightfill.sleep.plan import PlanLine, Verdict, plan
from nightfill.sleep.planner import Planner, plan_lines
from nightfill.sleep.pool import EnginePool
from nightfill.sleep.upkeep import StoreUpkeep
from nightfill.sleep.warm import Warmer, warming
from nightfill.sleep.worker import Worker

__all__ = [
    "Desk",
    "Done",
    "Duty",
    "EnginePool",
    "PlanLine",
    "Planner",
    "StoreUpkeep",
    "Verdict",
    "Warmer",
    "Worker",
    "description_of",
    "note_of",
    "plan",
    "plan_lines",
    "warming",
]
