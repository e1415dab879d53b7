from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightfill.config import ByteSize, ContextSettings
from nightfill.contexts import folder as folder_module
from nightfill.contexts.context import FilesSource, FolderSource
from nightfill.contexts.folder import mark_files, mark_folder, read_files, read_folder
from nightfill.errors import BadSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nightfill.contexts.bundle import Reading

LIMITS = ContextSettings()


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def paths(reading: Reading) -> list[str]:
    return [line.removeprefix("# file: ") for line in reading.content.text.splitlines() if line.startswith("# file: ")]


def read(root: Path, *include: str, limits: ContextSettings = LIMITS) -> Reading:
    return read_folder(FolderSource(str(root), include), limits)


def bounded(max_bytes: int, max_file_bytes: int = 1 << 20) -> ContextSettings:
    return ContextSettings(max_bytes=ByteSize(max_bytes), max_file_bytes=ByteSize(max_file_bytes))


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything, so a refusal needs another user."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose parents everybody may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_files_have_headings_and_whole_lines(tmp_path: Path) -> None:
    write(tmp_path, {"b.py": "b\n", "a.md": "\ufeffa", "empty": ""})
    assert read(tmp_path).content.text == "# file: a.md\na\n\n# file: b.py\nb\n\n# file: empty\n\n"


def test_the_order_is_that_of_the_paths_bytes(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["a/z", "a-b", "a.b", "B", "a/b/c", "ü"], "x"))
    assert paths(read(tmp_path)) == ["B", "a-b", "a.b", "a/b/c", "a/z", "ü"]


def test_a_file_added_leaves_all_that_comes_before_it_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, {"a": "1", "c": "3"})
    before = read(tmp_path).content.text
    write(tmp_path, {"b": "2"})
    after = read(tmp_path).content.text
    assert after.startswith(before[: before.index("# file: c")])


def test_line_ends_are_kept(tmp_path: Path) -> None:
    write(tmp_path, {"a": "x\r\ny\t \r\n"})
    assert read(tmp_path).content.text == "# file: a\nx\r\ny\t \r\n\n"


def test_binary_large_linked_and_hidden_files_are_left_out_and_counted(tmp_path: Path) -> None:
    write(
        tmp_path, {"a": "x", "nul": b"a\0b", "latin": b"\xe9t\xe9", "big": "y" * 101, ".env": "SECRET", ".git/x": "z"}
    )
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "out").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    reading = read(tmp_path, limits=bounded(1000, max_file_bytes=100))
    assert paths(reading) == ["a"]
    assert (reading.files, reading.left_out) == (1, {"binary": 2, "too large": 1, "link": 2})


def test_names_that_would_break_a_heading_are_escaped(tmp_path: Path) -> None:
    write(tmp_path, {"a\n# file: b": "x"})
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).write_text("y")
    assert read(tmp_path).content.text == "# file: a\\n# file: b\nx\n\n# file: \\xff\ny\n\n"


def test_include_patterns_choose_files(tmp_path: Path) -> None:
    write(tmp_path, dict.fromkeys(["a.py", "d/b.py", "d/c.md", "e/c.md"], "x"))
    assert paths(read(tmp_path, "*.py", "/d/*.md")) == ["a.py", "d/b.py", "d/c.md"]
    with pytest.raises(BadSource, match=r"no file matches \*\.rs"):
        read(tmp_path, "*.rs")


@pytest.mark.parametrize("pattern", ["", "a" * 300, "[a", "a\\", "!", "# a"])
def test_strange_include_patterns_are_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(BadSource, match="include pattern"):
        read(write(tmp_path, {"a": "x"}), pattern)


def test_ignore_files_of_every_level_count(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            ".gitignore": "*.log\nbuild/\n!keep.log\n/top\n\\\n!\n",
            "a.log": "x",
            "keep.log": "x",
            "build/x": "x",
            "top": "x",
            "d/top": "x",
            "d/.gitignore": "!*.log\nx\n",
            "d/b.log": "x",
            "d/x/y": "x",
            "d/e/.gitignore": "b.log",
            "d/e/b.log": "x",
            "d/e/c.log": "x",
        },
    )
    assert paths(read(tmp_path)) == ["d/b.log", "d/e/c.log", "d/top", "keep.log"]


