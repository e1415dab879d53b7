"""What background work cost and saved, from the engine's own words to the bill."""

from __future__ import annotations

import csv
import io
import json
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving import Serve

pytestmark = pytest.mark.e2e

BUDGET: Final = 1500
SETTINGS: Final[dict[str, Any]] = {
    "engines": [{"model": "demo:tiny", "slots": 1, "machine": "bench"}],
    "kv": {"tiers": [{"kind": "disk", "max_bytes": "1GB", "min_free_bytes": 0}]},
    "sleep": {"plan_every_s": 0.3, "audit_share": 0.0},
    "prices": {"machines": {"bench": 36.0}},
    "budgets": {"user_tokens_per_day": BUDGET},
}
QUESTIONS: Final = ("Where does it begin?", "Which one is the last?", "What would you change?")


def shown(serve: Serve, *arguments: str) -> Any:
    done = serve.cli(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def anns_day(rows: list[dict[str, Any]]) -> dict[str, Any]:
    (row,) = (row for row in rows if (row["user"], row["period"]) == ("ann", "day"))
    return row


def test_the_bill_is_what_the_engines_computed_and_did_not_compute(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve("serve", settings=SETTINGS).start()
    serve.put("c", source_text(1, functions=40), user="ann")
    serve.wait_ready("c")
    eventually(lambda: [job["state"] for job in serve.jobs()] == ["done"], within_s=20, what="the job is done")
    (fill,) = serve.fills("c")
    answers = [serve.ask(question, context="c") for question in QUESTIONS]
    assert [answer.layer for answer in answers] == ["fill"] * len(QUESTIONS)
    eventually(
        lambda: shown(serve, "ledger", "--by", "total")["total"]["requests"] == len(QUESTIONS),
        within_s=20,
        what="the access log is written",
    )

    # What was spent: the ledger, the budget and the worker's own count agree.
    found = shown(serve, "ledger")
    (row,) = found["data"]
    assert (row["tenant"], row["user"], row["context"], row["fills"]) == ("default", "ann", "c", 1)
    (computed,) = serve.logged(r"ready, \d+ tokens, (\d+) computed now")
    assert int(computed) == fill["tokens"]
    assert 0 < row["background_tokens"] - int(computed) <= 9, "its proof computes a few more"
    ann = anns_day(shown(serve, "budget"))
    assert (ann["limit"], ann["spent"], ann["reserved"]) == (BUDGET, row["background_tokens"], 0)
    assert row["background_s"] >= fill["fill_seconds"] > 0
    assert row["background_money"] == pytest.approx(row["background_s"] / 100)

    # What was saved: no more than the engine says it reused of the fill.
    reused = [min(answer.reused, fill["tokens"]) for answer in answers]
    assert row["saved_tokens"] == sum(reused) > 0
    assert (row["requests"], row["hits"], row["hit_rate"]) == (3, 3, 1.0)
    assert 0 <= row["saved_s"] <= sum(reused) * fill["fill_seconds"] / fill["tokens"]
    assert row["saved_money"] == pytest.approx(row["saved_s"] / 100)
    assert serve.metric("nightfill_saved_tokens_total") == row["saved_tokens"]

    # The same over HTTP and as CSV.
    bill = serve.request("GET", "/v1/nightfill/ledger?since=1d").json()
    assert bill["data"] == found["data"]
    assert anns_day(serve.request("GET", "/v1/nightfill/budgets").json()["data"]) == ann
    (line,) = csv.DictReader(io.StringIO(serve.cli("ledger", "--csv").stdout))
    assert {key: str(value) for key, value in row.items()} == line

    # Beyond the budget nothing is filled, and who asks for it is told until when; questions are answered all the same.
    serve.put("d", source_text(2, functions=40), user="ann")
    refused = serve.request("POST", "/v1/nightfill/contexts/d/fill")
    assert (refused.status, refused.error["code"]) == (429, "budget_spent")
    assert refused.headers["x-should-retry"] == "false"
    assert 0 < int(refused.headers["retry-after"]) <= 86400 - time.time() % 86400 + 1
    assert "user ann of default" in refused.error["message"]
    by_hand = serve.cli("context", "fill", "d")
    assert (by_hand.returncode, "user ann of default" in by_hand.stderr) == (1, True)
    plan = {line["context"]: line["why"] for line in shown(serve, "plan")}
    assert plan["d"].startswith("waits for budget: ")
    assert serve.ask(context="d").status == 200

    # More of it, and the planner goes on by itself.
    assert serve.cli("budget", "set", "user:default/ann", "--day", "1000000").returncode == 0
    serve.wait_ready("d")
    assert serve.ask(context="d").layer == "fill"
