from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from nightfill.config import ContextSettings
from nightfill.contexts.context import FilesSource, FolderSource, GitSource, MessagesSource, Source, TextSource
from nightfill.contexts.sources import confined, read_source, refresh, resolved, show_source, stat_mark
from nightfill.errors import BadSource, NotAllowed

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = ContextSettings()


@pytest.mark.parametrize("source", [TextSource(), MessagesSource()])
def test_what_was_given_once_never_changes(source: Source) -> None:
    assert stat_mark(source) is None
    assert refresh(source, LIMITS, None) is None
    assert confined(source, ()) == source
    with pytest.raises(BadSource, match="give the new text"):
        read_source(source, LIMITS)


def test_a_refresh_reads_only_when_something_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3600 * 10**9)
    (tmp_path / "a").write_text("1")
    sources: list[Source] = [FolderSource(str(tmp_path)), FilesSource((str(tmp_path / "a"),))]
    for source in sources:
        (tmp_path / "a").write_text("1")
        first = refresh(source, LIMITS, None)
        assert first is not None
        assert refresh(source, LIMITS, first.mark) is None
        (tmp_path / "a").write_text("22")
        second = refresh(source, LIMITS, first.mark)
        assert second is not None
        assert second.content.text == "# file: a\n22\n\n"


def test_paths_are_stored_without_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real, link = str(tmp_path / "real"), str(tmp_path / "link")
    assert resolved(FolderSource(link, ("*.py",))) == FolderSource(real, ("*.py",))
    assert resolved(GitSource(link)) == GitSource(real)
    assert resolved(FilesSource((link + "/x",))) == FilesSource((real + "/x",))


def test_sources_outside_the_roots_are_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/out").symlink_to(tmp_path)
    root, other = str(tmp_path / "root"), str(tmp_path / "rooted")
    outside: list[Source] = [
        FolderSource(other),
        FolderSource(f"{root}/.."),
        FolderSource(f"{root}/out"),
        GitSource(other),
    ]
    for source in [*outside, FilesSource((f"{root}/a", other))]:
        with pytest.raises(NotAllowed, match=r"contexts\.roots"):
            confined(source, (root,))
    inside: list[Source] = [FolderSource(root), GitSource(f"{root}/x"), FilesSource((f"{root}/a",))]
    for source in inside:
        assert confined(source, (root,)) == source
        with pytest.raises(NotAllowed):
            confined(source, ())


def test_sources_are_shown_on_one_line() -> None:
    assert show_source(FolderSource("/a\nb", ("*.py",))) == "folder /a\\nb (*.py)"
    assert show_source(GitSource("/a", "main", "src")) == "git /a@main:src"
    assert show_source(FilesSource(("/a", "/b"))) == "files /a, /b"
