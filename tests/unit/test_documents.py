"""The documents are true as far as a program can tell: links lead somewhere, and examples marked as tested run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE: Final = re.compile(
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL
)
LINK: Final = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
MARK: Final = "<!-- tested -->\n"
FIRST_STEPS: Final = ("make demo", "make test")


@dataclass(frozen=True, slots=True)
class Example:
    """A block that a page marks as tested."""

    language: str
    body: str
    line: int


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def examples(text: str) -> list[Example]:
    return [
        Example(block["language"], block["body"], text.count("\n", 0, block.start()) + 1)
        for block in FENCE.finditer(text)
        if text.endswith(MARK, 0, block.start())
    ]


def anchors(text: str) -> set[str]:
    """The fragments that a page's headings can be reached by, as code hosts make them."""
    headings = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    for link in LINK.finditer(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, fragment = link["target"].partition("#")
        if target.startswith(("http:", "https:", "mailto:")):
            continue
        at = (page.parent / target).resolve() if target else page
        if not at.is_relative_to(ROOT) or not at.exists():
            yield f"{name(page)}: {link['target']} leads nowhere"
        elif fragment and at.suffix == ".md" and fragment not in anchors(at.read_text(encoding="utf-8")):
            yield f"{name(page)}: {target} has no heading #{fragment}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page.read_text(encoding="utf-8"))], ids=name)
def test_tested_examples_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    """All examples of a page run one after the other in one empty folder, with an empty home."""
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONWARNINGS": "error"}
    for example in examples(page.read_text(encoding="utf-8")):
        command = {
            "sh": ["bash", "-euo", "pipefail", "-c", example.body],
            "python": [sys.executable, "-c", example.body],
        }[example.language]
        ran = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert ran.returncode == 0, f"{name(page)}:{example.line} ended with {ran.returncode}\n{ran.stdout}{ran.stderr}"


def test_a_marked_example_is_found_and_an_unmarked_one_is_not() -> None:
    text = "a\n\n```sh\nfalse\n```\n\n<!-- tested -->\n```python\nprint(1)\n```\n"
    assert examples(text) == [Example("python", "print(1)\n", 8)]


def test_anchors_are_those_of_the_headings_and_not_of_comments_in_code() -> None:
    assert anchors("# The `kv` store, in short\n```sh\n# no heading\n```\n") == {"the-kv-store-in-short"}


def test_the_readme_shows_both_commands_that_a_newcomer_needs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [step for step in FIRST_STEPS if step not in text] == []


def test_the_index_of_the_documents_names_each_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [name(page) for page in (ROOT / "docs").glob("*.md") if page.name not in index] == []


def test_every_target_that_the_documents_name_exists_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {target for page in PAGES for target in re.findall(r"`make ([a-z]+)", page.read_text(encoding="utf-8"))}
    assert [target for target in sorted(named) if not re.search(rf"^{target}:", makefile, re.MULTILINE)] == []
