from __future__ import annotations

import gzip
import json
import random
from collections import defaultdict
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest

from nightfill.contexts import ContextName, Fill, FillKey, FillState, Form, Signature, Tenant, Text, fingerprint_of
from nightfill.contexts.context import TextSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fakes.cli import Cli
    from nightfill.state.sqlite import SqliteState

MANUAL = "".join(f"Chapter {number}: the {number * 7919} steps that come next.\n" for number in range(100))
TERMS = "".join(f"Clause {number}: either side owes {number * 31} to the other one.\n" for number in range(100))


def write(path: Path, rows: Sequence[object]) -> Path:
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def chat(system: str, question: str, *, at_s: float | None = None, tenant: str | None = None) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    row: dict[str, Any] = {"request": {"model": "m", "messages": messages}}
    return {**row, **({"timestamp": at_s} if at_s else {}), **({"tenant": tenant} if tenant else {})}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows: list[object] = []
    for number in range(6):
        rows.append(chat(MANUAL, f"question {number}", at_s=1_700_000_000 + 60 * number, tenant="acme"))
        rows.append({"model": "m", "prompt": f"{TERMS}Question {number}?", "created": 1_700_000_000 + 10 * number})
        rows.append(chat(f"Today is 2024-05-{number + 1:02}.\n{TERMS}", "x", at_s=1_700_000_000 + 5 * number))
    return write(tmp_path / "log.jsonl", [*rows, "garbage", "", '{"a": 1}'])


def test_a_trace_has_the_prefixes_of_a_plain_count(cli: Cli, tmp_path: Path) -> None:
    rng = random.Random(3)
    rows: list[dict[str, Any]] = []
    for number in range(300):
        old = rng.choice(rows)["hash_ids"] if rows and rng.random() < 0.5 else []
        ids = [*old[: rng.randrange(1, 16)], *range(100 * number, 100 * number + rng.randrange(1, 16))]
        tokens = 512 * len(ids) - rng.randrange(512)
        rows.append({"timestamp": 3000 * number, "input_length": tokens, "output_length": 1, "hash_ids": ids})
    times: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if len(row["hash_ids"]) >= 8:
            times[row["hash_ids"][7]].append(row["timestamp"] / 1000)
    found = cli.json("profile", write(tmp_path / "trace.jsonl.gz", rows))
    assert (found["kind"], found["block_tokens"], found["requests"]) == ("blocks", 512, 300)
    assert found["distinct_prefixes"] == len(times)
    assert found["recurring_prefixes"] == sum(len(at) > 1 for at in times.values())
    assert found["interval_p50_s"] == median(
        [after - before for at in times.values() for before, after in pairwise(at)]
    )
    assert found["prompt_tokens"] == sum(row["input_length"] for row in rows)
    assert not cli.data.exists(), "looking at a log makes no data folder"


def test_a_log_shows_what_recurs_what_it_would_cost_and_save(cli: Cli, log: Path) -> None:
    found = cli.json("profile", log, "--min-tokens", "1000", "--prefill-tps", "100")
    assert (found["requests"], found["bad_lines"], found["untimed_requests"]) == (18, 2, 0)
    assert found["first_bad_lines"] == [
        {"file": "log.jsonl", "line": 19, "why": "no JSON object"},
        {"file": "log.jsonl", "line": 21, "why": "has neither messages, prompt nor hash_ids"},
    ]
    assert found["tokens_by"] == "estimated as bytes / 4"
    rows = {row["tenant"]: row for row in found["prefixes"]}
    row = rows["acme"]
    tokens = len(MANUAL) / 4
    assert row["tokens"] == pytest.approx(tokens, abs=1)
    assert (row["requests"], row["recurrences"], row["form"], row["interval_p50_s"]) == (6, 5, "chat", 60)
    assert row["background_s"] == pytest.approx(tokens / 100, abs=0.1)
    assert row["saved_s"] == pytest.approx(5 * tokens / 100, abs=0.1)
    assert row["background_money"] == pytest.approx(row["background_s"] * 1.66 / 3600)
    assert row["saved_money"] == pytest.approx(row["saved_s"] * 2.57 / 3600)
    assert row["break_even"] == pytest.approx(1.66 / 2.57)
    # A fill of 14 s that is wanted again after 10 s comes too late for the first of these uses.
    assert rows["default"]["too_soon"] == 1


