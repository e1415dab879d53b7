from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nightfill.contexts.wildmatch import parse, parse_line, verdict

if TYPE_CHECKING:
    from pathlib import Path

PIECES = st.sampled_from(
    [
        "a",
        "b",
        "ab",
        "*",
        "**",
        "?",
        "/",
        "[ab]",
        "[!a]",
        "[a-b]",
        "[^b]",
        "[[:alpha:]]",
        "\\a",
        "[]a]",
        "[b-a]",
        "[/]",
        " ",
    ]
)
LINES = st.builds(
    lambda negated, pieces, tail: negated + "".join(pieces) + tail,
    st.sampled_from(["", "", "", "!"]),
    st.lists(PIECES, max_size=6),
    st.sampled_from(["", "", "/", " ", "\\ ", "\r", "[", "\\"]),
)
NAMES = ["a", "b", "ab", "ba", "aab", "]", "a ", "-"]
PATHS = [*NAMES, *(f"{x}/{y}" for x in NAMES[:4] for y in NAMES), "a/b/a", "a/a/b", "b/ab/a", "a/b/a/b", "ab/a/b/a"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, min_size=1, max_size=3))
@example(lines=["a**/a"])
@example(lines=["a/***/b"])
def test_files_are_ignored_exactly_when_git_ignores_them(repository: Path, lines: list[str]) -> None:
    text = "\n".join(lines)
    (repository / ".gitignore").write_text(text, newline="")
    patterns = parse(text)
    asked = subprocess.run(
        ["git", "-C", str(repository), "check-ignore", "--no-index", "-z", "--stdin"],
        input="\0".join(PATHS),
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode in (0, 1), asked.stderr

    def ignored(path: str) -> bool:
        parts = path.split("/")
        above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return any(verdict(patterns, folder, is_folder=True) for folder in above) or bool(
            verdict(patterns, path, is_folder=False)
        )

    assert [path for path in PATHS if ignored(path)] == [path for path in asked.stdout.split("\0") if path]


@pytest.mark.parametrize("line", ["", "   ", "# x", "/", "!", "[a", "a\\", "[[:nope:]]"])
def test_lines_that_are_no_pattern_are_none(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize("pattern", ["*a" * 60 + "b", "**/a/" * 40 + "b", "/".join(["*a*a*a*b"] * 8)])
def test_hostile_patterns_cost_little(pattern: str) -> None:
    parsed = parse_line(pattern)
    assert parsed is not None
    began = time.process_time()
    for path in ("a" * 250, "a/" * 99 + "a", "/".join(["a" * 250] * 8)):
        assert not parsed.matches(path, is_folder=False)
    assert time.process_time() - began < 1
