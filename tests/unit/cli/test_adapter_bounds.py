from __future__ import annotations

from typing import Any

import pytest

from nightfill.cli.adapter_bounds import check_adapters
from nightfill.config import AdapterSettings, EngineSettings, Settings
from nightfill.errors import BadSetting


def adapter(name: str = "a", **more: Any) -> AdapterSettings:
    return AdapterSettings(**{"name": name, "path": "/a", **more})


def check(*adapters: AdapterSettings, **more: Any) -> None:
    check_adapters(Settings(engines=(EngineSettings(name="v1", adapters=adapters, **more),)))


@pytest.mark.parametrize(
    ("adapters", "more", "says"),
    [
        ([adapter("")], {}, r"adapters\.0\.name = ''"),
        ([adapter(), adapter()], {}, r"adapters\.1\.name"),
        ([adapter("m")], {"model": "m"}, "all models"),
        ([adapter("m")], {"served_model_name": "m"}, "all models"),
        ([adapter(path="")], {}, r"adapters\.0\.path"),
        ([adapter(scale=0.5)], {"kind": "vllm"}, r"adapters\.0\.scale: is for llama"),
        ([adapter()], {"kind": "vllm", "roles": ("decode",)}, "prefill or decode"),
    ],
)
def test_adapters_that_cannot_be_told_apart_or_used_are_refused(
    adapters: list[AdapterSettings], more: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadSetting, match=says):
        check(*adapters, **more)


def test_engines_of_one_model_may_have_the_same_adapters() -> None:
    engines = tuple(EngineSettings(name=name, kind="vllm", adapters=(adapter(),)) for name in ("v1", "v2"))
    check_adapters(Settings(engines=engines))
    check(adapter(scale=0.5), adapter("b"))
