"""Reading the sources of contexts. Everything here blocks; run it in a thread."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from nightfill.contexts.bundle import Reading, show_path
from nightfill.contexts.context import Content, FilesSource, FolderSource, GitSource, MessagesSource, Source, TextSource
from nightfill.contexts.folder import mark_files, mark_folder, read_files, read_folder
from nightfill.contexts.git import mark_git, read_git
from nightfill.errors import BadSource, NotAllowed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nightfill.config import ContextSettings


def read(source: Source, limits: ContextSettings) -> Reading:
    """Read a source that can change: files, a folder, a git revision. Raises BadSource, also for the other kinds."""
    match source:
        case FilesSource():
            return read_files(source, limits)
        case FolderSource():
            return read_folder(source, limits)
        case GitSource():
            return read_git(source, limits)
        case TextSource() | MessagesSource():
            raise BadSource("a context given as text has nothing to read from: give the new text instead")


def read_source(source: Source, limits: ContextSettings) -> Content:
    """The content alone; see `read`."""
    return read(source, limits).content


def stat_mark(source: Source) -> bytes | None:
    """A mark that differs whenever the content may differ; None for sources that cannot change.

    Costs a walk and one `stat` per file, or two calls of git. A mark taken within two seconds of a file's last change
    matches no other, since a further change might leave the file's stamp as it is. Raises BadSource.
    """
    match source:
        case FilesSource():
            return mark_files(source)
        case FolderSource():
            return mark_folder(source)
        case GitSource():
            return mark_git(source)
        case TextSource() | MessagesSource():
            return None


def refresh(source: Source, limits: ContextSettings, previous_mark: bytes | None) -> Reading | None:
    """The source as it is now, or None when nothing can have changed since `previous_mark`. Raises BadSource.

    The mark is taken before the content, so a change in between is seen at the next refresh at the latest.
    """
    mark = stat_mark(source)
    if mark is None or mark == previous_mark:
        return None
    return read(source, limits)


def resolved(source: Source) -> Source:
    """The source with its paths absolute and free of links, as a source is stored. Does not look whether they exist."""
    match source:
        case FilesSource(paths=paths):
            return FilesSource(tuple(os.path.realpath(path) for path in paths))
        case FolderSource(path=path):
            return msgspec.structs.replace(source, path=os.path.realpath(path))
        case GitSource(repository=repository):
            return msgspec.structs.replace(source, repository=os.path.realpath(repository))
        case TextSource() | MessagesSource():
            return source


def confined(source: Source, roots: Sequence[str]) -> Source:
    """`resolved(source)` if all its paths lie within one of `roots`. Raises NotAllowed, which names the path."""
    real = resolved(source)
    match real:
        case FilesSource(paths=paths):
            named: tuple[str, ...] = paths
        case FolderSource(path=path):
            named = (path,)
        case GitSource(repository=repository):
            named = (repository,)
        case TextSource() | MessagesSource():
            named = ()
    allowed = [os.path.realpath(root) for root in roots]
    for path in named:
        if not any(path == root or path.startswith(root.rstrip("/") + "/") for root in allowed):
            raise NotAllowed(f"{show_path(path)} is not within a folder of contexts.roots", param="source")
    return real


def show_source(source: Source) -> str:
    """One line for people: `folder /src (*.py)`."""
    match source:
        case TextSource():
            return "text"
        case MessagesSource(chat=chat):
            return "messages" if chat is None else f"chat about {chat.context}" if chat.context else "chat"
        case FilesSource(paths=paths):
            return "files " + ", ".join(show_path(path) for path in paths)
        case FolderSource(path=path, include=include):
            return f"folder {show_path(path)}" + (f" ({', '.join(include)})" if include else "")
        case GitSource(repository=repository, revision=revision, subdir=subdir):
            return f"git {show_path(repository)}@{revision}" + (f":{show_path(subdir)}" if subdir else "")
