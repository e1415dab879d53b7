from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fakes.engine import FakeEngine
from nightfill.cli.engine_room import described, engines_for, engines_to_serve, first_described
from nightfill.config import EngineSettings, Settings
from nightfill.errors import BadSetting, EngineUnavailable, EngineUnfit

if TYPE_CHECKING:
    from nightfill.config import Role
    from nightfill.engines.engine import Description

GONE = EngineUnavailable("cannot be reached", engine="fake")


def vllm(name: str, *roles: Role) -> EngineSettings:
    return EngineSettings(name=name, kind="vllm", url="http://127.0.0.1:1", roles=roles)


FLEET = Settings(
    engines=(
        EngineSettings(name="local", model="m.gguf"),
        vllm("both"),
        vllm("server", "serve"),
        vllm("filler", "fill"),
        vllm("first", "prefill"),
        vllm("second", "decode", "fill"),
    )
)


def test_engines_without_roles_serve_and_fill() -> None:
    assert [one.name for one in engines_to_serve(FLEET)] == ["local", "both", "server", "second"]
    assert [one.name for one in engines_for(FLEET, "fill")] == ["local", "both", "filler", "second"]
    assert [one.name for one in engines_for(FLEET, "prefill")] == ["first"]


def test_several_llama_engines_stand_side_by_side() -> None:
    both = (EngineSettings(name="a", model="m"), EngineSettings(name="b", model="n"))
    assert engines_to_serve(Settings(engines=both)) == both == engines_for(Settings(engines=both), "fill")


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ((), "none is configured: give --model FILE.gguf"),
        ((vllm("a", "fill"), vllm("b", "prefill")), "none has the role serve, or decode"),
    ],
)
def test_engines_that_cannot_serve_are_refused(engines: tuple[EngineSettings, ...], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        engines_to_serve(Settings(engines=engines))


class Late(FakeEngine):
    """Is there when it is asked for the second time."""

    looks = 0

    async def describe(self) -> Description:
        self.looks += 1
        if self.looks == 1:
            raise GONE
        return await super().describe()


async def test_the_first_engine_that_is_up_is_enough() -> None:
    unfit = FakeEngine(name="unfit", ailment=EngineUnfit("lacks a flag", engine="unfit"))
    late = Late(name="late")
    assert (await first_described([(FakeEngine(ailment=GONE), 600), (unfit, 600), (late, 600)])).engine == "late"


async def test_what_ails_the_last_engine_is_told_when_none_comes_up() -> None:
    unfit = FakeEngine(name="unfit", ailment=EngineUnfit("lacks a flag", engine="unfit"))
    with pytest.raises(EngineUnfit, match="lacks a flag"):
        await first_described([(unfit, 600)])
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await first_described([(FakeEngine(ailment=GONE), -1)])


async def test_an_engine_that_is_started_by_asking_is_not_asked_again() -> None:
    assert (await described(Late(name="late"), 600)).engine == "late"
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await described(Late(name="late"), 600, comes_up=False)
