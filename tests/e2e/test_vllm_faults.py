"""What goes wrong below a real vLLM server, while live requests go on: all of them succeed, none of them wrongly."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fakes.redis_server import RedisServer
from nightfill.config import ByteSize, Duration, TierSettings
from nightfill.contexts.context import Signature
from nightfill.engines.vllm.wire import Wish
from nightfill.kv import open_store
from vllm_store import BLOCK, ask, block_files, disk, fill, flags_for, keys, kv_of, prompt, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nightfill.config import KvSettings
    from vllm_server import VllmServer

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

WHOLE = 3 * BLOCK
TAIL = 20
FRESH = Wish(fresh=True, store=False)


@contextlib.contextmanager
def live_requests(server: VllmServer, *, least: int = 3) -> Iterator[None]:
    """Ask all the time while inside, and `least` times; every answer must be well."""
    stop = threading.Event()
    statuses: list[int] = []

    def ask_on() -> None:
        seed = 10_000
        while not stop.is_set() or len(statuses) < least:
            seed += 1
            body = {"model": server.name, "prompt": prompt(seed, 40), "max_tokens": 2}
            statuses.append(server.request("POST", "/v1/completions", body).status)

    asker = threading.Thread(target=ask_on)
    asker.start()
    try:
        yield
    finally:
        stop.set()
        asker.join(120)
    assert not asker.is_alive()
    assert set(statuses) == {200}
    assert len(statuses) >= least


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def kv(folder: Path) -> KvSettings:
    return kv_of(disk(folder / "kv"))


@pytest.fixture(scope="module")
def server(shared_vllm: Callable[..., VllmServer], folder: Path, kv: KvSettings) -> VllmServer:
    return shared_vllm(*flags_for(kv, data_dir=folder), environment={"VLLM_SERVER_DEV_MODE": "1"})


def forget(server: VllmServer) -> None:
    """Drop what the server itself holds; the store is left alone."""
    assert server.request("POST", "/reset_prefix_cache?reset_external=true").status == 200


def file_of(folder: Path, key: bytes) -> Path:
    (file,) = [file for file in block_files(folder) if file.stem == key.hex()]
    return file


def flip(file: Path) -> None:
    with file.open("r+b") as out:
        out.seek(file.stat().st_size // 2)
        byte = out.read(1)[0]
        out.seek(-1, os.SEEK_CUR)
        out.write(bytes([byte ^ 0x10]))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(("seed", "damage"), [(1, flip), (2, truncate), (3, Path.unlink)])
def test_a_damaged_block_is_computed_again_and_the_answer_is_right(
    server: VllmServer, folder: Path, kv: KvSettings, seed: int, damage: Callable[[Path], None]
) -> None:
    ids = prompt(seed, WHOLE + TAIL)
    report = fill(server, kv, ids)
    right, _ = ask(server, [*ids[:BLOCK], *ids[BLOCK:]], FRESH, max_tokens=8)
    damage(file_of(folder, keys(ids, report)[1]))
    forget(server)
    with live_requests(server):
        done, report = ask(server, ids, max_tokens=8)
    assert report.loaded == BLOCK, "what is before the damage is loaded"
    assert done.tokens[0] == right.tokens[0]
    assert abs(done.logprobs[0] - right.logprobs[0]) < 0.1, "other chunks round otherwise, and no more"
    # The next one to fill stores it anew.
    fill(server, kv, ids)
    forget(server)
    assert ask(server, ids)[1].loaded == WHOLE


def test_a_block_of_another_signature_is_never_used(server: VllmServer, folder: Path, kv: KvSettings) -> None:
    ids = prompt(10, WHOLE + TAIL)
    report = fill(server, kv, ids)
    key, salt = keys(ids, report)[0], bytes.fromhex(report.salt)
    store = open_store(kv, data_dir=folder)
    try:
        block = store.get(key, salt=salt)
        assert block is not None
        payload = bytes(block.payload)
        store.drop([key])
        meta = dataclasses.replace(block.meta, signature=Signature("ee" * 32))
        store.put(key, [memoryview(payload)], meta, salt=salt)
    finally:
        store.close()
    forget(server)
    with live_requests(server):
        _, report = ask(server, ids)
    assert report.loaded == 0


def test_the_stores_folder_may_vanish_and_is_made_again(server: VllmServer, folder: Path, kv: KvSettings) -> None:
    ids = prompt(20, WHOLE + TAIL)
    fill(server, kv, ids)
    with live_requests(server):
        shutil.rmtree(folder / "kv")
        forget(server)
        _, report = ask(server, ids)
        assert (report.found, report.loaded) == (0, 0)
        fill(server, kv, ids)
    forget(server)
    assert ask(server, ids)[1].loaded == WHOLE


def test_a_full_disk_costs_the_store_not_the_request(new_vllm: Callable[..., VllmServer], tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    full = kv_of(disk(tmp_path / "kv", min_free_bytes=ByteSize(1 << 59)))
    server = new_vllm(flags=flags_for(full, data_dir=tmp_path)).start()
    with live_requests(server):
        done, _ = ask(server, prompt(30, WHOLE), Wish(store=True))
    assert done.tokens
    assert block_files(tmp_path) == []
    ask(server, prompt(31, WHOLE), Wish(store=True))
    server.stop()


def test_redis_may_die_and_come_back(new_vllm: Callable[..., VllmServer], tmp_path: Path) -> None:
    redis = RedisServer()
    try:
        tier = TierSettings(kind="redis", url=redis.url, max_bytes=ByteSize(1 << 30), timeout_s=Duration(1))
        kv = kv_of(tier)
        server = new_vllm(flags=flags_for(kv, data_dir=tmp_path), environment={"VLLM_SERVER_DEV_MODE": "1"}).start()
        ids = prompt(40, WHOLE + TAIL)
        fill(server, kv, ids)
        forget(server)
        assert ask(server, ids)[1].loaded == WHOLE
        with live_requests(server):
            redis.kill()
            forget(server)
            _, report = ask(server, ids, Wish(store=True))
            assert report.loaded == 0
            time.sleep(2)  # long enough that its next try is a while away
            redis.start()
            # The tier tries at growing intervals, of 5 s at most. What is computed before it knows is lost, not late:
            # a fill then ends in an error, and is tried again.
            deadline_s = time.monotonic() + 60
            _, report = ask(server, prompt(41, WHOLE), Wish(store=True))
            while not stored(kv, keys(prompt(41, WHOLE), report), within_s=2):
                assert time.monotonic() < deadline_s, f"nothing is stored:\n{server.log_tail(3000)}"
                ask(server, prompt(41, WHOLE), Wish(store=True))
        forget(server)
        assert ask(server, prompt(41, WHOLE) + prompt(42, TAIL))[1].loaded == WHOLE
        server.stop()
    finally:
        redis.close()


def test_two_servers_may_write_the_same_blocks_at_once(
    server: VllmServer, new_vllm: Callable[..., VllmServer], folder: Path, kv: KvSettings
) -> None:
    other = new_vllm(flags=flags_for(kv, data_dir=folder)).start()
    prompts = [prompt(50 + n, WHOLE + TAIL) for n in range(4)]
    failures: list[BaseException] = []

    def fill_all(one: VllmServer) -> None:
        try:
            for ids in prompts:
                fill(one, kv, ids)
        except BaseException as failure:  # noqa: BLE001 - raised again by the test
            failures.append(failure)

    threads = [threading.Thread(target=fill_all, args=(one,)) for one in (server, other)]
    with live_requests(server):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
    assert not failures
    store = open_store(kv, data_dir=folder)
    try:
        for ids in prompts:
            report = ask(other, ids)[1]
            blocks = store.get_many(keys(ids, report), salt=bytes.fromhex(report.salt))
            assert all(block is not None for block in blocks), "each verifies"
    finally:
        store.close()
    assert other.metric("nightfill_kv_corrupt_total") == server.metric("nightfill_kv_corrupt_total", tier="none") == 0
    other.stop()
