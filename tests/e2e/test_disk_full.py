"""The file system of the KV store runs full in the middle of a fill: serving goes on, the error shows, work resumes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from serving import eventually, source_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from serving import Serve

pytestmark = pytest.mark.e2e

DISK_BYTES = 24 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, too small for what is to come if something else is on it."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs the right to mount a file system")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"needs the right to mount a file system: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def fill_up(folder: Path, *, leave_bytes: int) -> Path:
    """Let somebody else take the room."""
    other = folder / "somebody-elses"
    free = os.statvfs(folder)
    with other.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave_bytes)
    return other


def job_of(serve: Serve, context: str) -> dict[str, Any]:
    (job,) = [job for job in serve.jobs() if job["context"] == context]
    return job


@pytest.mark.timeout(200)
def test_a_full_disk_stops_fills_with_a_clear_error_and_nothing_else(
    new_serve: Callable[..., Serve], small_disk: Path
) -> None:
    settings = {
        "kv": {"tiers": [{"kind": "disk", "max_bytes": "1GB", "min_free_bytes": 0, "path": str(small_disk / "kv")}]},
        "sleep": {"max_slice_s": 0.2, "retry_base_s": 0.5, "retry_cap_s": 2, "max_failures": 100, "plan_every_s": 0.3},
    }
    serve = new_serve(settings=settings).start()
    serve.put("early", source_text(1, functions=30))
    serve.wait_ready("early")
    other = fill_up(small_disk, leave_bytes=4 << 20)
    serve.put("late", source_text(2, functions=300))
    eventually(lambda: any(job["failures"] for job in serve.jobs()), within_s=90, what="a fill that found no room")

    job = job_of(serve, "late")
    assert job["state"] in ("queued", "leased")
    assert "bytes short under a cap of 1000000000 and a floor of 0, and nothing that may be evicted" in job["error"]
    # Serving goes on: without a context, with one that is ready, with the one that is not.
    for context in (None, "early", "late"):
        answer = serve.ask(context=context, max_tokens=1)
        assert (answer.status, answer.usage["completion_tokens"]) == (200, 1)
    assert serve.request("GET", "/readyz").status == 200
    # Whoever looks is told.
    metrics = serve.metrics()
    assert metrics["nightfill_jobs_failing"] >= 1
    assert metrics['nightfill_kv_free_bytes{tier="disk"}'] < 1 << 20
    ran = serve.cli("doctor", "--json")
    findings = {one["check"]: one for one in json.loads(ran.stdout)["findings"]}
    assert findings["jobs"]["status"] == "WARN"
    assert "(late): no room in the store: disk: " in findings["jobs"]["detail"]
    assert findings["disk"]["status"] == "WARN"
    assert str(small_disk) in findings["disk"]["detail"]

    other.unlink()
    serve.wait_ready("late", within_s=100)
    answer = serve.ask(context="late")
    assert (answer.layer, answer.reused) == ("fill", serve.fills("late")[0]["tokens"])
    eventually(lambda: serve.metrics()["nightfill_jobs_failing"] == 0, within_s=30, what="nothing fails any more")
