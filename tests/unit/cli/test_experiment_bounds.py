from __future__ import annotations

from typing import Any

import pytest

from nightfill.cli.bounds import check_bounds
from nightfill.config import EngineSettings, ExperimentSettings, Settings, SpeculationSettings
from nightfill.errors import BadSetting

LLAMA = EngineSettings(name="one", model="m.gguf")
OTHER = EngineSettings(name="two", model="m.gguf")
THIRD = EngineSettings(name="three", model="m.gguf")
FILLS = EngineSettings(name="fills", kind="vllm", url="http://h", roles=("fill",))


def speculating(kind: Any, **wanted: Any) -> Settings:
    url = "http://127.0.0.1:1" if kind == "vllm" else ""
    return Settings(engines=(EngineSettings(kind=kind, url=url, model="m", speculation=SpeculationSettings(**wanted)),))


def trying(*experiments: ExperimentSettings) -> Settings:
    return Settings(engines=(LLAMA, OTHER, THIRD, FILLS), experiments=experiments)


def experiment(name: str = "x", a: str = "one", b: str = "two", **more: Any) -> ExperimentSettings:
    return ExperimentSettings(name=name, a=a, b=b, **more)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("llama", {}),
        ("llama", {"method": "ngram", "tokens": 8}),
        ("llama", {"method": "draft", "model": "d.gguf"}),
        ("llama", {"method": "mtp"}),
        ("vllm", {"method": "eagle", "model": "org/head"}),
    ],
)
def test_speculation_that_goes_together_is_taken(kind: str, wanted: dict[str, Any]) -> None:
    check_bounds(speculating(kind, **wanted))


@pytest.mark.parametrize(
    ("kind", "wanted", "says"),
    [
        ("llama", {"method": "eagle", "model": "h.gguf"}, "method = 'eagle': llama.cpp has eagle3"),
        ("llama", {"method": "draft"}, "model = '': draft needs one"),
        ("vllm", {"method": "eagle3"}, "model = '': eagle3 needs one"),
        ("llama", {"method": "ngram", "model": "m.gguf"}, "ngram takes no other model"),
        ("vllm", {"method": "mtp", "model": "m"}, "mtp takes no other model"),
        ("llama", {"tokens": 3}, "nothing without a method"),
        ("llama", {"model": "m.gguf"}, "nothing without a method"),
    ],
)
def test_speculation_that_does_not_is_refused(kind: str, wanted: dict[str, Any], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        check_bounds(speculating(kind, **wanted))


def test_experiments_between_engines_and_of_a_mode_are_taken() -> None:
    check_bounds(trying(experiment(), experiment("y", a="three", b="three", mode="distilled")))


@pytest.mark.parametrize(
    ("experiments", "says"),
    [
        ([experiment("a b")], r"experiments\.0\.name"),
        ([experiment(""), experiment("")], r"experiments\.0\.name"),
        ([experiment(), experiment()], r"experiments\.1\.name"),
        ([experiment(a="nobody")], r"experiments\.0\.a"),
        ([experiment(b="fills")], r"experiments\.0\.b"),
        ([experiment(b="one")], "unless a mode is given"),
        ([experiment(), experiment("y", b="three")], r"experiments\.1\.a = 'one': is arm a of another"),
        ([experiment(), experiment("y", a="two", b="one")], r"experiments\.0\.a = 'one': is arm b"),
    ],
)
def test_experiments_that_cannot_be_are_refused(experiments: list[ExperimentSettings], says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        check_bounds(trying(*experiments))
