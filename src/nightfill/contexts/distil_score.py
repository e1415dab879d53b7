"""How likely each segment of a text answers a question: centrality, facts, cues of form, and place. Pure.

The weights of prose are of a Poisson model (questions answered by a segment, by features that are standardised within
the text), fitted to COVID-QA; those of talk were chosen on some meetings of QMSum. docs/distil.md has the figures, and
those for documents that the weights were not fitted to.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nightfill.contexts.distil_segments import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from nightfill.contexts.distil_segments import Segment

    Floats = NDArray[np.float32]

NEIGHBOURS: Final = 8
"""Segments to each side that count as what a segment is in the middle of."""
_STEM: Final = 6
"""Letters of a word that count, so that its forms count as one."""
_LEAST_LETTERS: Final = 4
_EVERYDAY: Final = re.compile(
    r"about|also|because|been|could|from|going|gonna|have|into|just|know|like|more|much|okay|really|right|should|some|"
    r"than|that|them|then|there|they|think|this|very|want|well|were|what|when|which|will|with|would|yeah|their"
)
_NOTHING_NEW: Final = 0.3
"""Weight of a segment that says nothing new."""
_FLAT: Final = 1e-6
_LONG: Final = 120
"""Characters of a segment in which somebody explains something."""
_WORD: Final = re.compile(r"[^\W\d_][\w'’-]*")
_NUMBER: Final = re.compile(r"(?<![\w\[])\d+(?:[.,]\d+)*(?!\])")
_NAME: Final = re.compile(r"(?<=\s)[(\"'“]?[A-Z][\w-]+")
_FACT: Final = re.compile(
    r"\b(?:because|due to|caused?(?: by)?|leads? to|led to|results?(?: in|ed)?|found|shows?|shown|suggests?|indicat\w+|"
    r"conclu\w+|demonstrat\w+|reveal\w*|associated|known as|called|defined|refers? to|means?|consists?|includ\w+|"
    r"such as|main|most|major|first|only|important|effective|estimated|required|must|increas\w+|decreas\w+|reduc\w+|"
    r"compared|(?:is|are|was|were) (?:an?|the|one|not)|can(?:not)?|may)\b",
    re.IGNORECASE,
)
_PLAN: Final = re.compile(
    r"\b(?:should|would|could|need(?:s|ed)?|have to|want(?:s|ed)?|decid\w+|decision|propos\w+|suggest\w*|recommend\w*|"
    r"agree\w*|disagree\w*|problem\w*|issue\w*|idea\w*|plan\w*|important|because|think|believe|concern\w*|prefer\w*|"
    r"instead|better|how about|what if|why|use[ds]?|make sure)\b",
    re.IGNORECASE,
)
_ASIDE: Final = re.compile(
    r"https?://|\bdoi\b|et al\.?\s*[,(]|[\w.]+@[\w.]+|\bLicense\b|\{\w+\}|\b(?:um|uh|hmm|mm)\b", re.IGNORECASE
)

FEATURES: Final = (
    "central", "local", "around", "numbers", "names", "facts", "plans", "keys", "asides", "length", "length2",
    "long_around", "asks_around", "place", "place2", "first", "last",
)  # fmt: skip


def features_of(text: str, segments: Sequence[Segment], vectors: Floats) -> Floats:
    """float32[len(segments), len(FEATURES)], not standardised. `vectors` are the segments' embeddings, of length 1 or
    0.
    """
    pieces = [text[one.start : one.end] for one in segments]
    words = [[word.lower() for word in _WORD.findall(piece)] for piece in pieces]
    count = len(pieces)
    size = np.array([len(piece) for piece in pieces], np.float32) + 1
    mean = _unit(vectors.mean(axis=0, keepdims=True))
    windows = _unit(_around(vectors))
    log_size = np.log(size)
    place = _places(text, segments)
    columns = {
        "central": vectors @ mean[0],
        "local": np.einsum("ij,ij->i", vectors, windows),
        "around": windows @ mean[0],
        "numbers": _counts(_NUMBER, pieces),
        "names": _counts(_NAME, pieces),
        "facts": _counts(_FACT, pieces),
        "plans": _counts(_PLAN, pieces),
        "keys": _keys(words),
        "asides": _counts(_ASIDE, pieces),
        "length": log_size,
        "length2": np.square(log_size - np.float32(4.6)),
        "long_around": _around((size > _LONG)[:, None])[:, 0],
        "asks_around": _around(np.array([["?" in piece] for piece in pieces]))[:, 0],
        "place": place,
        "place2": np.square(place),
        "first": place < np.float32(0.03),
        "last": place > np.float32(0.93),
    }
    assert tuple(columns) == FEATURES
    return np.stack(list(columns.values()), axis=1).astype(np.float32).reshape(count, len(FEATURES))


def _unit(rows: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(rows, axis=1, keepdims=True).astype(np.float32)
    return np.divide(rows, np.maximum(lengths, np.float32(_FLAT)))


def _around(rows: NDArray[Any]) -> Floats:
    """The mean of each row's neighbourhood."""
    sums = np.concatenate([np.zeros((1, rows.shape[1])), np.cumsum(rows, axis=0, dtype=np.float64)])
    at = np.arange(len(rows))
    low, high = np.maximum(at - NEIGHBOURS, 0), np.minimum(at + NEIGHBOURS + 1, len(rows))
    means: Floats = ((sums[high] - sums[low]) / (high - low)[:, None]).astype(np.float32)
    return means