def test_the_repositorys_own_rules_hold_in_a_subfolder(tmp_path: Path) -> None:
    write(tmp_path, {".git/info/exclude": "*.tmp", ".gitignore": "*.pyc\n/src/gen\n", "src/.gitignore": "*.bak"})
    write(tmp_path / "src/lib", dict.fromkeys(["a.py", "a.pyc", "a.tmp", "a.bak"], "x"))
    write(tmp_path / "src", {"gen/x": "x", "b": "y"})
    assert paths(read(tmp_path / "src/lib")) == ["a.py"]
    assert paths(read(tmp_path / "src")) == ["b", "lib/a.py"]


def test_an_ignored_folder_that_is_named_itself_is_read(tmp_path: Path) -> None:
    """The installed sources of a package lie in an ignored folder, and are a useful context all the same."""
    write(tmp_path, {".git/HEAD": "x", ".gitignore": "/env\n*.py\n", "env/lib/a.py": "x"})
    assert paths(read(tmp_path / "env/lib")) == ["a.py"]


RULES = st.lists(
    st.sampled_from(
        [
            "a",
            "b",
            "/a",
            "a/",
            "b/",
            "!a",
            "!b",
            "!a/",
            "*",
            "!*/",
            "a/*",
            "!a/b",
            "a/b",
            "**/b",
            "a/**",
            "# a",
            "",
            "!/b/a",
        ]
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(top=RULES, inner=RULES)
def test_ignoring_agrees_with_git(tmp_path: Path, top: list[str], inner: list[str]) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    write(root, dict.fromkeys(["a/a/a", "a/a/b", "a/b", "b/a", "b/b/a", "c/a/b", "c/b"], "x"))
    write(root, {".gitignore": "\n".join(top), "a/.gitignore": "\n".join(inner)})
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "-o", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    expected = sorted(path for path in listed if path and not path.endswith(".gitignore"))
    try:
        found = paths(read(root))
    except BadSource:
        found = []
    assert found == expected


def test_too_much_text_is_refused_and_the_largest_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"a": "x" * 400, "b": "x" * 900, "c": "y" * 10, "z": "x" * 800})
    with pytest.raises(BadSource, match=r"contexts\.max_bytes.*the largest: b \(9.. bytes\), z \(8.. bytes\), a"):
        read(tmp_path, limits=bounded(1000))


def test_a_text_of_exactly_the_bound_is_taken(tmp_path: Path) -> None:
    write(tmp_path, {"a": "x" * 50})
    size = len(read(tmp_path).content.text)
    assert read(tmp_path, limits=bounded(size)).files == 1
    with pytest.raises(BadSource, match="more than"):
        read(tmp_path, limits=bounded(size - 1))


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAX_ENTRIES", 2)
    with pytest.raises(BadSource, match="over 2 files"):
        read(write(tmp_path, dict.fromkeys("abc", "x")))


def test_endless_depth_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"/".join(["d"] * 102) + "/x": "x"})
    with pytest.raises(BadSource, match="levels deep"):
        read(tmp_path)


def test_a_missing_folder_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match=r"folder .*/gone: No such file"):
        read(tmp_path / "gone")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match="Not a directory"):
        read(write(tmp_path, {"a": "x"}) / "a")


def test_a_folder_of_binary_files_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match=r"no text files found \(1 binary left out\)"):
        read(write(tmp_path, {"a": b"\0"}))


@pytest.mark.parametrize("locked", ["", "sub", "sub/file", "sub/.gitignore"])
def test_what_may_not_be_read_is_an_error_not_a_gap(open_folder: Path, locked: str) -> None:
    write(open_folder, {"sub/file": "x", "sub/.gitignore": "y"})
    (open_folder / locked).chmod(0)
    with unprivileged(), pytest.raises(BadSource, match="Permission denied") as caught:
        read(open_folder)
    assert str(open_folder / locked) in str(caught.value)


