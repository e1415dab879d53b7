from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import time
from collections import namedtuple
from typing import TYPE_CHECKING, Any

from nightfill.cli import checks, health
from nightfill.cli.checks import Status
from nightfill.config import ByteSize, EngineSettings, GatewaySettings, KvSettings, TierSettings
from nightfill.contexts import DEFAULT_TENANT, ContextName, Form
from nightfill.state.access import Access
from nightfill.state.jobs import JobKind, WorkerId

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from fakes.cli import Cli
    from nightfill.state.sqlite import SqliteState

Usage = namedtuple("Usage", "total used free")


def finding(report: dict[str, Any], check: str) -> dict[str, Any]:
    found: dict[str, Any] = next(row for row in report["findings"] if row["check"] == check)
    return found


def test_a_sound_machine_passes(cli: Cli) -> None:
    cli.data.mkdir(mode=0o700)
    report = cli.json("doctor", "--model", "demo:tiny")
    assert report["ok"]
    assert {"versions", "engine", "model local", "data folder", "disk", "port", "state", "store"} <= {
        row["check"] for row in report["findings"]
    }
    assert "OK    versions:" in cli.ok("doctor")


def test_a_model_that_is_none_fails_with_status_one(cli: Cli) -> None:
    (cli.folder / "m.gguf").write_bytes(b"not a model at all, but long enough for a head")
    for model, reason in (
        (cli.folder / "m.gguf", "GGUF"),
        (cli.folder / "gone", "no such file"),
        ("demo:huge", "demo model 'huge' is unknown"),
    ):
        result = cli("doctor", "--model", model)
        assert result.exit_code == 1
        assert "FAIL  model local:" in result.stdout
        assert reason in result.stdout
        assert "1 of" in result.stdout


def test_near_answers_are_tried_where_they_are_wanted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "near answers" not in cli.ok("doctor")
    monkeypatch.setenv("NIGHTFILL_ANSWERS__MODE", "shadow")
    assert finding(cli.json("doctor"), "near answers")["status"] == "OK"
    monkeypatch.setenv("NIGHTFILL_ANSWERS__EMBEDDING", str(cli.folder / "none"))
    result = cli("doctor")
    assert result.exit_code == 1
    assert "FAIL  near answers:" in result.stdout
    assert "answers.embedding" in result.stdout


def test_a_library_that_does_not_load_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    for ended, words, advice in (
        (1, "OSError: libgomp.so.1: cannot open", "libgomp1"),
        (-4, "", "instructions"),
        (1, "ImportError: x", "reinstall"),
    ):
        monkeypatch.setattr(checks, "_child", lambda _code, ended=ended, words=words: (ended, words))
        found = checks.check_engine_library()
        assert found.status is Status.FAIL
        assert advice in found.advice


def test_a_child_that_dies_tells_by_its_status() -> None:
    assert checks._child("pass") == (0, "")
    assert checks._child("import os; os.kill(os.getpid(), 9)")[0] == -9
    assert checks._child("raise ValueError('no')") == (1, "ValueError: no")


def test_a_full_disk_fails_and_a_small_one_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = KvSettings(tiers=(TierSettings(kind="disk", max_bytes=ByteSize(1 << 30), min_free_bytes=ByteSize(1 << 20)),))
    for free, status in ((1000, Status.FAIL), (1 << 29, Status.WARN), (1 << 40, Status.OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: Usage(1 << 41, 0, free))
        assert checks.check_disks(kv, tmp_path)[0].status is status


def test_a_file_system_without_direct_io_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nightfill.kv.direct_io.probe", lambda _folder: False)
    assert checks.check_disks(KvSettings(), tmp_path)[1].status is Status.WARN


def test_little_shared_memory_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.check_scratch(str(tmp_path / "gone")).status is Status.WARN
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(64 << 20, 0, 64 << 20))
    assert "shm-size" in checks.check_scratch("").advice