def test_what_breaks_reuse_is_shown_with_its_place_and_without_its_text(cli: Cli, log: Path) -> None:
    (row,) = cli.json("profile", log, "--min-tokens", "1000")["breaks_reuse"]
    assert (row["requests"], row["tenant"], row["form"]) == (6, "default", "chat")
    assert row["places"] == [{"message": 0, "offset": 9, "kind": "date", "shortest": 10, "longest": 10}]
    assert row["saved_tokens"] == pytest.approx(5 * len(TERMS) / 4, rel=0.05)
    shown = cli.ok("profile", log, "--min-tokens", "1000")
    assert "date of 10 characters at character 9 of message 0\n" in shown
    assert "2024" not in shown
    assert "'2024-05-01', '2024-05-02'" in cli.ok("profile", log, "--min-tokens", "1000", "--show-text")


def test_no_text_of_a_log_is_printed_unasked(cli: Cli, log: Path) -> None:
    for shown in (cli.ok("profile", log, "--min-tokens", "1000"), json.dumps(cli.json("profile", log))):
        assert not {"Chapter", "Clause", "uestion"} & set(shown.replace(":", " ").split())


def test_the_table_says_what_was_left_out_and_by_what_it_counts(cli: Cli, log: Path) -> None:
    result = cli("profile", log, "--min-tokens", "1000")
    assert "8 distinct_prefixes, 2 recurring_prefixes, 10 recurrences" in result.stdout
    assert "2 lines that are no requests: log.jsonl line 19 (no JSON object)" in result.stderr
    assert "assumed" in result.stdout
    assert "TENANT" in result.stdout


def test_registering_makes_contexts_of_what_stays_the_same_and_only_once(cli: Cli, log: Path) -> None:
    dry = cli.json("profile", log, "--min-tokens", "1000", "--register", "--dry-run")
    assert {row["registered"]["did"] for row in dry["prefixes"]} == {"would add"}
    assert cli.json("context", "ls") == []
    made = cli.json("profile", log, "--min-tokens", "1000", "--register")
    names = {row["tenant"]: row["registered"]["name"] for row in made["prefixes"]}
    assert {row["registered"]["did"] for row in made["prefixes"]} == {"added"}
    again = cli.json("profile", log, "--min-tokens", "1000", "--register")
    assert {row["registered"]["did"] for row in again["prefixes"]} == {"unchanged"}
    contexts = {one["tenant"]: one for one in cli.json("context", "ls")}
    assert {tenant: one["name"] for tenant, one in contexts.items()} == names
    assert names["acme"] == f"found-{contexts['acme']['fingerprint'][:8]}"
    assert contexts["acme"]["forms"] == ["chat"]
    assert contexts["default"]["forms"] == ["completion"]
    assert cli.ok("context", "show", names["acme"], "--text", "--tenant", "acme") == MANUAL
    assert cli.ok("context", "show", names["default"], "--text") == TERMS


def test_contexts_may_be_made_for_a_tenant_of_ones_own(cli: Cli, log: Path) -> None:
    cli.ok("profile", log, "--min-tokens", "1000", "--register", "--tenant", "ours")
    assert {one["tenant"] for one in cli.json("context", "ls")} == {"ours"}


def test_what_changes_each_day_is_never_registered(cli: Cli, tmp_path: Path) -> None:
    rows = [chat(f"Today is 2024-05-{day:02}.\n{TERMS}", f"q{n}") for day in (1, 2) for n in range(4)]
    made = cli.json("profile", write(tmp_path / "log", rows), "--min-tokens", "1000", "--register")
    assert [row["volatile"] for row in made["prefixes"]] == [True, True]
    assert {row["registered"]["did"] for row in made["prefixes"]} == {"left"}
    assert cli.json("context", "ls") == []