def test_a_folder_that_became_a_link_is_refused(tmp_path: Path) -> None:
    """Else whoever may name a folder once could later point it at any other."""
    write(tmp_path, {"real/a": "x"})
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(BadSource, match=r"symbolic link: name .*/real instead"):
        read(tmp_path / "link")
    with pytest.raises(BadSource, match="symbolic link"):
        read_files(FilesSource((str(tmp_path / "link/a"),)), LIMITS)


def test_a_file_that_vanishes_after_the_listing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a": "x", "b": "y"})
    beneath = folder_module._beneath

    def vanishing(root: int, path: str, flags: int) -> contextlib.AbstractContextManager[int]:
        if path == "a":
            (tmp_path / "a").unlink()
        return beneath(root, path, flags)

    monkeypatch.setattr(folder_module, "_beneath", vanishing)
    assert paths(read(tmp_path)) == ["b"]


def test_a_file_swapped_for_a_link_midway_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"in/d/a": "x", "secret/a": "y"})
    beneath = folder_module._beneath

    def swapping(root: int, path: str, flags: int) -> contextlib.AbstractContextManager[int]:
        if path == "d/a":
            (tmp_path / "in/d").rename(tmp_path / "old")
            (tmp_path / "in/d").symlink_to(tmp_path / "secret")
        return beneath(root, path, flags)

    monkeypatch.setattr(folder_module, "_beneath", swapping)
    with pytest.raises(BadSource, match="in/d/a"):
        read(tmp_path / "in")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour has passed since the files were written."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3600 * 10**9)


@pytest.mark.usefixtures("later")
def test_the_mark_changes_with_any_file_and_only_then(tmp_path: Path) -> None:
    source = FolderSource(str(write(tmp_path, {"a": "x", "d/b": "y", ".gitignore": "*.o", "c.o": "z"})))
    marks = [mark_folder(source)]
    assert mark_folder(source) == marks[0]
    write(tmp_path, {"c.o": "other"})
    assert mark_folder(source) == marks[0]
    for change in ({"a": "xx"}, {"d/b": "z"}, {"e": ""}, {".gitignore": "*.x"}):
        write(tmp_path, dict(change))
        marks.append(mark_folder(source))
    (tmp_path / "a").unlink()
    marks.append(mark_folder(source))
    assert len(set(marks)) == len(marks)


def test_a_mark_taken_right_after_a_write_matches_none(tmp_path: Path) -> None:
    """A second write within the clock's grain may leave size and times as they were."""
    source = FolderSource(str(write(tmp_path, {"a": "x"})))
    assert mark_folder(source) != mark_folder(source)


def test_single_files_keep_their_order_and_are_named_below_their_common_folder(tmp_path: Path) -> None:
    write(tmp_path, {"z/b": "1", "a/.c": "2"})
    reading = read_files(FilesSource((str(tmp_path / "z/b"), str(tmp_path / "a/.c"))), LIMITS)
    assert paths(reading) == ["z/b", "a/.c"]
    assert paths(read_files(FilesSource((str(tmp_path / "z/b"),)), LIMITS)) == ["b"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone", "No such file"),
        ("bin", "not a text file"),
        ("big", "over the 100"),
        ("d", "Is a directory"),
        ("pipe", "not a file"),
    ],
)
def test_a_single_file_that_cannot_be_taken_is_an_error(tmp_path: Path, name: str, reason: str) -> None:
    write(tmp_path, {"bin": b"\0", "big": "x" * 101, "d/x": "x", "a": "x"})
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadSource, match=reason) as caught:
        read_files(FilesSource((str(tmp_path / "a"), str(tmp_path / name))), bounded(1000, max_file_bytes=100))
    assert name in str(caught.value)


def test_no_files_at_all_are_refused() -> None:
    with pytest.raises(BadSource, match="no files"):
        read_files(FilesSource(()), LIMITS)


@pytest.mark.usefixtures("later")
def test_the_mark_of_files_changes_with_each(tmp_path: Path) -> None:
    source = FilesSource((str(write(tmp_path, {"a": "x"}) / "a"),))
    first = mark_files(source)
    assert mark_files(source) == first
    write(tmp_path, {"a": "xy"})
    assert mark_files(source) != first