def test_a_data_folder_open_to_others_warns_and_a_file_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert "chmod 700" in checks.check_data_dir(tmp_path).advice
    tmp_path.chmod(0o700)
    assert checks.check_data_dir(tmp_path).status is Status.OK
    assert checks.check_data_dir(tmp_path / "new").status is Status.OK
    (tmp_path / "file").touch()
    assert checks.check_data_dir(tmp_path / "file").status is Status.FAIL


def test_a_data_folder_that_may_not_be_written_to_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)  # root may write everywhere
    assert checks.check_data_dir(tmp_path).status is Status.FAIL


def test_a_taken_port_warns() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        found = checks.check_port(GatewaySettings(port=server.getsockname()[1]))
    assert found.status is Status.WARN
    assert "in use" in found.detail
    assert checks.check_port(GatewaySettings(port=0)).status is Status.OK


def test_a_refused_priority_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_child", lambda _code: (1, "PermissionError"))
    assert "nice 19" in checks.check_priority().advice


def test_a_model_larger_than_memory_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nightfill.engines.llama.demo_model import ensure

    engine = EngineSettings(model=str(ensure("tiny", tmp_path)))
    assert checks.check_model(engine).status is Status.OK
    assert checks.available_memory() > 0
    assert checks.check_memory(engine, 1024).status is Status.OK
    monkeypatch.setattr(checks, "available_memory", lambda: 1 << 20)
    assert checks.check_memory(engine, 0).status is Status.WARN


def test_a_damaged_state_file_fails(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    assert health.check_state_file(path).status is Status.OK
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [("y" * 500,)] * 100)
    connection.close()
    assert health.check_state_file(path).status is Status.OK
    data = bytearray(path.read_bytes())
    data[8192:] = os.urandom(len(data) - 8192)
    path.write_bytes(data)
    assert health.check_state_file(path).status is Status.FAIL
    path.write_bytes(b"not a database")
    assert health.check_state_file(path).status is Status.FAIL


async def troubled(books: SqliteState) -> None:
    await books.jobs.enqueue(kind=JobKind.FILL, target="t", tenant="t", label="repo", priority=1.0)
    lease = await books.jobs.lease(WorkerId("w"), kinds=[JobKind.FILL], lease_s=60)
    assert lease is not None
    await books.jobs.fail(lease, error="disk full", retry_in_s=None)
    row = Access(
        at_s=time.time(),
        tenant=DEFAULT_TENANT,
        context=ContextName("repo"),
        fingerprint=None,
        form=Form.CHAT,
        model="m",
        layer="fill",
        prompt_tokens=100,
        promised_tokens=90,
        reused_tokens=0,
        output_tokens=1,
        ttft_s=0.1,
        total_s=0.2,
        restore_s=0.0,
        status=200,
        broken=True,
    )
    await books.access.append([row])


def test_dead_jobs_and_broken_promises_are_reported(cli: Cli) -> None:
    cli.data.mkdir(mode=0o700)
    cli.state(troubled)
    report = cli.json("doctor")
    assert "1 dead: 1 (repo): disk full" in finding(report, "jobs")["detail"]
    assert "1 of 1 promises of reuse were broken" in finding(report, "proof")["detail"]
    assert report["ok"]  # both are warnings


def test_it_says_whether_it_is_time_for_background_work(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.data.mkdir(mode=0o700)
    cli.state(troubled)
    assert finding(cli.json("doctor"), "background")["detail"] == "may run: no windows are set"
    monkeypatch.setenv("NIGHTFILL_SLEEP__WINDOWS", '["0 0 29 2 *"]')
    monkeypatch.setenv("NIGHTFILL_SLEEP__WAKE_WHEN_IDLE_S", "10m")
    detail = finding(cli.json("doctor"), "background")["detail"]
    assert detail.startswith("waits: the next window opens at 20")
    assert detail.endswith("02-29 00:00 UTC; 0 of 50 jobs are due; or when nobody asked for 10 min")


def test_a_store_that_cannot_be_opened_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.data.mkdir(mode=0o700)
    monkeypatch.setenv("NIGHTFILL_KV__KEY_FILE", str(cli.folder / "gone"))
    result = cli("doctor")
    assert result.exit_code == 1
    assert "FAIL  store:" in result.stdout