def test_what_ends_within_a_users_message_is_left_and_says_why(cli: Cli, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{MANUAL}{n}?"}]} for n in range(3)]
    (row,) = cli.json("profile", write(tmp_path / "log", rows), "--min-tokens", "1000", "--register")["prefixes"]
    assert row["registered"]["did"] == "left"
    assert "within a message" in row["registered"]["why"]


def test_a_trace_cannot_be_registered(cli: Cli, tmp_path: Path) -> None:
    trace = write(tmp_path / "trace", [{"timestamp": 0, "input_length": 5, "hash_ids": [1]}])
    assert "hashes only" in cli.refused("profile", trace, "--register")


def test_fills_that_are_there_say_how_quick_the_engine_is_and_how_long_a_token(cli: Cli, log: Path) -> None:
    async def fill(state: SqliteState) -> None:
        content = Text("abcde" * 2000)
        context = await state.book.put(
            tenant=Tenant("default"),
            name=ContextName("manual"),
            source=TextSource(),
            content=content,
            fingerprint=fingerprint_of(content),
            forms=(Form.CHAT,),
        )
        key = FillKey(tenant=context.tenant, fingerprint=context.current, form=Form.CHAT, signature=Signature("0" * 64))
        done = Fill(
            key=key,
            state=FillState.READY,
            tokens=tuple(range(2000)),
            stored_tokens=2000,
            filled_at_s=1.0,
            fill_seconds=4.0,
        )
        await state.book.put_fill(done)

    cli.ok("context", "ls")
    cli.state(fill)
    found = cli.json("profile", log, "--min-tokens", "800")
    assert (found["prefill_tokens_per_s"], found["prefill_by"]) == (500, "as the fills in the state took")
    assert found["bytes_per_token"] == 5
    assert "tokenizer" in found["tokens_by"]
    acme = next(row for row in found["prefixes"] if row["tenant"] == "acme")
    assert acme["tokens"] == pytest.approx(len(MANUAL) / 5, abs=1)


def test_a_state_that_cannot_be_read_is_told_and_the_log_is_read_all_the_same(cli: Cli, log: Path) -> None:
    cli.data.mkdir()
    (cli.data / "state.db").write_bytes(b"no database" * 100)
    result = cli("profile", log, "--min-tokens", "1000")
    assert result.exit_code == 0
    assert "state cannot be read" in result.stderr
    assert "assumed" in result.stdout


def test_little_memory_forgets_and_says_so(cli: Cli, tmp_path: Path) -> None:
    rows = [chat(f"{number} {MANUAL}", "x", at_s=1e9 + number) for number in range(300)]
    log = write(tmp_path / "log", [*rows, *rows])
    found = cli.json("profile", log, "--min-tokens", "200", "--memory", "1MiB")
    memory = found["memory"]
    assert memory["prefixes"] <= memory["max_prefixes"]
    assert memory["forgotten"] > 0
    assert memory["recurrences_missed_at_most"] >= 300 - found["recurrences"] > 0
    assert "were forgotten" in cli("profile", log, "--min-tokens", "200", "--memory", "1MiB").stderr


@pytest.mark.parametrize("content", [b"", b"\0\1\2" * 100, b"{}\n[]\n", b"\x1f\x8bnot gzip", "{\n" * 50])
def test_garbage_is_refused_and_nothing_crashes(cli: Cli, tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "log"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "no line is a request" in cli.refused("profile", path)


def test_wrong_use_is_refused(cli: Cli, log: Path, tmp_path: Path) -> None:
    assert "No such file" in cli.refused("profile", tmp_path / "none")
    assert "--register" in cli.refused("profile", log, "--dry-run")
    assert "not allowed" in cli.refused("profile", log, "--register", "--tenant", "No Such")
    assert "is not a valid" in cli.refused("profile", log, "--min-tokens", "x")
    assert "size" in cli.refused("profile", log, "--memory", "much")


def test_several_files_are_one_log(cli: Cli, tmp_path: Path) -> None:
    first = write(tmp_path / "one", [chat(MANUAL, "a")])
    second = write(tmp_path / "two.gz", [chat(MANUAL, "b"), "bad"])
    found = cli.json("profile", first, second, "--min-tokens", "1000")
    assert (found["requests"], found["recurring_prefixes"], found["files"]) == (2, 1, ["one", "two.gz"])
