"""The documents are true as far as a program can tell: links lead somewhere, and examples marked as tested run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import pytest

from documents import FENCE, PAGES, ROOT, Example, clean_environment, examples, examples_of, name, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINK: Final = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
FIRST_STEPS: Final = ("make demo", "make test")


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


@pytest.mark.parametrize("page", [page for page in PAGES if examples_of(page, "tested")], ids=name)
def test_tested_examples_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    """All examples of a page run one after the other in one empty folder, with an empty home."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for example in examples_of(page, "tested"):
        run(example, folder, clean_environment(tmp_path))


def test_a_marked_example_is_found_and_an_unmarked_one_is_not() -> None:
    text = "a\n\n```sh\nfalse\n```\n\n<!-- tested -->\n```python\nprint(1)\n```\n"
    assert examples(text, "tested") == [Example("", 8, "python", "print(1)\n")]
    assert examples(text, "tested with a server") == []


def test_an_example_that_fails_midway_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"README\.md:3 ended with 1"):
        run(Example("README.md", 3, "sh", "false\ntrue\n"), tmp_path, clean_environment(tmp_path))


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
