"""Experiments in a gateway over fakes, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from fakes.engine import FakeEngine
from fakes.house import CHAT, House
from nightfill.config import Duration, ExperimentSettings, GatewaySettings
from nightfill.engines.engine import Tokens
from nightfill.errors import BadSetting, EngineTimeout, EngineUnavailable, NotFound, QueueFull
from nightfill.gateway.experiments import Experiments

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import aiohttp

    from nightfill.engines.engine import Description
    from nightfill.errors import NightfillError

PATH = "/v1/chat/completions"


@dataclass
class Trial:
    """A house with two engines of one model, and all traffic in arm B unless told otherwise."""

    a: FakeEngine = field(default_factory=lambda: FakeEngine(name="one"))
    b: FakeEngine = field(default_factory=lambda: FakeEngine(name="two"))
    share: float = 1.0
    path: Path | None = None
    given: dict[str, Any] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def open(self, **house: Any) -> AsyncIterator[aiohttp.ClientSession]:
        settings = ExperimentSettings(name="x", a="one", b="two", share=self.share, **self.given)
        self.experiments = Experiments([settings], path=self.path, operators=("default",))
        self.house = House(engine=self.a, others=[self.b], experiments=self.experiments, **house)
        async with self.house.client() as client:
            yield client

    @property
    def counts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Requests and failures of each arm."""
        one = self.experiments.get("x")
        return (one.a.requests, one.a.failures), (one.b.requests, one.b.failures)


@dataclass(frozen=True)
class Said:
    status: int
    arm: str | None
    engine: str | None
    route: str | None
    body: bytes


async def ask(
    client: aiohttp.ClientSession, *, path: str = PATH, headers: dict[str, str] | None = None, **more: Any
) -> Said:
    async with client.post(path, json=CHAT | more, headers=headers) as reply:
        found = reply.headers
        return Said(
            reply.status,
            found.get("x-nightfill-experiment"),
            found.get("x-nightfill-engine"),
            found.get("x-nightfill-route"),
            await reply.read(),
        )


async def view(client: aiohttp.ClientSession, name: str = "") -> Any:
    async with client.get(f"/v1/nightfill/experiments{name}") as reply:
        assert reply.status == 200, await reply.read()
        return await reply.json()


async def test_arm_b_answers_its_share_and_says_so() -> None:
    trial = Trial()
    async with trial.open() as client:
        said = await ask(client)
        assert (said.status, said.arm, said.engine, said.route) == (200, "x=b", "two", "experiment")
        assert trial.counts == ((0, 0), (1, 0))
    assert len(trial.a.calls) == 0


async def test_arm_a_answers_the_rest_and_arm_b_s_engine_gets_none_of_it() -> None:
    trial = Trial(share=0.0)
    async with trial.open() as client:
        said = [await ask(client) for _ in range(12)]
        assert {(one.arm, one.engine) for one in said} == {("x=a", "one")}
        assert trial.counts == ((12, 0), (0, 0))


async def test_a_session_stays_in_its_arm_and_others_do_not_share_it() -> None:
    trial = Trial(share=0.5)
    async with trial.open() as client:
        arms = {}
        for user in range(24):
            arms[user] = {(await ask(client, user=f"user {user}")).arm for _ in range(3)}
        assert all(len(one) == 1 for one in arms.values())
        assert set.union(*arms.values()) == {"x=a", "x=b"}


async def test_what_is_measured_of_each_arm_is_shown() -> None:
    trial = Trial()
    async with trial.open() as client:
        await ask(client, stream=True)
        one = await view(client, "/x")
        assert (one["state"], one["arms"]["b"]["requests"]) == ("running", 1)
        measures = one["arms"]["b"]["measures"]
        assert measures["output_tokens"] == {"n": 1, "mean": 3.0, "p50": 3.0, "values": [3.0]}
        assert measures["ttft_s"]["mean"] > 0
        assert measures["inter_token_s"]["n"] == 1
        (row,) = (await view(client))["data"]
        assert "values" not in row["arms"]["b"]["measures"]["ttft_s"]


async def test_what_was_guessed_ahead_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial()
    monkeypatch.setattr("fakes.engine.Tokens", lambda **given: Tokens(**given, drafted=10, accepted=6))
    async with trial.open() as client:
        await ask(client)
        arm = (await view(client, "/x"))["arms"]["b"]
        assert (arm["drafted_tokens"], arm["accepted_tokens"], arm["acceptance"]) == (10, 6, 0.6)
        assert trial.house.value("nightfill_accepted_tokens_total") == 6


