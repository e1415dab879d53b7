from __future__ import annotations

import msgspec
import pytest

from nightfill.engines.vllm.api import Prefilled
from nightfill.engines.vllm.checks import fitting
from nightfill.engines.vllm.wire import Report
from nightfill.errors import EngineUnfit

REPORT = Report(signature="7" * 64, salt="0" * 64, block_tokens=256, kv_bytes_per_token=100)


def probe(*, cached: int | None = 0, report: Report | None = REPORT) -> Prefilled:
    return Prefilled(prompt=2, cached=cached, report=report, seconds=0.1)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.11", "0.32.0+cpu", "0.32.1.dev3"])
def test_a_server_as_it_should_be_fits(version: str) -> None:
    assert fitting(version, probe(), block_tokens=256, engine="v1") is REPORT


@pytest.mark.parametrize(
    ("version", "found", "named"),
    [
        ("0.33.0", probe(), "vLLM 0.33.0 was not tested"),
        ("0.320.0", probe(), "vLLM 0.320.0 was not tested"),
        ("0.32.0", probe(cached=None), "--enable-prompt-tokens-details"),
        ("0.32.0", probe(report=None), "--kv-transfer-config"),
        ("0.32.0", probe(report=msgspec.structs.replace(REPORT, block_tokens=128)), "kv.block_tokens is 256"),
    ],
)
def test_an_unfit_server_is_refused_with_the_flag_that_it_lacks(version: str, found: Prefilled, named: str) -> None:
    with pytest.raises(EngineUnfit) as refused:
        fitting(version, found, block_tokens=256, engine="v1")
    assert named in str(refused.value)
    assert "not tested" in named or "nightfill vllm-args" in str(refused.value)
