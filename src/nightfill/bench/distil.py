"""How much of what is asked survives distilling: measured on questions whose answers' places in the text are known."""

from __future__ import annotations

import random
import re
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nightfill.contexts.distil import chosen
from nightfill.contexts.distil_score import needs_vectors
from nightfill.contexts.distil_segments import segments_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from nightfill.bench.qa import Document, QaFile
    from nightfill.contexts.distil_segments import Segment

    Embed = Callable[[Sequence[str]], NDArray[np.float32]]

RESAMPLES: Final = 1000
_TURN_SHARE: Final = 0.5
"""Of a turn's characters; when so many are there, it is kept."""
_WORD: Final = re.compile(r"[^\W\d_]{4,}")
_STEM: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Shares from 0 to 1, each the mean over questions."""

    spans: float
    """Of the spans that a question needs: answers are kept whole or lost; turns are kept when half of them is."""
    text: float
    """Of those spans' characters."""
    words: float | None
    """Of the longer words that people's own answers share with the text; None where the file has no such answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept at one ratio."""

    ratio: float
    method: str
    ours: Kept
    first: Kept
    """Of the text's beginning, as long."""
    random: Kept
    """Of segments at random, as long; the mean over the seeds."""
    random_deviation: float
    """Of the share of spans, over the seeds."""
    interval: tuple[float, float]
    """95 % of `ratio_to_random`, by drawing documents anew (bootstrap)."""
    bytes_kept: float
    """The length of what is kept, as a share of the text's."""

    @property
    def ratio_to_random(self) -> float:
        """So many times as many spans as random segments keep."""
        return self.ours.spans / max(self.random.spans, 1e-9)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Of one document, over its questions; one row per arm: ours, first, then the seeds. Columns: see `Kept`."""

    questions: int
    answers: int
    rows: NDArray[np.float64]
    bytes_kept: float


def measure(
    file: QaFile,
    ratios: Sequence[float],
    embed: Embed,
    *,
    seeds: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Retention]:
    """What extractive distilling keeps at each ratio, beside as much of the text's beginning and of its segments at
    random. `progress` is told of each document that is done.
    """
    sums: dict[float, list[_Sums]] = {ratio: [] for ratio in ratios}
    for done, document in enumerate(file.documents, 1):
        segments = segments_of(document.text)
        pieces = [document.text[one.start : one.end] for one in segments]
        vectors = embed(pieces) if needs_vectors(segments) else np.zeros((len(segments), 1), np.float32)
        for ratio in ratios:
            sums[ratio].append(_sums(document, segments, vectors, ratio, seeds, whole=file.format == "answers"))
        progress(done)
    return [_retention(ratio, found) for ratio, found in sums.items()]


def _sums(
    document: Document,
    segments: Sequence[Segment],
    vectors: NDArray[np.float32],
    ratio: float,
    seeds: int,
    *,
    whole: bool,
) -> _Sums:
    text = document.text
    length = len(text.encode())
    sizes = [len(text[one.start : one.end].encode()) + 1 for one in segments]
    ours = chosen(text, segments, vectors, int(length / ratio))
    budget = sum(sizes[place] for place in ours)
    arms = [_marked(text, [segments[place] for place in ours])]
    first = np.zeros(len(text), np.bool_)
    first[: len(text.encode()[:budget].decode(errors="ignore"))] = True
    arms.append(first)
    for seed in range(seeds):
        some = _at_random(sizes, budget, random.Random(seed))  # noqa: S311 - a baseline, not a secret
        arms.append(_marked(text, [segments[place] for place in some]))
    rows = np.array([(*_spans(document, arm, whole=whole), _words(document, arm)) for arm in arms])
    return _Sums(len(document.needed), len(document.answers), rows, budget / max(length, 1))


def _marked(text: str, segments: Collection[Segment]) -> NDArray[np.bool_]:
    """Which characters are kept."""
    there = np.zeros(len(text), np.bool_)
    for one in segments:
        there[one.start : one.end] = True
    return there


def _at_random(sizes: Sequence[int], budget: int, rng: random.Random) -> list[int]:
    taken = []
    for place in rng.sample(range(len(sizes)), len(sizes)):
        if sizes[place] <= budget:
            taken.append(place)
            budget -= sizes[place]
    return taken


def _spans(document: Document, there: NDArray[np.bool_], *, whole: bool) -> tuple[float, float]:
    """Sums over the questions: of the share of spans that are kept, and of their characters; blanks do not count."""
    inside = np.array([not character.isspace() for character in document.text])
    kept = np.concatenate([[0], np.cumsum(there & inside)])
    full = np.concatenate([[0], np.cumsum(inside)])
    spans = characters = 0.0
    for needed in document.needed:
        found = np.array([kept[high] - kept[low] for low, high in needed])
        length = np.array([full[high] - full[low] for low, high in needed])
        spans += float((found >= (length if whole else _TURN_SHARE * length)).mean())
        characters += float(found.sum() / max(length.sum(), 1))
    return spans, characters


def _words(document: Document, there: NDArray[np.bool_]) -> float:
    known = _stems(document.text)
    left = _stems("".join(letter if kept else " " for letter, kept in zip(document.text, there, strict=True)))
    total = 0.0
    for answer in document.answers:
        asked = _stems(answer) & known
        total += len(asked & left) / len(asked) if asked else 0.0
    return total


def _stems(text: str) -> set[str]:
    return {word[:_STEM].lower() for word in _WORD.findall(text)}


def _retention(ratio: float, sums: Sequence[_Sums]) -> Retention:
    questions = sum(one.questions for one in sums)
    answers = sum(one.answers for one in sums)
    rows = np.sum([one.rows for one in sums], axis=0) / np.array([questions, questions, max(answers, 1)])
    by_seed = rows[2:, 0]
    ours = np.array([one.rows[0, 0] for one in sums])
    others = np.array([one.rows[2:, 0].mean() for one in sums])
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.percentile(ours[drawn].sum(axis=1) / np.maximum(others[drawn].sum(axis=1), 1e-9), [2.5, 97.5])
    return Retention(
        ratio=ratio,
        method="extractive",
        ours=_kept(rows[0], answers),
        first=_kept(rows[1], answers),
        random=_kept(rows[2:].mean(axis=0), answers),
        random_deviation=stdev(by_seed.tolist()) if len(by_seed) > 1 else 0.0,
        interval=(float(low), float(high)),
        bytes_kept=fmean(one.bytes_kept for one in sums),
    )


def _kept(row: NDArray[np.float64], answers: int) -> Kept:
    spans, text, words = row.tolist()
    return Kept(spans=spans, text=text, words=words if answers else None)


def distil_json(found: Retention) -> dict[str, Any]:
    """As `--json` has it."""
    shown: dict[str, Any] = {
        "ratio": found.ratio,
        "method": found.method,
        "kept": found.ours.spans,
        "random_kept": found.random.spans,
        "random_deviation": found.random_deviation,
        "first_kept": found.first.spans,
        "ratio_to_random": found.ratio_to_random,
        "ratio_to_random_95": list(found.interval),
        "bytes_kept": found.bytes_kept,
    }
    for measure_name in ("text", "words"):
        for arm, kept in (("", found.ours), ("random_", found.random), ("first_", found.first)):
            shown[f"{measure_name}_{arm}kept"] = asdict(kept)[measure_name]
    return {name: _rounded(value) for name, value in shown.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [round(one, 4) for one in value] if isinstance(value, list) else value
