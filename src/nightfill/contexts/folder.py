"""Folders and single files as sources.

Left out of a folder: what `.gitignore` files say (those in it, those above it up to the repository's top, and the
repository's `info/exclude`; a folder that is itself ignored was named on purpose, so then only its own count), hidden
files and folders (secrets live there, and tools' state), symbolic links (inside the folder they would say things
twice, outside they would let a checkout read anything), binary files and those over `contexts.max_file_bytes`. A file
or folder that cannot be read is an error, not a gap.

All opening is relative to the open folder and follows no link, so a folder swapped for a link midway leads nowhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nightfill.contexts.bundle import Bundle, Reading, show_path
from nightfill.contexts.ignore import Include, Rules, hidden
from nightfill.errors import BadSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightfill.config import ContextSettings
    from nightfill.contexts.context import FilesSource, FolderSource

MAX_ENTRIES: Final = 200_000
MAX_DEPTH: Final = 100
_RULES_BYTES: Final = 1 << 20
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # no block: a FIFO would hang us
_RACY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """A file that belongs to a context, by its path relative to the folder."""

    path: str
    size: int
    stamp: tuple[int, ...]


def read_folder(source: FolderSource, limits: ContextSettings) -> Reading:
    """The folder's text files, by the bytes of their paths. Raises BadSource."""
    with _opened(source.path) as root:
        survey = _survey(root, source)
        mark = survey.mark()
        bundle = Bundle(f"folder {show_path(source.path)}", limits)
        for _ in range(survey.links):
            bundle.leave_out("link")
        for file in survey.found:
            if file.size > limits.max_file_bytes:
                bundle.leave_out("too large")
            elif bundle.full:
                bundle.count(file.path, file.size)
            else:
                _add(bundle, root, source.path, file.path, limits)
    if source.include and not survey.found:
        raise BadSource(
            f"folder {show_path(source.path)}: no file matches {', '.join(source.include)}", param="include"
        )
    return bundle.reading(mark)


def mark_folder(source: FolderSource) -> bytes:
    """Changes when a file of the folder is added, removed or written to. Reads no file but `.gitignore`."""
    with _opened(source.path) as root:
        return _survey(root, source).mark()


def read_files(source: FilesSource, limits: ContextSettings) -> Reading:
    """The files in the order given, each named by its path below their common folder. Raises BadSource."""
    mark = mark_files(source)
    base = os.path.commonpath([os.path.dirname(path) for path in source.paths])  # noqa: PTH120 - keeps odd bytes
    bundle = Bundle("files", limits)
    for path in source.paths:
        _refuse_links(path)
        with _reported(path):
            data = _read(os.open(path, _READ), limits.max_file_bytes + 1)
        if data is None:
            raise BadSource(f"{show_path(path)}: not a file")
        if len(data) > limits.max_file_bytes:
            raise BadSource(f"{show_path(path)}: over the {limits.max_file_bytes} bytes of contexts.max_file_bytes")
        if not bundle.add(os.path.relpath(path, base), data):
            raise BadSource(f"{show_path(path)}: not a text file (holds a NUL byte or is not UTF-8)")
    return bundle.reading(mark)


def mark_files(source: FilesSource) -> bytes:
    """Changes when one of the files is written to or replaced. Raises BadSource."""
    if not source.paths:
        raise BadSource("no files are named")
    stamps = []
    for path in source.paths:
        _refuse_links(path)
        with _reported(path):
            stamps.append(Found(path, 0, _stamp(Path(path).lstat())))
    return _mark(stamps, b"")


class _Survey:
    """One walk over a folder: which files belong to it."""

    def __init__(self, source: FolderSource) -> None:
        self.top = source.path
        self.include = Include(source.include)
        self.found: list[Found] = []
        self.links = 0
        self._entries = 0
        self._rules: list[tuple[str, str]] = []

    def run(self, root: int) -> None:
        """Walk everything below the open folder. Raises BadSource."""
        pending = [("", _rules_above(Path(self.top)))]
        while pending:
            folder, rules = pending.pop()
            if folder.count("/") >= MAX_DEPTH:
                raise BadSource(f"folder {show_path(self.top)}: more than {MAX_DEPTH} levels deep")
            try:
                pending.extend(self._list(root, folder, rules))
            except _Gone:
                if not folder:
                    raise
        self.found.sort(key=lambda file: os.fsencode(file.path))

    def mark(self) -> bytes:
        """Of the files found, and of the rules that chose them."""
        return _mark(self.found, repr(sorted(self._rules)).encode())

    def _list(self, root: int, folder: str, outer: Rules) -> Iterator[tuple[str, Rules]]:
        """Note the files directly in `folder`; the folders in it, with the rules that hold there."""
        shown = f"{self.top}/{folder}"
        with _reported(shown), _beneath(root, folder, os.O_DIRECTORY) as here:
            rules = outer
            if text := _ignore_text(here, shown):
                rules = outer.below(folder, text)
                self._rules.append((folder, text))
            with os.scandir(here) as listing:
                for entry in listing:
                    self._entries += 1
                    if self._entries > MAX_ENTRIES:
                        raise BadSource(f"folder {show_path(self.top)}: over {MAX_ENTRIES} files; name a subfolder")
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if hidden(entry.name) or rules.ignores(path, is_folder=is_folder):
                        continue
                    if is_folder:
                        yield path, rules
                    else:
                        self._note(entry, path)

    def _note(self, entry: os.DirEntry[str], path: str) -> None:
        if entry.is_symlink():
            self.links += 1
        elif entry.is_file(follow_symlinks=False) and self.include(path):
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                status = entry.stat(follow_symlinks=False)
                self.found.append(Found(path, status.st_size, _stamp(status)))


