"""The repository's pages, and the examples in them that are run as they stand.

A block of `sh` or `python` below a line `<!-- tested -->` runs by itself (tests/unit/test_documents.py), one below
`<!-- tested with a server -->` while `nightfill serve` runs (tests/e2e/test_documents.py).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = sorted([*ROOT.glob("*.md"), *(ROOT / "benchmarks").rglob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE: Final = re.compile(
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL
)
Mark = Literal["tested", "tested with a server"]


@dataclass(frozen=True, slots=True)
class Example:
    """A block that a page marks as tested."""

    page: str
    line: int
    language: str
    body: str


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def examples(text: str, mark: Mark, *, page: str = "") -> list[Example]:
    return [
        Example(page, text.count("\n", 0, block.start()) + 1, block["language"], block["body"])
        for block in FENCE.finditer(text)
        if text.endswith(f"<!-- {mark} -->\n", 0, block.start())
    ]


def examples_of(page: Path, mark: Mark) -> list[Example]:
    return examples(page.read_text(encoding="utf-8"), mark, page=name(page))


def clean_environment(home: Path) -> dict[str, str]:
    """What a newcomer's shell has: an empty home, and `nightfill` on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # Each server would look at its model's class in a process of its own, for 9 s; one may remember it for all.
    known = {"VLLM_CACHE_ROOT": str(ROOT / ".venv-vllm" / "cache")}
    return {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "PYTHONWARNINGS": "error", **known}


def run(example: Example, folder: Path, environment: dict[str, str], *, timeout_s: float = 120) -> str:
    """Run the example in `folder`; its output. Fails the test when it fails."""
    command = {"sh": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[example.language]
    ran = subprocess.run(
        [*command, example.body],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert ran.returncode == 0, f"{example.page}:{example.line} ended with {ran.returncode}\n{ran.stdout}"
    return ran.stdout
