from __future__ import annotations

import os
import sys

import pytest

from nightfill.engines.vllm import memory
from nightfill.engines.vllm.memory import device_bytes, device_listing, host_bytes
from nightfill.errors import EngineError

MIB = 1 << 20


@pytest.mark.parametrize(
    ("listing", "mib"),
    [
        ("1234, 70128\n5678, 512\n1235, 1024\n", 71152),
        ("1234, 70128 MiB\n", 70128),
        ("1234, 70128\n1235, [N/A]\n", 70128),
    ],
)
def test_what_nvidia_smi_says_is_added_up_over_devices_and_processes(listing: str, mib: int) -> None:
    assert device_bytes(listing, {1234, 1235}, engine="v1") == mib * MIB


@pytest.mark.parametrize("listing", ["5678, 512\n", "1234, [N/A]\n", "No running processes found\n", ""])
def test_where_it_says_nothing_of_them_that_is_an_error(listing: str) -> None:
    with pytest.raises(EngineError, match="engine v1: cannot be measured: nvidia-smi does not say"):
        device_bytes(listing, {1234, 1235}, engine="v1")


def test_memory_of_the_host_is_that_of_processes_that_run() -> None:
    own = host_bytes([os.getpid()])
    assert own > MIB
    assert host_bytes([]) == 0
    assert host_bytes([2**22 + 1]) == 0


@pytest.mark.parametrize(
    ("command", "within_s", "reason"),
    [
        (("/nowhere/nvidia-smi",), 30, "No such file"),
        ((sys.executable, "-S", "-c", "raise SystemExit(9)"), 30, "ended with status 9"),
        ((sys.executable, "-S", "-c", "import time; time.sleep(60)"), 0.1, "is silent for"),
    ],
)
async def test_a_machine_that_does_not_tell_is_an_error(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], within_s: float, reason: str
) -> None:
    monkeypatch.setattr(memory, "_COMMAND", command)
    monkeypatch.setattr(memory, "_WITHIN_S", within_s)
    with pytest.raises(EngineError, match=f"engine v1: cannot be measured: .*{reason}"):
        await device_listing("v1")
