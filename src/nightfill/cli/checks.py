"""What `nightfill doctor` looks at on the machine itself. Each check answers with one finding and changes nothing."""

from __future__ import annotations

import enum
import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nightfill import __version__
from nightfill.contexts.bundle import show_bytes
from nightfill.errors import NightfillError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.config import AnswerSettings, EngineSettings, GatewaySettings, KvSettings

_CHILD_S: Final = 60.0
_PACKAGES: Final = ("msgspec", "uvicorn", "uvloop", "httptools", "cryptography", "xxhash", "click", "rich")
_SCRATCH_BYTES: Final = 256 << 20
_HEAD_WIDTH: Final = 128
"""Guess at the width of an attention head, where no engine has told its KV's size yet; most models have it."""


class Status(enum.StrEnum):
    """How bad it is."""

    OK = "OK"
    WARN = "WARN"
    """It works, but not as well as it could."""
    FAIL = "FAIL"
    """It does not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found, and what to do about it."""

    check: str
    status: Status
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check=check, status=Status.OK, detail=detail)


def warn(check: str, detail: str, advice: str) -> Finding:
    """Works, but see the advice."""
    return Finding(check=check, status=Status.WARN, detail=detail, advice=advice)


def fail(check: str, detail: str, advice: str) -> Finding:
    """Does not work; see the advice."""
    return Finding(check=check, status=Status.FAIL, detail=detail, advice=advice)


def check_versions() -> Finding:
    """Python and the packages that everything needs."""
    missing = []
    for package in _PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    here = f"nightfill {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    if missing:
        return fail("versions", f"{here}; not installed: {', '.join(missing)}", "install again: pip install nightfill")
    if sys.platform != "linux":
        return warn("versions", here, "only Linux is tested")
    return ok("versions", here)


def check_engine_library() -> Finding:
    """Whether llama.cpp can be loaded; in a child process, since a library for another processor kills it."""
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        return fail("engine", "xllamacpp is not installed", "pip install 'nightfill[llama]'")
    ended, words = _child("import xllamacpp")
    if ended == 0:
        return ok("engine", f"xllamacpp {version} loads")
    if "libgomp" in words:
        return fail("engine", "libgomp.so.1 is missing", "install it: apt-get install libgomp1, or dnf install libgomp")
    if ended < 0:
        advice = "this processor lacks instructions that the wheel was built for; build xllamacpp from source"
        return fail("engine", f"xllamacpp {version} dies by signal {-ended} when loaded", advice)
    return fail("engine", f"xllamacpp {version} does not load: {words}", "pip install --force-reinstall xllamacpp")


def check_model(engine: EngineSettings) -> Finding:
    """Whether the model's file is there and is what it should be. Reads its head alone."""
    check = f"model {engine.name}"
    if engine.model.startswith("demo:"):
        from nightfill.engines.llama.demo_model import SIZES, named

        name = engine.model.removeprefix("demo:")
        try:
            named(name)
        except NightfillError as error:
            return fail(check, str(error), f"one of {', '.join(f'demo:{size}' for size in SIZES)}")
        return ok(check, f"demo model {name}, made when it is needed")
    from nightfill.engines.llama.gguf_file import read_head

    try:
        head = read_head(Path(engine.model).expanduser().resolve())
    except NightfillError as error:
        return fail(check, str(error), "give --model, or engines.0.model, a GGUF file that this user may read")
    if engine.context_length > head.context_length > 0:
        advice = f"set engines.0.context_length to {head.context_length} or less"
        return fail(check, f"{engine.context_length} tokens are set, the model has {head.context_length}", advice)
    size = f"{show_bytes(head.file_bytes)}, {head.context_length} tokens"
    detail = f"{head.name or head.path.name}: {head.architecture}, {size}"
    if not head.chat_template:
        return warn(check, f"{detail}, without a chat template", "use /v1/completions, or a file with a template")
    return ok(check, detail)


def check_near(settings: AnswerSettings) -> Finding:
    """Whether questions can be compared; in the process that would do it, since a library may kill it."""
    from nightfill.answers.reader_process import ReaderProcess

    try:
        reader = ReaderProcess.started(settings.embedding)
    except NightfillError as error:
        return fail("near answers", str(error), "or set answers.mode, and answers.tenants, to exact")
    reader.close()
    return ok("near answers", "the embedding loads")


def check_memory(engine: EngineSettings, kv_bytes_per_token: int) -> Finding:
    """Whether model and KV of all slots fit the memory that is free now. 0 KV bytes: unknown, so guessed."""
    from nightfill.engines.llama.gguf_file import read_head

    head = read_head(Path(engine.model).expanduser().resolve())
    tokens = (engine.context_length or min(head.context_length, 32768)) * (engine.slots + 1)
    per_token = kv_bytes_per_token or 2 * head.block_count * (head.head_count_kv or 8) * _HEAD_WIDTH * 2
    need = head.file_bytes + tokens * per_token
    free = available_memory()
    detail = (
        f"model {show_bytes(head.file_bytes)}, KV of {engine.slots} slots and the filling one "
        f"{show_bytes(tokens * per_token)}{'' if kv_bytes_per_token else ' (a guess)'}; {show_bytes(free)} available"
    )
    if need > free:
        return warn(f"memory {engine.name}", detail, "fewer engines.0.slots, or a smaller engines.0.context_length")
    return ok(f"memory {engine.name}", detail)


