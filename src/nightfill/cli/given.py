"""What `nightfill context add` was given, read into a content and the source that it can be read from again."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from nightfill.contexts import Content, Source, content_bytes, decode_messages, text_content
from nightfill.contexts.bundle import show_left_out
from nightfill.contexts.context import FilesSource, FolderSource, GitSource, MessagesSource, TextSource
from nightfill.contexts.sources import read, resolved
from nightfill.errors import BadSource

if TYPE_CHECKING:
    from nightfill.config import ContextSettings

_STDIN: Final = "-"


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments that say where the content comes from; exactly one of paths, text, messages and git."""

    paths: tuple[str, ...]
    text: str | None
    messages: str | None
    git: str | None
    repo: str
    subdir: str
    include: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A content with its source, and what to say about the reading."""

    content: Content
    source: Source
    files: int = 0
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def remark(self) -> str:
        """`812 files; left out: 3 binary`, or nothing."""
        if not self.files:
            return ""
        out = f"; left out: {show_left_out(self.left_out)}" if self.left_out else ""
        return f"{self.files} {'file' if self.files == 1 else 'files'}{out}"


def take(given: Given, limits: ContextSettings) -> Taken:
    """Read it. Raises click.UsageError, BadSource."""
    named = [name for name in ("paths", "text", "messages", "git") if getattr(given, name)]
    if len(named) != 1:
        raise click.UsageError("give one of: a folder or files, --text, --messages, --git")
    if given.text is not None:
        return _bounded(Taken(content=text_content(_bytes(given.text, limits)), source=TextSource()), limits)
    if given.messages is not None:
        return _bounded(Taken(content=decode_messages(_bytes(given.messages, limits)), source=MessagesSource()), limits)
    source = resolved(_source(given))
    reading = read(source, limits)
    return Taken(content=reading.content, source=source, files=reading.files, left_out=reading.left_out)


def _source(given: Given) -> Source:
    if given.include and (given.git or not Path(given.paths[0]).is_dir()):
        raise click.UsageError("--include goes with a folder")
    if given.git:
        return GitSource(given.repo, given.git, given.subdir)
    folders = [path for path in given.paths if Path(path).is_dir()]
    if not folders:
        return FilesSource(given.paths)
    if len(given.paths) > 1:
        raise click.UsageError("give one folder, or only files")
    return FolderSource(given.paths[0], given.include)


def _bytes(name: str, limits: ContextSettings) -> bytes:
    bound = limits.max_bytes * 2 + 1  # JSON escapes; the content itself is checked afterwards
    try:
        if name == _STDIN:
            return sys.stdin.buffer.read(bound)
        with Path(name).open("rb") as stream:
            return stream.read(bound)
    except OSError as exc:
        raise BadSource(f"{name}: {exc.strerror}") from exc


def _bounded(taken: Taken, limits: ContextSettings) -> Taken:
    size = content_bytes(taken.content)
    if size > limits.max_bytes:
        raise BadSource(f"{size} bytes or more of text, above the {int(limits.max_bytes)} of contexts.max_bytes")
    return taken
