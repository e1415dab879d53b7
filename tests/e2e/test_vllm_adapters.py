"""LoRA on a real vLLM server: an adapter is part of the keys by its content, not by its name or path."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from adapters import make_adapter
from nightfill.engines.vllm.wire import Wish
from vllm_store import BLOCK, ask, disk, fill, flags_for, kv_of, prompt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nightfill.config import KvSettings
    from vllm_server import VllmServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WHOLE = 2 * BLOCK
TAIL = 20


def load(server: VllmServer, name: str, path: Path, *, in_place: bool = False) -> None:
    body = {"lora_name": name, "lora_path": str(path), "load_inplace": in_place}
    answer = server.request("POST", "/v1/load_lora_adapter", body)
    assert answer.status == 200, answer.body


def test_adapters_are_told_apart_by_content(new_vllm: Callable[..., VllmServer], tmp_path: Path) -> None:
    kv: KvSettings = kv_of(disk(tmp_path / "kv"))
    server = new_vllm(
        flags=[*flags_for(kv, data_dir=tmp_path), "--enable-lora", "--max-lora-rank", "8", "--max-loras", "2"],
        environment={"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1"},
    ).start()
    ids = prompt(1, WHOLE + TAIL)
    make_adapter(tmp_path / "one", seed=1)
    load(server, "one", tmp_path / "one")

    base = fill(server, kv, ids)
    without, _ = ask(server, ids)
    server.name = "one"
    adapted, report = ask(server, ids, Wish(store=True))
    assert (report.found, report.loaded, report.cached) == (0, 0, 0), "KV of the base model is not the adapter's"
    assert report.salt != base.salt
    assert adapted.logprobs[0] != without.logprobs[0]
    fill(server, kv, ids)

    # The same content under another name and path: stored KV is found.
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    load(server, "copy", tmp_path / "copy")
    server.name = "copy"
    again, report = ask(server, ids)
    assert report.loaded == WHOLE
    assert again.tokens[0] == adapted.tokens[0]

    # Other content under the same name and path: vLLM's own caches would serve the KV of the adapter before.
    make_adapter(tmp_path / "one", seed=2)
    load(server, "one", tmp_path / "one", in_place=True)
    server.name = "one"
    changed, report = ask(server, ids)
    assert (report.found, report.loaded, changed.cached_tokens) == (0, 0, 0)
    make_adapter(tmp_path / "two", seed=2)
    load(server, "two", tmp_path / "two")
    server.name = "two"
    right, report = ask(server, ids)
    assert (report.loaded, right.cached_tokens) == (0, 0)
    assert changed.logprobs == right.logprobs
    server.stop()
