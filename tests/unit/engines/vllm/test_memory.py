from __future__ import annotations

import os
import sys

import pytest

from nightfill.engines.vllm import memory
from nightfill.engines.vllm.memory import device_bytes, device_listing, host_bytes
from nightfill.errors import EngineError

MIB = 1 << 20


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ("1234, 70128\n5678, 512\n1235, 1024\n", 71152 * MIB),
        ("1234, 70128 MiB\n", 70128 * MIB),
        ("5678, 512\n", None),
        ("1234, [N/A]\n1235, [Insufficient Permissions]\n", None),
        ("No running processes found\n", None),
        ("", None),
    ],
)
def test_what_nvidia_smi_says_is_added_up_over_devices_and_processes(listing: str, found: int | None) -> None:
    assert device_bytes(listing, {1234, 1235}) == found


def test_memory_of_the_host_is_that_of_processes_that_run() -> None:
    own = host_bytes([os.getpid()])
    assert own > MIB
    assert host_bytes([]) == 0
    assert host_bytes([2**22 + 1]) == 0


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/nowhere/nvidia-smi",), "No such file"),
        ((sys.executable, "-S", "-c", "raise SystemExit(9)"), "ended with status 9"),
        ((sys.executable, "-S", "-c", "import time; time.sleep(60)"), "is silent for"),
    ],
)
async def test_a_machine_that_does_not_tell_is_an_error(
    monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], reason: str
) -> None:
    monkeypatch.setattr(memory, "_COMMAND", command)
    monkeypatch.setattr(memory, "_WITHIN_S", 0.3)
    with pytest.raises(EngineError, match=f"engine v1: cannot be measured: .*{reason}"):
        await device_listing("v1")