def _counts(pattern: re.Pattern[str], pieces: Sequence[str]) -> Floats:
    return np.log1p(np.array([sum(1 for _ in pattern.finditer(piece)) for piece in pieces], np.float32))


def _keys(words: Sequence[Sequence[str]]) -> Floats:
    """Mean weight of the words: those weigh most that the text uses again and again, in few places."""
    uses = Counter(word for row in words for word in row)
    places = Counter(word for row in words for word in set(row))
    weight = {word: math.log1p(uses[word]) * math.log(len(words) / places[word] + 1) for word in uses if uses[word] > 1}
    return np.array([sum(weight.get(word, 0.0) for word in row) / max(len(row), 4) for row in words], np.float32)


def _places(text: str, segments: Sequence[Segment]) -> Floats:
    """0 at the beginning to 1 at the end: of the text, or of its file where it has several."""
    bounds = [0]
    for place, one in enumerate(segments):
        if one.kind is Kind.HEADING and text.startswith("# file: ", one.start) and place:
            bounds.append(place)
    places = np.zeros(len(segments), np.float32)
    for low, high in zip(bounds, [*bounds[1:], len(segments)], strict=True):
        places[low:high] = np.arange(high - low, dtype=np.float32) / max(high - low, 1)
    return places


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How a kind of text is weighed."""

    of: Mapping[str, float]
    """By `FEATURES`; those that are not named count nothing."""
    size: float
    """The power of a segment's length that its priority is per: 0 takes the best segments however long, 1 those with
    most in each byte.
    """
    least: int
    """Characters that a shorter segment counts as having: scraps are no bargain."""
    cover: float
    """How much it counts that a segment has words of weight that nothing kept so far has."""


PROSE: Final = Weights(
    of={
        "central": 0.05,
        "local": 0.05,
        "numbers": 0.14,
        "names": 0.03,
        "facts": 0.17,
        "keys": -0.11,
        "asides": -0.37,
        "length": 0.27,
        "length2": -0.09,
        "place": -0.45,
    },
    size=0.85,
    least=60,
    cover=0.0,
)
"""What answers questions comes early, states facts in numbers and verbs, and is not about sources."""
TALK: Final = Weights(
    of={"long_around": 0.3, "asks_around": 0.15, "place": -0.2, "last": -0.1}, size=1.3, least=1, cover=0.7
)
"""No single turn of a talk answers much; the words that matter, and the passages where somebody explains, do. Vectors
made nothing better on the development meetings, so none are needed.
"""
_DEFINES: Final = re.compile(
    r"^\s*(?:async def|def|class|func|fn|pub|struct|enum|interface|type|export|public)\b", re.MULTILINE
)
_DEFINITION: Final = 1.5
"""Added for code that defines something."""


def weights_of(segments: Sequence[Segment]) -> Weights:
    """Those for a transcript, or those for anything else."""
    return TALK if sum(one.kind is Kind.TURN for one in segments) > len(segments) / 2 else PROSE


def needs_vectors(segments: Sequence[Segment]) -> bool:
    """Whether embeddings of the segments are of any use."""
    return weights_of(segments) is PROSE


def priorities(text: str, segments: Sequence[Segment], vectors: Floats, weights: Weights) -> Floats:
    """float32[len(segments)]: the higher, the sooner a segment is kept. Logarithms, so that differences count."""
    features = features_of(text, segments, vectors)
    spread = features.std(axis=0)
    standard = np.where(spread > _FLAT, (features - features.mean(axis=0)) / np.maximum(spread, _FLAT), 0.0)
    sizes = np.array([max(one.end - one.start + 1, weights.least) for one in segments], np.float32)
    defines = np.array(
        [one.kind is Kind.CODE and _DEFINES.search(text, one.start, one.end) is not None for one in segments]
    )
    of = np.array([weights.of.get(name, 0.0) for name in FEATURES], np.float32)
    found = standard @ of - np.float32(weights.size) * np.log(sizes) + _DEFINITION * defines
    return found.astype(np.float32)


class Cover:
    """What segments have to say that was not said: the weight of their words that nothing taken so far has.

    A word weighs the root of the number of segments that have it, and nothing if it is in one alone.
    """

    def __init__(self, text: str, segments: Sequence[Segment]) -> None:
        self._words = [
            {
                word.lower()[:_STEM]
                for word in _WORD.findall(text, one.start, one.end)
                if len(word) >= _LEAST_LETTERS and not _EVERYDAY.fullmatch(word.lower())
            }
            for one in segments
        ]
        self._places: dict[str, list[int]] = {}
        for place, words in enumerate(self._words):
            for word in words:
                self._places.setdefault(word, []).append(place)
        self._places = {word: places for word, places in self._places.items() if len(places) > 1}
        self._gain = np.zeros(len(segments))
        for places in self._places.values():
            self._gain[places] += math.sqrt(len(places))

    @property
    def priorities(self) -> NDArray[np.float64]:
        """By segment."""
        return np.log(self._gain + _NOTHING_NEW)

    def take(self, place: int) -> None:
        """Count what this segment says as said."""
        for word in self._words[place]:
            places = self._places.pop(word, None)
            if places is not None:
                self._gain[places] -= math.sqrt(len(places))
