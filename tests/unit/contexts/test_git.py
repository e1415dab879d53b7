from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from nightfill.config import ByteSize, ContextSettings
from nightfill.contexts.context import GitSource
from nightfill.contexts.git import mark_git, read_git
from nightfill.errors import BadSource

if TYPE_CHECKING:
    from pathlib import Path

LIMITS = ContextSettings()


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/b.py").write_text("b")
    (tmp_path / "a.md").write_text("a\n")
    (tmp_path / ".env").write_text("secret")
    (tmp_path / "bin").write_bytes(b"\0")
    (tmp_path / "link").symlink_to("a.md")
    (tmp_path / "odd\nname").write_text("odd")
    (tmp_path / "large").write_text("x" * 300)
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_the_text_files_of_a_revision_are_read_without_a_work_tree(repository: Path) -> None:
    (repository / "a.md").write_text("changed, not committed")
    reading = read_git(GitSource(str(repository), "main"), ContextSettings(max_file_bytes=ByteSize(200)))
    assert reading.content.text == "# file: a.md\na\n\n# file: odd\\nname\nodd\n\n# file: src/b.py\nb\n\n"
    assert reading.left_out == {"binary": 1, "link": 1, "too large": 1}


def test_a_subfolders_paths_begin_below_it(repository: Path) -> None:
    assert read_git(GitSource(str(repository), "HEAD", "src"), LIMITS).content.text == "# file: b.py\nb\n\n"


def test_an_older_revision_stays_readable(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    git(repository, "rm", "-q", "src/b.py")
    git(repository, "commit", "-q", "-m", "second")
    assert "b.py" not in read_git(GitSource(str(repository)), LIMITS).content.text
    assert "b.py" in read_git(GitSource(str(repository), first), LIMITS).content.text
    assert "b.py" in read_git(GitSource(str(repository), "main~1"), LIMITS).content.text


def test_the_mark_follows_the_tree_not_the_commit(repository: Path) -> None:
    source = GitSource(str(repository), "main", "src")
    before = mark_git(source)
    (repository / "a.md").write_text("outside the subfolder")
    git(repository, "commit", "-qam", "second")
    assert mark_git(source) == before
    (repository / "src/b.py").write_text("inside")
    git(repository, "commit", "-qam", "third")
    assert mark_git(source) != before


@pytest.mark.parametrize(
    "revision", ["nowhere", "main:a.md", "--help", "-n", "", "main\n", "a b", "main^{tree}", "@{-1}"]
)
def test_a_revision_that_is_none_is_refused_by_name(repository: Path, revision: str) -> None:
    with pytest.raises(BadSource, match="revision") as caught:
        read_git(GitSource(str(repository), revision), LIMITS)
    assert caught.value.param == "revision"


@pytest.mark.parametrize("subdir", ["..", "a/../..", "src/./x", "nowhere", "a.md", "src\0"])
def test_a_subfolder_that_is_none_is_refused(repository: Path, subdir: str) -> None:
    with pytest.raises(BadSource):
        read_git(GitSource(str(repository), "HEAD", subdir), LIMITS)


def test_a_revision_that_looks_like_an_option_does_nothing(repository: Path) -> None:
    with pytest.raises(BadSource):
        read_git(GitSource(str(repository), f"--output={repository}/written"), LIMITS)
    assert not (repository / "written").exists()


def test_a_folder_without_a_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(BadSource, match="git"):
        read_git(GitSource(str(tmp_path)), LIMITS)
    with pytest.raises(BadSource, match="no such folder"):
        read_git(GitSource(str(tmp_path / "gone")), LIMITS)


def test_without_the_program_the_error_says_so(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository / "src"))
    with pytest.raises(BadSource, match="git is not installed"):
        read_git(GitSource(str(repository)), LIMITS)


def test_a_damaged_object_is_an_error(repository: Path) -> None:
    blob = git(repository, "rev-parse", "HEAD:src/b.py")
    (repository / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(BadSource):
        read_git(GitSource(str(repository), "HEAD", "src"), LIMITS)


def test_too_much_text_is_refused(repository: Path) -> None:
    with pytest.raises(BadSource, match=r"the largest: large"):
        read_git(GitSource(str(repository)), ContextSettings(max_bytes=ByteSize(50)))
