"""Train the demo model's byte-pair merges on the standard library's sources and print them, one a line.

    python tools/make_demo_merges.py > src/nightfill/engines/llama/demo_merges.txt

The result depends on the sources alone, so on the version of Python that runs this; the file in the package was made by
the version that its first line names. Ties go to the pair that sorts first.
"""

from __future__ import annotations

import itertools
import platform
import re
import sys
import sysconfig
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from nightfill.engines.llama.demo_vocabulary import BYTE_SYMBOLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MERGES: Final = 6000
MAX_FILE_BYTES: Final = 400_000
MIN_COUNT: Final = 3
SKIP: Final = {"site-packages", "dist-packages", "test", "tests", "idlelib", "encodings", "lib2to3", "__pycache__"}

# How llama.cpp cuts text before merging, for the pre-tokenizer `qwen2`. Its \p{L} and \p{N} are here what `re` has.
WORD: Final = re.compile(
    r"'(?:[sdmt]|ll|ve|re)|(?:[^\r\n\w]|_)?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", re.IGNORECASE
)

Symbols = tuple[str, ...]
Pair = tuple[str, str]


def sources() -> Iterator[str]:
    """Texts to train on, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not SKIP.intersection(path.relative_to(root).parts) and path.stat().st_size <= MAX_FILE_BYTES:
            yield path.read_text(encoding="utf-8", errors="replace")


def words_of(texts: Iterable[str]) -> dict[Symbols, int]:
    """Words as byte symbols, and how often each occurs."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(WORD.findall(text))
    return {
        tuple(BYTE_SYMBOLS[byte] for byte in word.encode("utf-8")): count
        for word, count in counts.items()
        if count >= MIN_COUNT and len(word) > 1
    }


def merged(word: Symbols, pair: Pair) -> Symbols:
    """`word` with each occurrence of `pair`, from the left, made one symbol."""
    out: list[str] = []
    at = 0
    while at < len(word):
        if word[at : at + 2] == pair:
            out.append(pair[0] + pair[1])
            at += 2
        else:
            out.append(word[at])
            at += 1
    return tuple(out)


def train(counted: dict[Symbols, int], n_merges: int) -> list[Pair]:
    """The `n_merges` most frequent pairs, each counted after those before it were merged."""
    words = list(counted)
    counts = [counted[word] for word in words]
    frequency: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in itertools.pairwise(word):
            frequency[pair] += counts[index]
            where[pair].add(index)
    merges: list[Pair] = []
    while len(merges) < n_merges and frequency:
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        merges.append(best)
        for index in where.pop(best):
            old = words[index]
            for pair in itertools.pairwise(old):
                frequency[pair] -= counts[index]
                if not frequency[pair]:
                    del frequency[pair]
            new = words[index] = merged(old, best)
            for pair in itertools.pairwise(new):
                frequency[pair] += counts[index]
                where[pair].add(index)
    return merges


def main() -> None:
    """Write the merges to standard output."""
    sys.stdout.write(f"#version: 0.2 of CPython {platform.python_version()}'s standard library\n")
    sys.stdout.writelines(f"{left} {right}\n" for left, right in train(words_of(sources()), MERGES))


if __name__ == "__main__":
    main()