FAILURES: dict[str, NightfillError] = {
    "gone": EngineUnavailable("gone", engine="two"),
    "silent": EngineTimeout("silent", engine="two"),
    "full": QueueFull("full"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_arm_b_cannot_do_arm_a_does(failure: str, stream: bool) -> None:
    trial = Trial(b=FakeEngine(name="two", refusal=FAILURES[failure]))
    async with trial.open() as client:
        said = await ask(client, stream=stream)
        assert (said.status, said.arm, said.engine) == (200, "x=a", "one")
        assert trial.counts == ((0, 0), (1, 1))


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_that_arm_b_answers_is_not_sent_on(stream: bool) -> None:
    trial = Trial(b=FakeEngine(name="two", status=500))
    async with trial.open() as client:
        assert (await ask(client, stream=stream)).status == 200
        assert trial.counts == ((0, 0), (1, 1))


async def test_an_answer_that_breaks_before_the_client_has_any_of_it_is_made_good() -> None:
    b = FakeEngine(name="two", dies_before=0, death=EngineUnavailable("died", engine="two"))
    trial = Trial(b=b)
    async with trial.open() as client:
        assert (await ask(client)).status == 200
        assert trial.counts == ((0, 0), (1, 1))


async def test_a_stream_that_breaks_midway_is_arm_b_s_failure() -> None:
    b = FakeEngine(name="two", dies_before=1, death=EngineUnavailable("died", engine="two"))
    trial = Trial(b=b)
    async with trial.open() as client:
        said = await ask(client, stream=True)
        assert said.arm == "x=b"
        assert b"died" in said.body
        assert trial.counts == ((0, 0), (1, 1))
    assert trial.a.calls == []


async def test_an_arm_b_that_says_nothing_is_not_waited_for() -> None:
    b = FakeEngine(name="two", gates={0: asyncio.Event()})
    trial = Trial(b=b, given={"patience_s": Duration(0.2)})
    async with trial.open() as client:
        assert (await ask(client, stream=True)).engine == "one"
        assert trial.counts == ((0, 0), (1, 1))


async def test_an_arm_b_that_is_known_to_be_away_is_not_asked_and_has_failed() -> None:
    trial = Trial(b=FakeEngine(name="two", refusal=EngineUnavailable("gone", engine="two"), is_healthy=False))
    async with trial.open() as client:
        assert [(await ask(client)).engine for _ in range(4)] == ["one"] * 4
        assert trial.counts == ((0, 0), (4, 4))
    assert len(trial.b.calls) <= 1


async def test_the_client_s_own_fault_is_neither_arm_s() -> None:
    trial = Trial(a=FakeEngine(name="one", status=400), b=FakeEngine(name="two", status=400))
    async with trial.open() as client:
        assert (await ask(client)).status == 400
        assert trial.counts == ((0, 0), (0, 0))


async def test_what_arm_b_alone_refuses_is_its_failure() -> None:
    trial = Trial(b=FakeEngine(name="two", status=400))
    async with trial.open() as client:
        assert (await ask(client)).status == 200
        assert trial.counts == ((0, 0), (1, 1))


async def test_an_arm_that_always_fails_is_stopped_at_the_least_number_of_requests(tmp_path: Path) -> None:
    trial = Trial(b=FakeEngine(name="two", status=500), path=tmp_path / "stops", given={"min_requests": 5})
    async with trial.open() as client:
        said = [await ask(client) for _ in range(12)]
        assert {one.status for one in said} == {200}
        assert len(trial.b.calls) == 5
        one = await view(client, "/x")
        assert one["state"] == "stopped"
        assert "failed 5 of 5" in one["stopped"]["reason"]
        assert [one.arm for one in said[4:7]] == ["x=a", None, None]
        assert trial.house.value("nightfill_experiment_running", experiment="x") == 0
    # It stays stopped when the server is started again, until somebody starts it.
    again = Trial(path=tmp_path / "stops")
    async with again.open() as client:
        assert (await ask(client)).engine == "one"
        async with client.post("/v1/nightfill/experiments/x/start") as reply:
            assert (reply.status, (await reply.json())["state"]) == (200, "running")
        assert (await ask(client)).engine == "two"
    once_more = Trial(path=tmp_path / "stops")
    async with once_more.open() as client:
        assert (await ask(client)).engine == "two"


async def test_it_can_be_stopped_by_hand_and_all_goes_to_arm_a() -> None:
    trial = Trial()
    async with trial.open() as client:
        for _ in range(2):
            async with client.post("/v1/nightfill/experiments/x/stop") as reply:
                assert (await reply.json())["stopped"]["reason"] == "by hand"
        said = [await ask(client) for _ in range(8)]
        assert {(one.arm, one.engine) for one in said} == {(None, "one")}


async def test_drift_beyond_the_bound_stops_it() -> None:
    trial = Trial(given={"max_drift": 0.2, "min_requests": 10})
    async with trial.open() as client:
        for drift, state in ((0.25, "running"), (None, "stopped")):
            body = {"prompts": 10, "same": 9, "drift": drift, "noise": 0.1}
            async with client.post("/v1/nightfill/experiments/x/drift", json=body) as reply:
                found = await reply.json()
            assert (reply.status, found["state"], found["drift"]["drift"]) == (200, state, drift)
        assert "inf nats" in found["stopped"]["reason"]


async def test_an_arm_may_be_asked_for_and_then_nothing_is_counted() -> None:
    trial = Trial(share=0.0, b=FakeEngine(name="two", status=500))
    async with trial.open() as client:
        said = await ask(client, headers={"x-nightfill-experiment": "x=b"})
        assert (said.status, said.arm) == (500, "x=b")
        assert (await ask(client, headers={"x-nightfill-experiment": "x=a"})).engine == "one"
        assert trial.counts == ((0, 0), (0, 0))
        assert (await ask(client, headers={"x-nightfill-experiment": "y=b"})).status == 404
        assert (await ask(client, headers={"x-nightfill-experiment": "x=c"})).status == 400


async def test_only_who_runs_the_server_may_choose_stop_and_start() -> None:
    keys = {"default": "key-of-the-operator", "acme": "key-of-acme"}
    trial = Trial()
    async with trial.open(settings=GatewaySettings(port=0, api_keys=keys)) as client:
        acme = {"authorization": "Bearer key-of-acme"}
        operator = {"authorization": "Bearer key-of-the-operator"}
        assert (await ask(client, headers=acme | {"x-nightfill-experiment": "x=b"})).status == 403
        assert (await ask(client, headers=operator | {"x-nightfill-experiment": "x=b"})).status == 200
        assert (await ask(client, headers=acme)).arm == "x=b"
        for action in ("stop", "start", "drift"):
            async with client.post(f"/v1/nightfill/experiments/x/{action}", headers=acme) as reply:
                assert reply.status == 403
        async with client.post("/v1/nightfill/experiments/y/stop", headers=operator) as reply:
            assert reply.status == 404


async def test_another_model_of_arm_b_is_there_by_its_own_name() -> None:
    trial = Trial(share=0.0, b=FakeEngine(name="two", model="other"))
    async with trial.open() as client:
        assert (await ask(client)).arm == "x=a"
        said = await ask(client, model="other")
        assert (said.engine, said.arm) == ("two", None)
        assert (await ask(client, headers={"x-nightfill-experiment": "x=b"}, model="other")).status == 400


async def test_an_arm_b_that_is_not_up_yet_is_missed_and_has_not_failed() -> None:
    trial = Trial(b=FakeEngine(name="two", ailment=EngineUnavailable("starting", engine="two")))
    async with trial.open() as client:
        assert (await ask(client)).engine == "one"
        assert (await view(client, "/x"))["arms"]["b"]["missed"] == 1
        assert trial.counts == ((0, 0), (0, 0))
        assert (await ask(client, headers={"x-nightfill-experiment": "x=b"})).status == 503


async def test_arm_b_is_not_taken_for_all_there_is_while_arm_a_says_what_it_is() -> None:
    class Slow(FakeEngine):
        async def describe(self) -> Description:
            await gate.wait()
            return await super().describe()

    gate = asyncio.Event()
    trial = Trial(a=Slow(name="one"), share=0.0)
    async with trial.open() as client, asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(ask(client))
        await trial.b.probed.wait()
        gate.set()
        assert (await asked).engine == "one"


async def test_one_engine_is_compared_with_itself_in_another_mode() -> None:
    settings = ExperimentSettings(name="x", a="one", b="one", mode="distilled", share=1.0)
    house = House(engine=FakeEngine(name="one"), experiments=Experiments([settings]))
    async with house.client() as client:
        async with client.put("/v1/nightfill/contexts/c", json={"text": "long " * 100}) as reply:
            assert reply.status == 201
        said = await ask(client, nightfill={"context": "c"})
        assert (said.status, said.arm, said.engine) == (200, "x=b", "one")


def test_a_damaged_note_of_what_is_stopped_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "stops").write_bytes(b"{")
    with pytest.raises(BadSetting, match="which experiments are stopped"):
        Experiments([], path=tmp_path / "stops")


def test_an_experiment_that_there_is_not_is_not_found() -> None:
    with pytest.raises(NotFound, match="no experiment"):
        Experiments([]).get("x")
