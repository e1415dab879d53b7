"""Measuring: replay queries against any OpenAI-compatible address, report what they took.

A run has arms, each a list of samples; `compare` sums them up. Charts are in `nightfill.bench.chart`, for matplotlib is
an extra; the client is in `nightfill.bench.client`, so that the figures alone can be had without a network library.
"""

from nightfill.bench.load import ClosedLoop, Load, OpenLoop, drive
from nightfill.bench.machine import Machine, commit, this_machine
from nightfill.bench.query import QUESTIONS, Query, Sample, queries, read_questions
from nightfill.bench.report import COLD, FILLED, Prices, Report, Setting, compare, to_json, to_table
from nightfill.bench.stats import ArmSummary, Cost, Interval, Spread, percentile, spread, summarise

__all__ = [
    "COLD",
    "FILLED",
    "QUESTIONS",
    "ArmSummary",
    "ClosedLoop",
    "Cost",
    "Interval",
    "Load",
    "Machine",
    "OpenLoop",
    "Prices",
    "Query",
    "Report",
    "Sample",
    "Setting",
    "Spread",
    "commit",
    "compare",
    "drive",
    "percentile",
    "queries",
    "read_questions",
    "spread",
    "summarise",
    "this_machine",
    "to_json",
    "to_table",
]
