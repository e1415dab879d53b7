"""A revision of a git repository as a source, read through the `git` program.

No shell, no work tree, no hooks or filters: `rev-parse`, `ls-tree` and `cat-file` read objects only, and are told not
to fetch any. Revisions and paths are checked before git sees them, and come after `--end-of-options`. Hidden files,
links, submodules, binary and large files are left out as they are of a folder; ignore rules do not apply, for what is
committed was meant to be.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Final

from nightfill.contexts.bundle import Bundle, Reading, show_path
from nightfill.contexts.folder import MAX_ENTRIES
from nightfill.contexts.ignore import hidden
from nightfill.errors import BadSource

if TYPE_CHECKING:
    from collections.abc import Generator

    from nightfill.config import ContextSettings
    from nightfill.contexts.context import GitSource

_TIMEOUT_S: Final = 60.0
_LIST_BYTES: Final = 64 << 20
_ENVIRONMENT: Final = {
    "LC_ALL": "C",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
}


def read_git(source: GitSource, limits: ContextSettings) -> Reading:
    """The text files of the revision, by the bytes of their paths below `subdir`. Raises BadSource."""
    tree = _tree(source)
    bundle = Bundle(_origin(source), limits)
    files: list[tuple[str, str, int]] = []
    listed = _git(source, "ls-tree", "-r", "-z", "-l", "--full-tree", tree)
    for row in listed.split(b"\0")[:-1]:
        head, _, raw_path = row.partition(b"\t")
        mode, _, blob, size = head.split()
        path = os.fsdecode(raw_path)
        if any(hidden(part) for part in path.split("/")):
            continue
        if mode not in (b"100644", b"100755"):
            bundle.leave_out("link")
        elif not size.isdigit():
            raise BadSource(f"{_origin(source)}: object {blob.decode()} of {show_path(path)} cannot be read")
        elif int(size) > limits.max_file_bytes:
            bundle.leave_out("too large")
        else:
            files.append((path, blob.decode(), int(size)))
    if len(files) > MAX_ENTRIES:
        raise BadSource(f"{_origin(source)}: more than {MAX_ENTRIES} files; name a subfolder")
    files.sort(key=lambda file: os.fsencode(file[0]))
    with contextlib.closing(_blobs(source, [file[1] for file in files])) as blobs:
        for path, name, length in files:
            if bundle.full:
                bundle.count(path, length)
                continue
            data = next(blobs, None)
            if data is None:
                raise BadSource(f"{_origin(source)}: object {name} of {show_path(path)} cannot be read")
            bundle.add(path, data)
    return bundle.reading(tree.encode())


def mark_git(source: GitSource) -> bytes:
    """The id of the tree: equal exactly when all files are."""
    return _tree(source).encode()


def _origin(source: GitSource) -> str:
    below = f":{show_path(source.subdir)}" if source.subdir else ""
    return f"git {show_path(source.repository)}@{show_path(source.revision)}{below}"


def _tree(source: GitSource) -> str:
    """Id of the tree at the revision, below `subdir`."""
    revision, subdir = source.revision, source.subdir.strip("/")
    if not revision or revision.startswith("-") or ":" in revision or not revision.isprintable():
        raise BadSource(f"git revision {revision!a} is not allowed: a branch, tag or commit", param="revision")
    if subdir and (any(part in ("", ".", "..") for part in subdir.split("/")) or "\0" in subdir):
        raise BadSource(f"git subdir {subdir!a} is not allowed: a plain path below the top", param="subdir")
    if not os.path.isdir(source.repository):  # noqa: PTH112 - keeps odd bytes
        raise BadSource(f"git {show_path(source.repository)}: no such folder", param="repository")
    commit = _git(
        source, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", missing=revision
    )
    tree = f"{commit.decode().strip()}:{subdir}"
    found = _git(source, "rev-parse", "--verify", "--quiet", "--end-of-options", tree, missing=f"{revision}:{subdir}")
    name = found.decode().strip()
    if _git(source, "cat-file", "-t", name).strip() != b"tree":
        raise BadSource(f"{_origin(source)}: not a folder", param="subdir")
    return name


def _git(source: GitSource, *arguments: str, missing: str = "") -> bytes:
    try:
        done = subprocess.run(
            _command(source, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            env={**os.environ, **_ENVIRONMENT},
            check=False,
        )
    except FileNotFoundError as exc:
        raise BadSource("the program git is not installed: install it, or name a folder") from exc
    except (OSError, ValueError) as exc:
        raise BadSource(f"{_origin(source)}: git cannot be started: {exc}") from exc
    except subprocess.TimeoutExpired as exc:
        raise BadSource(f"{_origin(source)}: git took longer than {_TIMEOUT_S:g} s") from exc
    if done.returncode:
        reason = done.stderr.decode("utf-8", "backslashreplace").strip().splitlines()
        if missing and (not reason or "expected commit type" in reason[0]):
            raise BadSource(f"git {show_path(source.repository)}: no revision {missing!a}", param="revision")
        raise BadSource(f"{_origin(source)}: {reason[0] if reason else f'git ended with {done.returncode}'}")
    if len(done.stdout) > _LIST_BYTES:
        raise BadSource(f"{_origin(source)}: too many files; name a subfolder")
    return done.stdout


def _blobs(source: GitSource, names: list[str]) -> Generator[bytes]:
    """The blobs one by one, as they are asked for; ends early when git does."""
    if not names:
        return
    with subprocess.Popen(
        _command(source, "cat-file", "--batch"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **_ENVIRONMENT},
    ) as git:
        assert git.stdin is not None
        assert git.stdout is not None
        deadline = threading.Timer(_TIMEOUT_S, git.kill)
        deadline.start()
        try:
            for name in names:
                git.stdin.write(f"{name}\n".encode())
                git.stdin.flush()
                head = git.stdout.readline().split()
                if len(head) != 3:
                    return
                size = int(head[2])
                data = git.stdout.read(size)
                if len(data) != size or git.stdout.read(1) != b"\n":
                    return
                yield data
        except BrokenPipeError:
            return  # git died; the caller says which file is missing
        finally:
            deadline.cancel()
            git.kill()


def _command(source: GitSource, *arguments: str) -> list[str]:
    return ["git", "--no-pager", "-C", source.repository, *arguments]