def _survey(root: int, source: FolderSource) -> _Survey:
    survey = _Survey(source)
    survey.run(root)
    return survey


def _add(bundle: Bundle, root: int, top: str, path: str, limits: ContextSettings) -> None:
    try:
        with _reported(f"{top}/{path}"), _beneath(root, path, 0) as file:
            data = _read(os.dup(file), limits.max_file_bytes + 1)
    except _Gone:
        return
    if data is None:
        return  # replaced by something else since it was listed
    if len(data) > limits.max_file_bytes:
        bundle.leave_out("too large")
    else:
        bundle.add(path, data)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def _mark(found: list[Found], seed: bytes) -> bytes:
    digest = hashlib.sha256(seed)
    newest_ns = 0
    for file in found:
        digest.update(repr((file.path, file.stamp)).encode())
        newest_ns = max(newest_ns, file.stamp[2])
    now_ns = time.time_ns()
    if now_ns - newest_ns < _RACY_S * 1e9:
        # A second write within the clock's grain would leave the same stamp: such a mark must never match a later one.
        digest.update(str(now_ns).encode())
    return digest.digest()


def _rules_above(folder: Path) -> Rules:
    """Rules of the repository that `folder` lies in, if any; none when they ignore `folder` itself."""
    top = next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)
    if top is None:
        return Rules()
    rules = Rules()
    for parent in folder.parents if top != folder else ():
        rules = rules.above(folder.relative_to(parent).as_posix(), _text_of(parent / ".gitignore"))
        if parent == top:
            break
    prefix = "" if top == folder else folder.relative_to(top).as_posix()
    rules = rules.above(prefix, _text_of(top / ".git" / "info" / "exclude"))
    from_top = _rules_from(top, prefix)
    parts = prefix.split("/") if prefix else []
    if any(from_top.ignores("/".join(parts[: depth + 1]), is_folder=True) for depth in range(len(parts))):
        return Rules()
    return rules


def _rules_from(top: Path, prefix: str) -> Rules:
    """The same rules, seen from the repository's top."""
    rules = Rules().below("", _text_of(top / ".git" / "info" / "exclude")).below("", _text_of(top / ".gitignore"))
    parts = prefix.split("/") if prefix else []
    for depth in range(1, len(parts)):
        folder = "/".join(parts[:depth])
        rules = rules.below(folder, _text_of(top / folder / ".gitignore"))
    return rules


def _text_of(path: Path) -> str:
    with contextlib.suppress(OSError):  # no such file, or `.git` is a file: no rules
        return (_read(os.open(path, _READ), _RULES_BYTES) or b"").decode("utf-8", "surrogateescape")
    return ""


def _ignore_text(folder: int, shown: str) -> str:
    try:
        status = os.stat(".gitignore", dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return ""
    if not stat.S_ISREG(status.st_mode):
        return ""  # git does not follow a link here either
    with _reported(f"{shown}/.gitignore"):
        data = _read(os.open(".gitignore", _READ, dir_fd=folder), _RULES_BYTES)
    return (data or b"").decode("utf-8", "surrogateescape")


def _read(file: int, bound: int) -> bytes | None:
    """At most `bound` bytes of a regular file, which is closed; None for anything else."""
    with open(file, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        parts: list[bytes] = []
        while bound > 0 and (part := stream.read(min(bound, 1 << 20))):
            parts.append(part)
            bound -= len(part)
        return b"".join(parts)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    _refuse_links(path)
    with _reported(path, kind="folder"):
        folder = os.open(path, _READ | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _beneath(root: int, path: str, flags: int) -> Iterator[int]:
    """The file or folder at `path` below `root`, opened part by part without following a link."""
    here = os.dup(root)
    try:
        parts = path.split("/") if path else []
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            below = os.open(part, _READ | (flags if last else os.O_DIRECTORY), dir_fd=here)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


class _Gone(BadSource):
    """A file vanished between listing and reading: as if it had never been there."""


@contextlib.contextmanager
def _reported(path: str, kind: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        shown = f"{kind} {show_path(path)}".strip().rstrip("/")
        reason = exc.strerror or str(exc)
        error = _Gone if isinstance(exc, FileNotFoundError) else BadSource
        raise error(f"{shown}: {reason}") from exc


def _refuse_links(path: str) -> None:
    """A source names a real path, so that what was allowed once cannot become something else."""
    real = os.path.realpath(path)
    if real != os.path.abspath(path) and os.path.lexists(path):  # noqa: PTH100 - keeps odd bytes
        raise BadSource(f"{show_path(path)} leads through a symbolic link: name {show_path(real)} instead")
