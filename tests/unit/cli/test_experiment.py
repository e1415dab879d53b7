from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from fakes.engine import FakeEngine, event
from fakes.house import CHAT, House
from nightfill.config import ExperimentSettings
from nightfill.gateway.experiments import Experiments

if TYPE_CHECKING:
    from pathlib import Path

    from fakes.cli import Cli

ANSWER = {
    "choices": [
        {
            "message": {"role": "assistant", "content": "ab"},
            "logprobs": {
                "content": [
                    {"token": token, "top_logprobs": [{"token": token, "logprob": -0.1}]} for token in ("a", "b")
                ]
            },
        }
    ],
    "usage": {"prompt_tokens": 9},
}
OTHER: dict[str, Any] = {
    "choices": [
        {
            "message": {"role": "assistant", "content": "z"},
            "logprobs": {"content": [{"token": "z", "top_logprobs": [{"token": "z", "logprob": -0.1}]}]},
        }
    ],
    "usage": {"prompt_tokens": 9},
}


@pytest.fixture
def house() -> House:
    settings = ExperimentSettings(name="x", a="one", b="two", share=0.5, max_drift=0.5, min_requests=1)
    a, b = (
        FakeEngine(name=name, whole=json.dumps(answer).encode(), script=[event("a"), event("b")])
        for name, answer in (("one", ANSWER), ("two", OTHER))
    )
    return House(engine=a, others=[b], experiments=Experiments([settings], operators=("default",)))


async def test_an_experiment_is_listed_shown_drawn_and_stopped(cli: Cli, house: House, tmp_path: Path) -> None:
    async with house.client() as client:
        url = ("--url", str(client._base_url))
        for user in range(12):
            async with client.post("/v1/chat/completions", json=CHAT | {"user": f"{user}", "stream": True}) as reply:
                await reply.read()
        table = await asyncio.to_thread(cli.ok, "experiment", "ls", *url)
        assert table.splitlines()[1].split()[:5] == ["x", "running", "one", "two", "50%"]
        chart = tmp_path / "x.png"
        shown = await asyncio.to_thread(cli.ok, "experiment", "show", "x", "--chart", chart, *url)
        assert "time to first token" in shown
        assert chart.read_bytes().startswith(b"\x89PNG")
        report = await asyncio.to_thread(cli.json, "experiment", "show", "x", *url)
        assert sum(report["arms"][arm]["requests"] for arm in "ab") == 12
        assert report["ratios"]["ttft_s"]["low"] <= report["ratios"]["ttft_s"]["high"]
        assert await asyncio.to_thread(cli.ok, "experiment", "stop", "x", *url) == "x is stopped\n"
        assert "by hand" in await asyncio.to_thread(cli.ok, "experiment", "ls", *url)
        assert await asyncio.to_thread(cli.ok, "experiment", "start", "x", *url) == "x is running\n"


async def test_a_check_that_finds_other_answers_stops_it_and_says_so(cli: Cli, house: House, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hi"}]}))
    async with house.client() as client:
        url = ("--url", str(client._base_url))
        result = await asyncio.to_thread(cli, "experiment", "check", "x", "--file", prompts, *url)
        assert result.exit_code == 1
        assert "0 of 1 answers are the same; arm b differs from arm a by other tokens" in result.stdout
        assert "arm a from itself by 0 nats" in result.stdout
        assert "x is stopped" in result.stdout


async def test_a_server_without_experiments_is_told_apart_from_an_unknown_one(cli: Cli, house: House) -> None:
    async with house.client() as client:
        url = ("--url", str(client._base_url))
        said = await asyncio.to_thread(cli.refused, "experiment", "show", "y", *url)
        assert "there is no experiment 'y'" in said
    async with House().client() as client:
        said = await asyncio.to_thread(cli.refused, "experiment", "ls", "--url", str(client._base_url))
        assert "has no experiments" in said
