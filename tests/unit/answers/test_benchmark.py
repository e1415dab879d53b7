"""The benchmark of near answers reads both formats, and tells right from wrong as their labels do."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[3]
PAIRS = """question_1,question_2,similar
How do I reset my password?,What is the way to reset my password?,1
How do I reset my password?,How can I reset my password?,1
Is aspirin safe with ibuprofen?,Is aspirin unsafe with ibuprofen?,0
"""
CATEGORIES = """text,category
How do I top up?,top-up
How can I top up?,top-up
Where is my card?,card
"Where is my card, please?",lost card
"""


def run(files: Sequence[Path]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "benchmarks/answers.py", *map(str, files), "--orders", "2"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_pairs_and_categories_plain_and_zipped_in_one_run(tmp_path: Path) -> None:
    pairs, categories = tmp_path / "pairs.csv", tmp_path / "intents.csv.gz"
    pairs.write_text(PAIRS, encoding="utf-8")
    categories.write_bytes(gzip.compress(CATEGORIES.encode()))
    found = run([pairs, categories])
    of_pairs, of_categories = found["files"]
    # Of three ways to ask for the password two are served, and aspirin never.
    assert (of_pairs["questions"], of_pairs["hit_rate"], of_pairs["false_hit_rate"]) == (5, 2 / 5, 0)
    assert (of_pairs["same"], of_pairs["same_passed"], of_pairs["different_passed"]) == (2, 2, 0)
    assert of_pairs["threshold_only_hit_rate"] < of_pairs["hit_rate"]
    # The same question under two labels is wrong by them, and is not hidden.
    assert (of_categories["hit_rate"], of_categories["false_hit_rate"]) == (2 / 4, 1 / 4)
    assert (found["hit_rate"], found["false_hit_rate"]) == pytest.approx((4 / 9, 1 / 9))
    assert found["false_share_of_hits"] == pytest.approx(1 / 4)
    assert found["threshold_only_hit_rate"] == found["threshold_only"]["hit_rate"]


def test_another_format_is_refused_with_the_columns_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="needs the columns"):
        run([path])
