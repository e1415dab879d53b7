"""A stored block is wrong though its seal is right: nobody would notice, but for comparing answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from nightfill.config import ByteSize, KvSettings, TierSettings
from nightfill.contexts.context import Tenant
from nightfill.kv import open_store, salt_of
from nightfill.kv.key import BlockKey
from serving import distance, eventually, source_text
from vllm_store import BLOCK, disk, flags_for, kv_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving import Answer, Serve
    from vllm_server import VllmServer

pytestmark = pytest.mark.e2e

SAME: Final = 0.3
"""Nats; see `serving.distance`."""
DISK: Final[dict[str, Any]] = {"kind": "disk", "max_bytes": "1GB", "min_free_bytes": 0}
SETTINGS: Final[dict[str, Any]] = {
    "engines": [{"model": "demo:tiny", "slots": 1}],
    "kv": {"tiers": [DISK]},
    "sleep": {"plan_every_s": 0.3, "audit_share": 0.0},
}
NO_WORKER: Final = ("--no-sleep",)


def poison(folder: Path) -> int:
    """Change the payload of each second stored block, and seal it again as if it were right; how many."""
    tier = TierSettings(kind="disk", path=str(folder), max_bytes=ByteSize(1 << 30), min_free_bytes=ByteSize(0))
    store = open_store(KvSettings(tiers=(tier,)), data_dir=folder)
    salt = salt_of(Tenant("default"))
    found = sorted(folder.rglob("*.kv"))[::2]
    try:
        for path in found:
            key = BlockKey(bytes.fromhex(path.stem))
            block = store.get(key, salt=salt)
            assert block is not None
            half = len(block.payload) // 2
            payload = bytes(block.payload[half:]) + bytes(block.payload[:half])
            store.drop([key])
            store.put(key, [payload], block.meta, salt=salt)
    finally:
        store.close()
    return len(found)


def verify(serve: Serve, *more: str) -> tuple[int, list[dict[str, Any]]]:
    done = serve.cli("verify", "--model", "demo:tiny", "--json", *more, within_s=120)
    assert done.stderr == "" or "quarantine" in done.stderr or "wrong" in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_verify_finds_a_wrong_block_and_the_fill_is_made_anew(new_serve: Callable[..., Serve]) -> None:
    serve = new_serve("serve", settings=SETTINGS).start()
    serve.put("c", source_text(1, functions=40))
    serve.put("d", source_text(2, functions=10))
    serve.wait_ready("c", "d")
    assert serve.ask(context="c").layer == "fill", "now the serving engine holds a copy"
    serve.stop()

    status, found = verify(serve)
    assert (status, [one["outcome"] for one in found]) == (0, ["equal", "equal"]), found
    assert all(0 < one["noise"] < 0.5 and one["loaded_tokens"] == one["tokens"] for one in found)
    status, found = verify(serve, "d", "--questions", "1")
    assert (status, [one["context"] for one in found]) == (0, ["d"])

    assert poison(serve.data_dir / "kv")
    status, found = verify(serve, "c")
    assert (status, [one["outcome"] for one in found]) == (1, ["drift"]), found
    assert found[0]["drift"] is None or found[0]["drift"] > 4 * found[0]["noise"]

    quiet = new_serve("quiet", settings=SETTINGS, arguments=NO_WORKER, data_dir=serve.data_dir).start()
    (fill,) = quiet.fills("c")
    assert (fill["state"], fill["reason"].split(":")[0]) == ("stale", "drifted")
    assert (quiet.ask(context="c").layer, quiet.ask(context="c").reused) == ("cold", 0)
    assert quiet.metrics()['nightfill_audits_total{outcome="drift"}'] == 1
    quiet.stop()

    serve.start()
    serve.wait_ready("c")
    assert serve.ask(context="c").layer == "fill"
    status, found = verify(serve, "c")
    assert (status, [one["outcome"] for one in found]) == (0, ["equal"]), found


def test_an_audit_in_idle_time_finds_it_too_while_the_server_runs(new_serve: Callable[..., Serve]) -> None:
    auditing = {**SETTINGS, "sleep": {**SETTINGS["sleep"], "audit_share": 1.0}}
    serve = new_serve("serve", settings=auditing).start()
    serve.put("c", source_text(3, functions=40))
    serve.wait_ready("c")
    before = asked(serve)
    eventually(lambda: audits(serve, "equal") == 1, within_s=60, what="the first audit")

    assert poison(serve.data_dir / "kv")
    assert serve.ask("Something else.").status == 200
    wrong = asked(serve)
    assert distance(wrong, before) > SAME, "nobody could tell by the seal"
    eventually(lambda: audits(serve, "drift") == 1, within_s=60, what="the audit of the wrong block")
    serve.wait_ready("c")
    # Nothing wrong is left anywhere: not in the store, and not in the slot that had been given it.
    assert distance(asked(serve), before) < SAME
    eventually(lambda: audits(serve, "equal") == 2, within_s=60, what="the audit of the new fill")
    assert serve.metric("nightfill_broken_promises_total") == 0
    notes = [job["note"].split(":")[0] for job in serve.jobs() if job["kind"] == "verify"]
    assert sorted(notes) == ["drift", "equal", "equal"]


def asked(serve: Serve) -> Answer:
    answer = serve.ask(context="c", logprobs=True, top_logprobs=10)
    assert (answer.status, answer.layer) == (200, "fill")
    return answer


def audits(serve: Serve, outcome: str) -> float:
    return serve.metrics().get(f'nightfill_audits_total{{outcome="{outcome}"}}', 0)


@pytest.mark.timeout(600)
def test_verify_finds_a_wrong_block_below_vllm(
    new_vllm: Callable[..., VllmServer], new_serve: Callable[..., Serve], tmp_path: Path
) -> None:
    kv = tmp_path / "kv"
    server = new_vllm(flags=flags_for(kv_of(disk(kv)), data_dir=tmp_path), environment={"VLLM_SERVER_DEV_MODE": "1"})
    server.start()
    settings = {
        "engines": [{"name": "v", "kind": "vllm", "url": server.url}],
        "kv": {"tiers": [{**DISK, "path": str(kv)}]},
        "sleep": SETTINGS["sleep"],
    }
    serve = new_serve("gateway", model="tiny", settings=settings).start()
    serve.put("c", source_text(5, functions=40))
    serve.wait_ready("c")
    serve.stop()

    def verified() -> tuple[int, dict[str, Any]]:
        done = serve.cli("verify", "--engine", "v", "--json", within_s=200)
        (found,) = json.loads(done.stdout)
        return done.returncode, found

    status, found = verified()
    # Not to the last bit: the fill was computed in other pieces than its copy that it is compared with.
    assert (status, found["outcome"]) in ((0, "equal"), (0, "noise")), found
    assert found["loaded_tokens"] == found["tokens"] >= 4 * BLOCK

    def forget() -> None:
        """What the server holds itself would hide what is stored."""
        assert server.request("POST", "/reset_prefix_cache?reset_external=true").status == 200

    assert poison(kv)
    forget()
    status, found = verified()
    assert (status, found["outcome"]) == (1, "drift"), found

    serve.start()
    serve.wait_ready("c")
    assert serve.ask(context="c").layer == "fill"
    serve.stop()
    forget()
    status, found = verified()
    assert (status, found["outcome"]) in ((0, "equal"), (0, "noise")), found