def available_memory() -> int:
    """Bytes of memory that may still be used, by the host and by our cgroup."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        text = limit.read_text().strip()
        return free if text == "max" else min(free, max(int(text) - int(used.read_text()), 0))
    except (OSError, ValueError):
        return free  # no second version of cgroups here: the host's own figure holds


def check_data_dir(folder: Path) -> Finding:
    """Whether the data folder may be written to, and is ours alone."""
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not nearest.is_dir():
        return fail("data folder", f"{nearest} is not a folder", "give another --data-dir")
    if not os.access(nearest, os.W_OK | os.X_OK):
        return fail("data folder", f"{nearest} may not be written to", f"chown it to {os.getuid()}, or give --data-dir")
    if nearest != folder:
        return ok("data folder", f"{folder}, made when it is needed")
    status = folder.stat()
    if status.st_mode & 0o077:
        return warn("data folder", f"{folder} may be read by other users", f"chmod 700 {folder}")
    if status.st_uid != os.geteuid():
        return warn("data folder", f"{folder} belongs to user {status.st_uid}", "run nightfill as that user")
    return ok("data folder", str(folder))


def check_disks(kv: KvSettings, data_dir: Path) -> list[Finding]:
    """Free space and O_DIRECT of each disk tier."""
    findings = []
    for tier in kv.tiers:
        if tier.kind != "disk":
            continue
        folder = data_dir / (Path(tier.path).expanduser() if tier.path else "kv")
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(nearest).free
        stored = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
        detail = (
            f"{folder}: {show_bytes(stored)} of {show_bytes(tier.max_bytes)} used, {show_bytes(free)} free on the disk"
        )
        wanted = tier.max_bytes - stored + tier.min_free_bytes
        if free < tier.min_free_bytes:
            advice = (
                f"free space, or lower kv.tiers.N.min_free_bytes ({show_bytes(tier.min_free_bytes)}); nothing is stored"
            )
            findings.append(fail("disk", detail, advice))
        elif free < wanted:
            advice = f"lower max_bytes, or old KV goes at {show_bytes(stored + free - tier.min_free_bytes)} already"
            findings.append(warn("disk", detail, advice))
        else:
            findings.append(ok("disk", detail))
        if tier.direct:
            findings.append(_check_direct(nearest))
    return findings


def _check_direct(folder: Path) -> Finding:
    from nightfill.kv.direct_io import probe

    if not os.access(folder, os.W_OK):
        return warn("direct I/O", f"{folder} may not be written to, so not tried", "see the data folder")
    if probe(folder):
        return ok("direct I/O", f"works in {folder}")
    return warn(
        "direct I/O", f"not in {folder}: KV goes through the page cache", "a folder on ext4 or xfs, or direct: false"
    )


def check_scratch(chosen: str) -> Finding:
    """Room for slot files, which pass through memory."""
    folder = Path(chosen or "/dev/shm")  # noqa: S108  looked at, not written to
    if not folder.is_dir():
        advice = "slot files pass through the data folder instead, which is slower" if not chosen else "make it"
        return warn("scratch", f"{folder} is not there", advice)
    free = shutil.disk_usage(folder).free
    if free < 2 * _SCRATCH_BYTES:
        advice = "give the container more (docker run --shm-size 1g), or set scratch_dir"
        return warn("scratch", f"{folder} has {show_bytes(free)} free", advice)
    return ok("scratch", f"{folder} has {show_bytes(free)} free")


def check_priority() -> Finding:
    """Whether background work may run at the lowest priority."""
    if _child("import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))")[0] == 0:
        return ok("priority", "SCHED_IDLE is allowed: fills run only when a core has nothing else to do")
    advice = "nice 19 is used instead; allow sched_setscheduler in the container's seccomp profile"
    return warn("priority", "SCHED_IDLE is refused", advice)


def check_port(gateway: GatewaySettings) -> Finding:
    """Whether the gateway's address is free."""
    where = f"{gateway.host}:{gateway.port}"
    try:
        family, *_, address = socket.getaddrinfo(gateway.host, gateway.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
    except PermissionError:
        return fail("port", f"{where} may not be used by this user", "a port from 1024 up: --port 8700")
    except socket.gaierror as error:
        return fail("port", f"{gateway.host}: {error.strerror}", "an address of this machine: --host 127.0.0.1")
    except OSError as error:
        return warn("port", f"{where}: {error.strerror}", "fine if nightfill serves there; else another --port")
    return ok("port", f"{where} is free")


def _child(code: str) -> tuple[int, str]:
    """Exit status of a Python child (negative: the signal that ended it), and its last words."""
    command: Sequence[str] = (sys.executable, "-c", code)
    try:
        done = subprocess.run(command, capture_output=True, timeout=_CHILD_S, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return 1, f"no end within {_CHILD_S:g} s"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return done.returncode, lines[-1][:300] if lines else ""
